"""The operator's command line: its commands in the order of the help, and how it ends."""

import signal
import sys
from typing import NoReturn

import typer

from ..supernet.errors import FedofaError
from .commands import looks, partial, tools, work

app = typer.Typer(
    name="fedofa",
    help="Train one supernet on unequal devices; give each device its own model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    tools.init,
    tools.serve,
    work.run,
    work.specialize,
    work.evaluate,
    work.finish,
    work.simulate,
    looks.models,
    looks.report,
    looks.branches,
    looks.privacy,
    looks.verify,
    looks.contributions,
    tools.demo,
    tools.cost,
    tools.probes,
    tools.latency,
    tools.bench,
):
    app.command()(command)
app.add_typer(partial.app, name="partial")


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
