"""`fedofa partial`: merge partial sums that aggregators sent on, and say what is in one."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Merge partial sums of updates, or look into one.")

Json = Annotated[bool, typer.Option("--json", help="Print the result alone, as JSON.")]


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Partial sums of one run and round.")],
    out: Annotated[Path, typer.Option(help="File to write; must not exist.")],
    as_json: Json = False,
) -> None:
    """Add up partial sums, each update once; exit code 2 where they do not go together."""
    from .partials import merge_files

    _print(merge_files(files, out), as_json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A partial sum.")], as_json: Json = False
) -> None:
    """Whose updates a partial sum holds, how many values they trained, and their weight."""
    from .aggregation.partial_file import read
    from .partials import described

    _print(described(read(file)), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from .partials import as_lines
    from .tables import show as print_lines

    print_lines(as_lines(found))
