"""Commands beside a run: a first configuration, the server, the demo, costs, probes, benchmarks."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ...supernet.errors import UsageError
from .options import DEFAULT_CONFIG, DEFAULT_STATE, Json, State, config_of, put


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = DEFAULT_CONFIG,
) -> None:
    """Write a commented configuration to start from."""
    from ..starter import write_starter

    write_starter(path)
    typer.echo(f"wrote {path}")


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
    from ..serve import REGISTRY, Addresses, ServeOptions
    from ..serve import serve as run_server

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


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Split, initial weights, all draws.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole way on one machine, with real processes: train, specialize, pull, measure."""
    from ..demo import run_demo

    report = run_demo(out, seed, quiet=as_json)
    if as_json:
        put(report, as_json)


def cost(
    space: Annotated[str, typer.Option(help="A search space's preset name.")],
    arch: Annotated[str | None, typer.Option(help="JSON, smallest, or largest.")] = None,
    archs: Annotated[Path | None, typer.Option(help="A file with one JSON a line.")] = None,
    width: Annotated[float | None, typer.Option(help="Width multiplier (ofa-mbv3).")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Each layer's share too.")] = False,
    as_json: Json = False,
) -> None:
    """MACs, parameters, memory and file sizes of architectures, without building them."""
    from ..costs import Priced, price, price_file

    if (arch is None) == (archs is None):
        raise UsageError("give either --arch (JSON, smallest, largest) or --archs FILE.jsonl")
    priced = Priced(space, width)
    if arch is not None:
        put(price(priced, arch, layers=layers), as_json)
    elif archs is not None:
        for found in price_file(priced, archs):
            if as_json:
                typer.echo(json.dumps(found))
            else:
                typer.echo(
                    f"{found['macs']:,} MACs, {found['params']:,} parameters, "
                    f"{found['peak_activation_bytes']:,} bytes of activations"
                )


def probes(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    config: Annotated[Path | None, typer.Option(help="The run whose space it is.")] = None,
    space: Annotated[str | None, typer.Option(help="Or a search space's preset name.")] = None,
    subnets: Annotated[int, typer.Option(min=16, max=512, help="How many subnets.")] = 40,
    layers: Annotated[int, typer.Option(min=0, max=512, help="At most so many layers alone.")] = 0,
    as_json: Json = False,
) -> None:
    """Export networks for devices to time: what their latency is predicted from."""
    from ..probe_sets import make

    chosen = config_of(config) if config is not None else None
    put(make(chosen, space, subnets, layers, out), as_json)


def latency(
    probes: Annotated[Path, typer.Option(help="The folder that `fedofa probes` made.")],
    measurements: Annotated[Path, typer.Option(help="What a device timed of them.")],
    as_json: Json = False,
) -> None:
    """How well a device's latency is predicted for subnets that it did not time."""
    from ..latencies import predicted

    put(predicted(probes, measurements), as_json)


BITS = {"bits": "bits", "sampled-bits": "bits_sampled", "ladders": "bits_ladders"}
"""Benchmarks of few bits and their modules."""


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="static, views, merge, ..., all; or accuracy, search, robust, codec, "
            "heterogeneity, bits, sampled-bits, ladders, finish, personal."
        ),
    ] = "all",
    data: Annotated[str, typer.Option(help="accuracy: fashion, cifar10, har.")] = "fashion",
    seeds: Annotated[
        int | None, typer.Option(help="accuracy, search, fleets, finish, personal: how many.")
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
    if name in BITS:
        import_module(f"fedofa.benchmarks.{BITS[name]}").command(results)
        return
    if name in ("finish", "personal"):
        import_module(f"fedofa.benchmarks.{name}").command(results, seeds)
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
