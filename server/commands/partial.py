"""`fedofa partial`: merge partial sums that aggregators sent on, and say what is in one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json, put

app = typer.Typer(no_args_is_help=True, help="Merge partial sums of updates, or look into one.")


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Partial sums of one run and round.")],
    out: Annotated[Path, typer.Option(help="File to write; must not exist.")],
    as_json: Json = False,
) -> None:
    """Add up partial sums, each update once; exit code 2 where they do not go together."""
    from ..partials import merge_files

    _print(merge_files(files, out), as_json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A partial sum.")], as_json: Json = False
) -> None:
    """Whose updates a partial sum holds, how many values they trained, and their weight."""
    from ..aggregation.partial_file import read
    from ..partials import described

    _print(described(read(file)), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    from ..partials import as_lines

    put(found if as_json else as_lines(found), as_json)
