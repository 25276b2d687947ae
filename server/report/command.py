"""What `fedofa report` does: read a run folder, check its lineage, and give the report or write its page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ...protos import durable
from ...supernet.errors import ArtifactError, UsageError
from ..tables import table
from . import content, facts, held_out, others
from .columns import TABLES
from .content import Report

ON_TERMINALS = (
    "run",
    "models",
    "fleets",
    "artifacts",
    "finished",
    "audit",
    "held_out",
    "calibration",
    "devices",
    "costs",
)
WIDTH = 120


def report_of(run: Path, branch: str | None = None, measured: Sequence[Path] = ()) -> Report:
    """The report of a specialized run; broken links of its lineage are in `broken`.

    UsageError for a folder without a run, one that is not specialized yet, or held-out measurements of
    other models; ArtifactError for a file that is missing, half-written or not what was written.
    """
    found = facts.read(facts.run_folder(run, branch))
    beside = others.read(found)
    return content.build(found, held_out.read(measured, found, beside.manifests), beside)


def require_whole(report: Report) -> None:
    """ArtifactError with each broken link: figures of changed files are not shown."""
    broken = report["broken"]
    if broken:
        raise ArtifactError("\n".join([f"{len(broken)} broken links in the lineage:", *broken]))


def write_page(report: Report, path: Path) -> None:
    """Write the page whole or not at all; UsageError where it cannot be."""
    from .page import render  # jinja2 is for the page alone

    page = render(report).encode()
    try:
        durable.write(path.resolve(), page)
    except OSError as error:
        raise UsageError(f"--html {path}: {error.strerror}; name a file in a folder") from None


def show(report: Report) -> None:
    """The report's tables on a terminal, and where the rest is."""
    console = Console()
    console.width = max(console.width, WIDTH)
    for name in ON_TERMINALS:
        if report[name]:
            console.print(table(_narrow(name, report), TABLES[name].caption))
    judged = [row["state"] for row in report["practices"]]
    lines = [
        f"lineage: {len(report['lineage'])} files lead back to rounds and devices, every link checked",
        f"best practices: {judged.count('met')} met, {judged.count('not met')} not met (--check)",
        *report["lineage_notes"],
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def show_practices(report: Report) -> None:
    """Each best practice with its evidence and what to do."""
    console = Console()
    for row in report["practices"]:
        lines = [
            f"{row['state']:>14}  {row['item']}: {row['practice']}",
            f"{'':16}{row['evidence']}",
        ]
        lines += [f"{'':16}-> {row['advice']}"] if row["advice"] else []
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def unmet(report: Report) -> list[str]:
    """The items that are not met."""
    return [row["item"] for row in report["practices"] if row["state"] == "not met"]


def _narrow(name: str, report: Report) -> list[dict[str, Any]]:
    columns = [column for column in TABLES[name].columns if column.narrow]
    return [{column.heading: column.text(row) for column in columns} for row in report[name]]
