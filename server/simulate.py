"""`fedofa simulate`: the same job, strategy and ClientApp without a network."""

import importlib
import json
from pathlib import Path

from flwr.clientapp import ClientApp

from ..protos.data import client_data
from ..protos.device import FLEET_KEY, PARTITION_KEY, DataSource, Device
from ..supernet.errors import UsageError
from .app import app as server_app
from .config import RunConfig, parse_config
from .jobs import JOB_KEY, Job, run_job
from .local_grid import LocalGrid

# By name, as Flower itself finds them: the server's code never imports the client's.
CLIENT_APP = "fedofa.client.app:app"
BACKENDS = ("local", "ray")
MEMORY = "memory"


def devices(config: RunConfig, folder: Path) -> list[Device]:
    """The simulated devices, class by class; UsageError for a class that gets none.

    What they remember from round to round lies in the run folder.
    """
    wanted = config.simulation.clients
    for name in config.classes:
        if wanted.get(name, 0) < 1:
            raise UsageError(
                f"simulation.clients: class {name!r} has no client; give it at least 1, "
                "or remove it from [classes]"
            )
    for name in wanted:
        if name not in config.classes:
            raise UsageError(
                f"simulation.clients: class {name!r} is unknown; known: {', '.join(config.classes)}"
            )
    owners = [(name, number) for name in config.classes for number in range(wanted[name])]
    source = config.simulation
    return [
        Device(
            name=f"{owner}-{number}",
            device_class=owner,
            source=DataSource(source.data, source.data_root, place, len(owners), source.arguments),
            profile=source.profile,
            memory=str(folder / MEMORY / f"{owner}-{number}"),
        )
        for place, (owner, number) in enumerate(owners)
    ]


def simulate(job: Job, backend: str = "local") -> None:
    """Do a job with simulated devices, in this process or on Flower's simulation engine (Ray)."""
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend!r}; allowed: {', '.join(BACKENDS)}")
    fleet = devices(parse_config(job.config), Path(job.folder))
    # Wrong data would only show as a device that is left out; here it is the caller's own.
    client_data(fleet[0].source)
    run_config = {FLEET_KEY: json.dumps([device.to_json() for device in fleet])}
    if backend == "ray":
        from .simulate_ray import run_on_ray  # Ray is an extra

        path = job.write()
        try:
            run_on_ray(server_app, _client_app(), len(fleet), {**run_config, JOB_KEY: str(path)})
        finally:
            path.unlink(missing_ok=True)
        return
    nodes = [{PARTITION_KEY: place} for place in range(len(fleet))]
    run_job(job, LocalGrid(_client_app(), nodes, run_config))


def _client_app() -> ClientApp:
    module, _, attribute = CLIENT_APP.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, ClientApp):
        raise UsageError(f"{CLIENT_APP} is not a ClientApp")
    return found
