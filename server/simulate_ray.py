"""The same apps on Flower's simulation engine: many clients on Ray, on one machine or a cluster."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

# Both libraries read these when they are imported.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray will not override what it hides from workers without GPUs; say so now, not in a warning.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
os.environ.update(QUIET)

from flwr.app import Context, Message  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from ..supernet.errors import UsageError  # noqa: E402

Scalar = str | int | float | bool


def run_on_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    clients: int,
    run_config: Mapping[str, Scalar],
    cpus_per_client: float = 1.0,
) -> None:
    """Run a ServerApp with `clients` simulated nodes until it returns.

    Both apps see `run_config`; a node knows itself by `partition-id` and `num-partitions` in its
    node config. As many clients run at once as CPUs allow. What the ServerApp raises is raised
    here. Raises UsageError when Ray is not installed or the numbers make no sense.
    """
    if find_spec("ray") is None:
        raise UsageError("the ray backend needs Ray: pip install 'fedofa[simulation]'")
    if clients < 1 or cpus_per_client <= 0:
        raise UsageError(
            f"clients = {clients}, cpus_per_client = {cpus_per_client}: both must be positive"
        )
    from flwr.simulation import run_simulation

    with _folder() as folder, _without_deprecation():
        run_simulation(
            _with_config(server_app, run_config),
            _ConfiguredClient(client_app, dict(run_config)),
            clients,
            backend_config={
                "client_resources": {"num_cpus": cpus_per_client, "num_gpus": 0.0},
                "init_args": {
                    "include_dashboard": False,
                    "_temp_dir": folder,
                    # Never a cluster that happens to run here; an address is the user's choice.
                    "address": os.environ.get("RAY_ADDRESS", "local"),
                },
            },
        )


class _ConfiguredClient(ClientApp):
    """A ClientApp that sees a run's configuration, which the engine gives to nobody."""

    def __init__(self, app: ClientApp, run_config: dict[str, Scalar]) -> None:
        super().__init__()
        self._app, self._run_config = app, run_config

    def __call__(self, message: Message, context: Context) -> Message:
        # The engine refuses a context whose configuration changed; the state must go back.
        configured = Context(
            context.run_id,
            context.node_id,
            context.node_config,
            context.state,
            dict(self._run_config),
            context.series_id,
        )
        try:
            return self._app(message, configured)
        finally:
            context.state = configured.state


def _with_config(app: ServerApp, run_config: Mapping[str, Scalar]) -> ServerApp:
    configured = ServerApp()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = dict(run_config)
        app(grid, context)

    return configured


@contextmanager
def _folder() -> Iterator[str]:
    """Ray's files, removed at the end. Short: Ray puts sockets with long names into it."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if os.path.isdir("/tmp") else None)  # noqa: S108
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Hide one log line: `run_simulation` refers to `flwr run`.

    That needs a SuperLink of its own and an app bundle for the same engine; a function call in this
    process also passes exceptions on.
    """
    logger = logging.getLogger("flwr")

    def other(record: logging.LogRecord) -> bool:
        return "`run_simulation` function is deprecated" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
