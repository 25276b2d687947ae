"""Submit a Flower run to a server on this machine, follow it, stop it.

Through Flower's own Control API client, which the `flwr` command line uses too (0.7 s a call,
nearly all of it importing).
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from ..supernet.errors import RunError, UsageError

Scalar = str | int | float | bool

LOG_LINES = 15
# Each look costs the SuperLink about 10 ms.
POLL_S = 1.0
# A SuperLink that crashed is back in a few seconds.
OUTAGE_S = 60.0
# A key is in the bundle with a neutral value and gets its value per run: one bundle for all runs.
NEUTRAL: Mapping[type, str] = MappingProxyType({bool: "false", int: "0", float: "0.0", str: '""'})


@dataclass(frozen=True, slots=True)
class Apps:
    """Which apps a run consists of, each `module:attribute`, installed where they run."""

    server_app: str = "fedofa.server.app:app"
    client_app: str = "fedofa.client.app:app"


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as Flower sees it.

    `status` is pending, starting, running or finished; `result` is completed, failed or stopped
    once it is finished; `details` is Flower's reason.
    """

    run_id: int
    status: str
    result: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status == "finished"


def submit(control: str, run_config: Mapping[str, Scalar], apps: Apps | None = None) -> int:
    """Start a run on the SuperLink at HOST:PORT; its id.

    Raises UsageError for a value that Flower cannot carry, RunError when the server refuses or
    cannot be reached.
    """
    content = bundle(run_config, apps or Apps())
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    request = StartRunRequest(
        fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(run_config))
    )
    with _control(control) as client:
        response = client.StartRun(request)
    if not response.HasField("run_id"):
        raise RunError(f"the server at {control} did not start the run: {response.note}")
    return int(response.run_id)


def run_state(control: str, run_id: int) -> RunState:
    """The state of a run; RunError when there is none or the server cannot be reached."""
    with _control(control) as client:
        response = client.ListRuns(ListRunsRequest(run_id=run_id))
    found = [run_from_proto(proto) for proto in response.run_dict.values()]
    if not found:
        raise RunError(f"the server at {control} knows no run {run_id}")
    status = found[0].status
    return RunState(run_id, str(status.status), str(status.sub_status), str(status.details))


def stop_run(control: str, run_id: int) -> None:
    """Stop a run; RunError when it cannot be stopped, for instance because it has ended."""
    with _control(control) as client:
        if not client.StopRun(StopRunRequest(run_id=run_id)).success:
            raise RunError(f"run {run_id} could not be stopped")


def run_log(control: str, run_id: int, lines: int = LOG_LINES) -> list[str]:
    """The last lines of a run's ServerApp."""
    with _control(control) as client:
        stream = client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0))
        # What is there so far comes first; then the stream waits for more.
        first = next(stream, None)
        stream.close()
    text = first.log_output if first is not None else ""
    return [line for line in text.splitlines() if line.strip()][-lines:]


def wait(
    control: str,
    run_id: int,
    on_tick: Callable[[RunState], None] = lambda _state: None,
    poll_s: float = POLL_S,
) -> RunState:
    """Wait for the end of a run, calling `on_tick` at each look.

    Raises RunError, with the end of the ServerApp's log, when the run failed or was stopped, and
    when the server was away for too long; a server that restarts meanwhile is waited for.
    """
    seen_s = time.monotonic()
    while True:
        try:
            state = run_state(control, run_id)
            seen_s = time.monotonic()
        except UnreachableError:
            if time.monotonic() - seen_s > OUTAGE_S:
                raise
            time.sleep(poll_s)
            continue
        on_tick(state)
        if state.finished:
            break
        time.sleep(poll_s)
    if state.result != "completed":
        tail = run_log(control, run_id)
        raise RunError("\n  ".join([f"run {run_id} {state.result}: {state.details}", *tail]))
    return state


class UnreachableError(RunError):
    """The server does not answer, which may pass: its SuperLink is restarted when it crashes."""


def bundle(run_config: Mapping[str, Scalar], apps: Apps) -> bytes:
    """A Flower app bundle (FAB) without code: names of installed apps, and the config's keys."""
    keys = []
    for key, value in sorted(run_config.items()):
        if type(value) not in NEUTRAL or not key.replace("-", "").replace("_", "").isalnum():
            raise UsageError(
                f"run config {key!r} = {value!r}: letters, digits and - for the key; text, "
                "number or bool for the value"
            )
        keys.append(f'"{key}" = {NEUTRAL[type(value)]}')
    config = "\n".join(keys)
    text = f"""[project]
name = "fedofa"
version = "1.0.0"
description = "Names the apps of a run; their code is installed where they run."
dependencies = []

[tool.flwr.app]
publisher = "fedofa"

[tool.flwr.app.components]
serverapp = "{apps.server_app}"
clientapp = "{apps.client_app}"

[tool.flwr.app.config]
{config}
"""
    try:
        with warnings.catch_warnings():
            # Flower's own use of a library, which its users can do nothing about.
            warnings.simplefilter("ignore", DeprecationWarning)
            content, _metadata = build_fab_from_files({"pyproject.toml": text.encode()})
    except ValueError as error:
        raise UsageError(f"the run cannot be described to Flower: {error}") from None
    return bytes(content)


@contextmanager
def _control(address: str) -> Iterator[ControlHttpClient]:
    client = ControlHttpClient.from_server_address(
        address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedofa")],
    )
    try:
        with client:
            yield client
    except httpx.HTTPStatusError as error:
        flower = FlowerError.from_json(error.response.text)
        reason = flower.message if flower else error.response.text[:200]
        raise RunError(f"the server at {address} refused: {reason}") from None
    except httpx.HTTPError as error:
        raise UnreachableError(f"no answer from the server at {address}: {error}") from None
