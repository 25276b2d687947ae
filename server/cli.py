"""The operator's command line: each command parses, calls one function, prints."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..supernet.errors import FedofaError, UsageError
from .partial_commands import app as partial_app

app = typer.Typer(
    name="fedofa",
    help="Train one supernet on unequal devices; give each device its own model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(partial_app, name="partial")

Config = Annotated[Path, typer.Option(help="The run's configuration (TOML).")]
State = Annotated[Path, typer.Option(help="Folder of the server's state, runs and registry.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result alone, as JSON.")]
ThenSpecialize = Annotated[bool, typer.Option("--specialize", help="Specialize too, after it.")]
ThenEvaluate = Annotated[
    bool, typer.Option("--evaluate", help="Measure each class's best subnet too, after it.")
]
Branch = Annotated[
    str | None, typer.Option(help="One branch of a run that has some; else all in turn.")
]
Seed = Annotated[int | None, typer.Option(help="Replace the configuration's seed.")]
PublicKeyFile = Annotated[
    Path | None, typer.Option("--key", help="Public key (PEM); else ledger.pub beside the ledger.")
]

DEFAULT_CONFIG, DEFAULT_STATE = Path("fedofa.toml"), Path(".fedofa")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = DEFAULT_CONFIG,
) -> None:
    """Write a commented configuration to start from."""
    from .starter import write_starter

    write_starter(path)
    typer.echo(f"wrote {path}")


@app.command()
def serve(
    state: State = DEFAULT_STATE,
    host: Annotated[str, typer.Option(help="Where devices reach Flower.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free port.")] = 9092,
    depot_host: Annotated[str, typer.Option(help="Where devices pull models.")] = "127.0.0.1",
    depot_port: Annotated[int, typer.Option(help="0: any free port.")] = 9093,
    tls_cert: Annotated[Path | None, typer.Option(help="Server certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The depot's token.")] = None,
    insecure: Annotated[bool, typer.Option(help="Allow other addresses without TLS.")] = False,
) -> None:
    """Run the server: Flower for training, the depot for models. Ends with Ctrl-C."""
    from .serve import REGISTRY, Addresses, ServeOptions
    from .serve import serve as run_server

    def ready(addresses: Addresses) -> None:
        typer.echo(f"devices join at  {addresses.devices}")
        typer.echo(f"models pulled at {addresses.depot}")
        typer.echo("ready; Ctrl-C ends it")

    options = ServeOptions(
        state=state,
        registry=state / REGISTRY,
        host=host,
        port=port,
        depot_host=depot_host,
        depot_port=depot_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        token_file=token_file,
        insecure=insecure,
        on_ready=ready,
    )
    raise typer.Exit(run_server(options))


@app.command()
def run(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = False,
    seed: Seed = None,
    then_specialize: ThenSpecialize = False,
    then_evaluate: ThenEvaluate = False,
    as_json: Json = False,
) -> None:
    """Train the supernet on the devices that have joined the server."""
    from .operate import follow_job, outcome, train_job

    after = {"then_specialize": then_specialize, "then_evaluate": then_evaluate}
    job = train_job(state, _config(config, seed), resume=resume, **after)
    found = _shown(lambda show: follow_job(state, job, show), as_json)
    _print(outcome(job, found), as_json)


@app.command()
def specialize(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    branch: Branch = None,
    fleet: Annotated[
        Path | None, typer.Option(help="Devices with budgets of their own (JSON; docs/fleet.md).")
    ] = None,
    artifacts: Annotated[
        int, typer.Option(min=1, max=4096, help="--fleet: share at most so many artifacts.")
    ] = 64,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="--fleet: say who gets what, export nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search, export, verify and publish the best model for each device class, or for a fleet."""
    from .operate import follow_job, results, specialize_job

    if fleet is not None:
        from .fleet_command import FleetOptions, specialize_fleet
        from .fleet_report import as_lines

        options = FleetOptions(fleet, artifacts, plan_only, branch)
        loaded = _config(config, None)
        report = _shown(lambda show: specialize_fleet(state, loaded, options, show), as_json)
        for part in [report] if as_json else as_lines(report):
            _print(part, as_json)
        return
    if plan_only:
        raise UsageError("--plan-only goes with --fleet FILE; docs/fleet.md says what it holds")
    job = specialize_job(state, _config(config, None), branch)
    _shown(lambda show: follow_job(state, job, show), as_json)
    _print(results(job), as_json)


