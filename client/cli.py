"""`fedofa-device`: the commands of a device. Each parses, calls one function, prints."""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..protos import durable
from ..supernet.errors import FedofaError, UsageError

app = typer.Typer(
    name="fedofa-device",
    help="Take part in training with a device's own data; get its model and run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT_STORE, DEFAULT_MEMORY = Path("~/.fedofa/models"), Path("~/.fedofa/memory")

Store = Annotated[Path, typer.Option("--store", help="Folder for models.", envvar="FEDOFA_STORE")]
DeviceClass = Annotated[
    str | None,
    typer.Option("--device-class", metavar="NAME", help="The class this device belongs to."),
]
OwnName = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="In place of a class: the device's own name."),
]
Authorities = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="PEM file of authorities to trust: TLS."),
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the depot's token.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow no TLS.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Data = Annotated[
    str, typer.Option("--data", metavar="MODULE:FUNCTION", help="The function that loads data.")
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder given to the data function.")]
ClientIndex = Annotated[int, typer.Option(help="This device's place among the clients, from 0.")]
Clients = Annotated[int, typer.Option(help="How many clients share the data set.")]
DataArg = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="More for the data function.")
]


@app.command()
def pull(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The depot.")],
    device_class: DeviceClass = None,
    store: Store = DEFAULT_STORE,
    kind: Annotated[
        str | None,
        typer.Option(help="A kind of file, as tflite_int8; else the first that can run here."),
    ] = None,
    channel: Annotated[str, typer.Option(help="Which releases to follow.")] = "stable",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="This device's own name. Without a class: what its fleet's plan gives it.",
        ),
    ] = None,
    ca: Authorities = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    force: Annotated[
        bool, typer.Option("--force", help="Test a model again that failed too often.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Get the class's or the device's own model, check it, test it, put it in use."""
    from ..protos.depot import read_token
    from . import reports
    from .link import Address
    from .pull import PullRequest
    from .pull import pull as pull_model
    from .store import as_kind
    from .stores import open_store

    token = read_token(token_file) if token_file else None
    result = pull_model(
        Address(server, ca, token, insecure),
        # With both, the name is only told to the depot.
        open_store(store.expanduser(), device_class, None if device_class else device),
        PullRequest(as_kind(kind), channel, device or "", force),
    )
    _show(reports.of_pull(result), as_json)


@app.command()
def run(
    inputs: Annotated[
        Path, typer.Option("--input", metavar="FILE.npy", help="Raw inputs, the batch first.")
    ],
    device_class: DeviceClass = None,
    device: OwnName = None,
    store: Store = DEFAULT_STORE,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Class indices, for the accuracy.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the model in use on a batch: accuracy or predictions, and latency."""
    from . import reports
    from .device_model import measure, read_inputs, read_labels
    from .stores import open_store

    model = open_store(store.expanduser(), device_class, device).require_current()
    x = read_inputs(inputs, model.manifest)
    y = read_labels(labels, len(x), len(model.manifest.classes)) if labels else None
    _show(reports.of_run(model, measure(model, x, y)), as_json)


@app.command()
def personalize(
    data: Data,
    device_class: DeviceClass = None,
    device: OwnName = None,
    data_root: DataRoot = None,
    client: ClientIndex = 0,
    clients: Clients = 1,
    data_arg: DataArg = None,
    store: Store = DEFAULT_STORE,
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The depot: the first time for each version."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="taps (default): layers for which it pays; norm: gains and biases; head; full."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the examples; else 30.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; else 0.01.")] = None,
    penalty: Annotated[
        float | None, typer.Option(help="taps: what a changed layer costs; else 1.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put these changes in again instead of training."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Use it also where it is worse, or nobody can tell.")
    ] = False,
    ca: Authorities = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Train the model in use further on this device's own data, which stays here, for itself alone."""
    from ..protos.data import client_data
    from ..protos.depot import read_token
    from . import reports
    from .enrol import source
    from .link import Address
    from .personal.personalize import Source
    from .personal.personalize import personalize as personalized
    from .personal.training import Schedule
    from .stores import open_store

    asked = {"method": method, "epochs": epochs, "lr": lr, "penalty": penalty}
    given = {name: value for name, value in asked.items() if value is not None}
    if adapter is not None and given:
        raise UsageError(f"--adapter trains nothing: leave out --{next(iter(given))}")
    schedule = Schedule(**given)  # type: ignore[arg-type]
    token = read_token(token_file) if token_file else None
    address = Address(server, ca, token, insecure) if server else None
    found = personalized(
        open_store(store.expanduser(), device_class, device),
        client_data(source(data, data_root, client, clients, data_arg or [])),
        schedule,
        Source(address, adapter),
        force=force,
        tell=lambda epoch, loss: typer.echo(f"epoch {epoch + 1}: loss {loss:.4f}", err=True),
    )
    _show(reports.of_personalized(found), as_json)


@app.command()
def status(
    store: Store = DEFAULT_STORE,
    device_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="One class; else all in the store.")
    ] = None,
    device: OwnName = None,
    as_json: Json = False,
) -> None:
    """Show the models in the store: in use, previous, refused."""
    from . import reports
    from .stores import open_stores

    stores = open_stores(store.expanduser(), device_class, device)
    found = [reports.of_store(one) for one in stores]
    _show({"store": str(store), "models": found}, as_json)


@app.command()
def rollback(
    device_class: DeviceClass = None,
    device: OwnName = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Return to the model that was in use before."""
    from . import reports
    from .stores import open_store

    models = open_store(store.expanduser(), device_class, device)
    with models.lock():
        _show(reports.of_model(models.rollback()), as_json)


@app.command()
def join(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server's devices address.")],
    data: Data,
    device_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="The class this device belongs to.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the device declares of itself (TOML).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its own name; else the host's.")] = None,
    data_root: DataRoot = None,
    client: ClientIndex = 0,
    clients: Clients = 1,
    data_arg: DataArg = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for training.")] = 1,
    ca: Authorities = None,
    insecure: Insecure = False,
    memory: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for what it remembers between rounds.")
    ] = DEFAULT_MEMORY,
    trust: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What it asks of secure sums, and whose keys (TOML)."),
    ] = None,
) -> None:
    """Take part in training with this device's own data, until Ctrl-C."""
    from .enrol import Reach, describe, source, take_part, trusting

    where = source(data, data_root, client, clients, data_arg or [])
    device = trusting(describe(name, device_class, profile, where, threads, memory), trust)

    def joined(_node: int) -> None:
        typer.echo(f"{device.name} joined {server}")
        sys.stdout.flush()

    raise typer.Exit(take_part(device, Reach(server, ca, insecure), joined))


@app.command()
def data(
    data: Data,
    data_root: DataRoot = None,
    client: ClientIndex = 0,
    clients: Clients = 1,
    data_arg: DataArg = None,
    write: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the examples as .npy files.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a data function: what it gives for one client; or write that to files."""
    from .enrol import source, summary, write_parts

    where = source(data, data_root, client, clients, data_arg or [])
    _show(write_parts(where, write) if write else summary(where), as_json)


@app.command()
def profile(
    space: Annotated[str, typer.Option(help="Preset whose subnets are timed.")] = "digits",
    probes: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Time the probes in this folder instead.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="With probes: kinds of files; else all that can run.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="With probes: threads of the runtime.")] = 1,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="With probes: the file to write.")
    ] = Path("measurements.json"),
    as_json: Json = False,
) -> None:
    """Measure this device; the lines can be kept as a profile file (TOML).

    With --probes: latency, loading time and memory of exported networks, for the profile file's
    `measurements`.
    """
    if probes is not None:
        from . import reports
        from .probing import measure
        from .store import as_kind

        kinds = [known for one in kind or [] if (known := as_kind(one))]
        found = measure(probes, kinds, threads, lambda text: typer.echo(text, err=True))
        durable.write(out, found.model_dump_json(indent=1).encode())
        _show(reports.of_measurements(found, out), as_json)
        return
    from .profile import measured

    values = measured(space)
    if as_json:
        _show(values, as_json)
        return
    for name, value in values.items():
        typer.echo(f"{name} = {value}")


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
        return
    for name, value in report.items():
        if isinstance(value, dict):
            parts = {key: part for key, part in value.items() if part is not None}
            value = ", ".join(f"{key} {part}" for key, part in parts.items())
        if value not in (None, "") and name != "models":
            typer.echo(f"{name.replace('_', ' ')}: {value}")
    for model in report.get("models", []):
        typer.echo("")
        _show(model, as_json)


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(143)


def main() -> None:
    """Entry point: prints our errors in a line and ends with their exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except FedofaError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
