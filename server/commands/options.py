"""What commands share: options, the configuration, and how results and events are shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..config import RunConfig

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

DEFAULT_CONFIG, DEFAULT_STATE = Path("fedofa.toml"), Path(".fedofa")


def config_of(path: Path, seed: int | None = None) -> "RunConfig":
    """The configuration of a file, with another seed where one is given."""
    from ..config import read_config

    found = read_config(path)
    return found if seed is None else found.model_copy(update={"seed": seed})


def shown(work: Callable[[Callable[[Any], None]], Any], quiet: bool) -> Any:
    """Do the work with its events shown as they come, or silently."""
    if quiet:
        return work(lambda _event: None)
    from rich.console import Console

    from ..progress import View

    with View(Console(stderr=True)) as view:
        return work(view)


def put(value: Any, as_json: bool) -> None:
    """Print a result: as JSON, or as a table or lines."""
    if as_json:
        typer.echo(json.dumps(value, indent=1))
        return
    from ..tables import show

    show(value)