@app.command()
def evaluate(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    branch: Branch = None,
    as_json: Json = False,
) -> None:
    """Search the best subnet for each device class and measure it on the devices; export nothing."""
    from .operate import evaluate_job, follow_job, outcome

    job = evaluate_job(state, _config(config, None), branch)
    found = _shown(lambda show: follow_job(state, job, show), as_json)
    _print(outcome(job, found), as_json)


@app.command()
def simulate(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    backend: Annotated[str, typer.Option(help="local (this process) or ray.")] = "local",
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = False,
    seed: Seed = None,
    then_specialize: ThenSpecialize = False,
    then_evaluate: ThenEvaluate = False,
    as_json: Json = False,
) -> None:
    """Train without a network: the same strategy and client code, simulated devices."""
    from .operate import outcome, simulate_job, train_job

    after = {"then_specialize": then_specialize, "then_evaluate": then_evaluate}
    job = train_job(state, _config(config, seed), resume=resume, **after)
    found = _shown(lambda show: simulate_job(job, backend, show), as_json)
    _print(outcome(job, found), as_json)


@app.command()
def finish(
    device_class: Annotated[str, typer.Option("--class", help="Whose model is too weak.")],
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many more; 5.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a finishing.")] = False,
    simulated: Annotated[
        str | None, typer.Option("--simulate", help="Simulated devices: local or ray.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train one class's subnet some rounds further; publish it where it is better."""
    from .operate import finish_job, follow_job, outcome, simulate_job

    job = finish_job(state, _config(config, None), device_class, rounds=rounds, resume=resume)
    if simulated is None:
        found = _shown(lambda show: follow_job(state, job, show), as_json)
    else:
        backend = simulated
        found = _shown(lambda show: simulate_job(job, backend, show), as_json)
    _print(outcome(job, found), as_json)


@app.command()
def privacy(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """What a private run will spend, with which noise, and what it leaves open."""
    from .privacy.statement import promise

    loaded = _config(config, None)
    if loaded.privacy is None:
        raise UsageError(f"config {config} has no [privacy] table; see docs/privacy.md")
    _print(promise(loaded, loaded.privacy), as_json)


@app.command()
def branches(
    config: Config = DEFAULT_CONFIG, state: State = DEFAULT_STATE, as_json: Json = False
) -> None:
    """How a run with branches divides its work: its coalitions, or its copies' configurations."""
    from .branches.trained import explained
    from .operate import run_folder

    loaded = _config(config, None)
    _print(explained(run_folder(state, loaded), loaded), as_json)


@app.command()
def models(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List what is published."""
    from .registry import Registry
    from .serve import REGISTRY

    rows = [
        {
            "model": listed.model,
            "version": listed.version,
            "device_class": listed.device_class,
            "channels": list(listed.channels),
            "manifest_sha256": listed.manifest_sha256,
        }
        for listed in Registry(state / REGISTRY).listing()
    ]
    _print(rows, as_json)


@app.command()
def verify(
    ledger: Annotated[Path, typer.Option(help="A run's ledger.jsonl, or the run's folder.")],
    key: PublicKeyFile = None,
    head: Annotated[
        str | None, typer.Option(help="A hash that the ledger must hold; shows that none was cut.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a run's ledger with its public key: exit code 1 and the first bad entry, or 0."""
    from .ledger_report import told, verdict

    found = verdict(ledger, key, head)
    if as_json or found["ok"]:
        _print(found if as_json else told(found), as_json)
    else:
        typer.echo(f"error: {found['error']}", err=True)
    if not found["ok"]:
        raise typer.Exit(1)


@app.command()
def contributions(
    ledger: Annotated[Path, typer.Option(help="A run's ledger.jsonl, or the run's folder.")],
    key: PublicKeyFile = None,
    as_json: Json = False,
) -> None:
    """What each device gave to a run, from its ledger, which is checked first."""
    from .ledger_report import as_rows, by_device

    found = by_device(ledger, key)
    _print(found if as_json else as_rows(found), as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Option(help="A run's folder: STATE/runs/NAME.")],
    branch: Annotated[str | None, typer.Option(help="Of a run that has branches: one.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Judge best practices; exit code 1 if one is not met.")
    ] = False,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What fedofa-device run --labels --json printed."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a run came to: models, audit, calibration, devices, cost, and each file's lineage."""
    from .report import command

    found = command.report_of(run, branch, held_out or ())
    if check:
        if as_json:
            _print(found["practices"], as_json)
        else:
            command.show_practices(found)
        raise typer.Exit(1 if command.unmet(found) else 0)
    command.require_whole(found)
    if html is not None:
        command.write_page(found, html)
        typer.echo(f"wrote {html}", err=as_json)
    if as_json:
        _print(found, as_json)
    elif html is None:
        command.show(found)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Split, initial weights, all draws.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole way on one machine, with real processes: train, specialize, pull, measure."""
    from .demo import run_demo

    report = run_demo(out, seed, quiet=as_json)
    if as_json:
        _print(report, as_json)


@app.command()
def cost(
    space: Annotated[str, typer.Option(help="A search space's preset name.")],
    arch: Annotated[str | None, typer.Option(help="JSON, smallest, or largest.")] = None,
    archs: Annotated[Path | None, typer.Option(help="A file with one JSON a line.")] = None,
    width: Annotated[float | None, typer.Option(help="Width multiplier (ofa-mbv3).")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Each layer's share too.")] = False,
    as_json: Json = False,
) -> None:
    """MACs, parameters, memory and file sizes of architectures, without building them."""
    from .costs import Priced, price, price_file

    if (arch is None) == (archs is None):
        raise UsageError("give either --arch (JSON, smallest, largest) or --archs FILE.jsonl")
    priced = Priced(space, width)
    if arch is not None:
        _print(price(priced, arch, layers=layers), as_json)
    elif archs is not None:
        for found in price_file(priced, archs):
            if as_json:
                typer.echo(json.dumps(found))
            else:
                typer.echo(
                    f"{found['macs']:,} MACs, {found['params']:,} parameters, "
                    f"{found['peak_activation_bytes']:,} bytes of activations"
                )


@app.command()
def probes(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    config: Annotated[Path | None, typer.Option(help="The run whose space it is.")] = None,
    space: Annotated[str | None, typer.Option(help="Or a search space's preset name.")] = None,
    subnets: Annotated[int, typer.Option(min=16, max=512, help="How many subnets.")] = 40,
    layers: Annotated[int, typer.Option(min=0, max=512, help="At most so many layers alone.")] = 0,
    as_json: Json = False,
) -> None:
    """Export networks for devices to time: what their latency is predicted from."""
    from .probe_sets import make

    chosen = _config(config, None) if config is not None else None
    _print(make(chosen, space, subnets, layers, out), as_json)


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="static, views, merge, ..., all; or accuracy, search, robust, codec, "
            "heterogeneity, bits, ladders, finish."
        ),
    ] = "all",
    data: Annotated[str, typer.Option(help="accuracy: fashion, cifar10, har.")] = "fashion",
    seeds: Annotated[
        int | None, typer.Option(help="accuracy, search and fleets: how many.")
    ] = None,
    recipes: Annotated[str, typer.Option(help="accuracy: names, with commas between.")] = "",
    jobs: Annotated[
        int, typer.Option(help="accuracy, search, fleets: processes side by side.")
    ] = 2,
    results: Annotated[Path, typer.Option(help="Folder of the results of long ones.")] = Path(
        "benchmarks/results"
    ),
    pictures: Annotated[
        Path | None, typer.Option(help="accuracy: folder of pictures; else beside the results.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine (subnets, merging), or accuracy: of recipes, or of unequal fleets."""
    from importlib import import_module

    # By name: benchmarks stand beside the layers, nothing may depend on them.
    if name in ("robust", "codec", "heterogeneity"):
        import_module("fedofa.benchmarks.fleet_trials").command(name, seeds, jobs, results)
        return
    if name in ("bits", "ladders", "finish"):
        module = {"bits": "bits", "ladders": "bits_ladders", "finish": "finish"}[name]
        import_module(f"fedofa.benchmarks.{module}").command(results)
        return
    if name == "search":
        import_module("fedofa.benchmarks.search").command(seeds, jobs, results)
        return
    if name == "accuracy":
        import_module("fedofa.benchmarks.accuracy").command(
            data,
            seeds,
            [r.strip() for r in recipes.split(",") if r.strip()],
            jobs,
            results,
            pictures or results,
        )
        return
    import_module("fedofa.benchmarks.run").main(name, as_json)


def _config(path: Path, seed: int | None) -> Any:
    from .config import read_config

    found = read_config(path)
    return found if seed is None else found.model_copy(update={"seed": seed})


def _shown(work: Callable[[Callable[[Any], None]], Any], quiet: bool) -> Any:
    """Do the work with its events shown as they come, or silently."""
    if quiet:
        return work(lambda _event: None)
    from rich.console import Console

    from .progress import View

    with View(Console(stderr=True)) as view:
        return work(view)


def _print(value: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=1))
        return
    from .tables import show

    show(value)


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(143)


def main() -> None:
    """Console entry: an error is one or two lines on standard error, and its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except FedofaError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
