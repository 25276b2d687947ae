"""The report as one self-contained page: inline style and pictures, no script, nothing from a network."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import charts
from .columns import TABLES
from .content import Report
from .forms import NUMBERS

TEMPLATE = "page.html"
HEADINGS = (
    ("run", "The run"),
    ("pareto", "Pareto fronts"),
    ("models", "Models"),
    ("fleets", "Fleets"),
    ("finished", "Finished classes"),
    ("audit", "Audit"),
    ("held_out", "Held-out examples"),
    ("calibration", "Calibration"),
    ("devices", "Devices"),
    ("cost", "Cost"),
    ("practices", "Best practices"),
    ("chain", "Lineage"),
)
OF_SOME = ("fleets", "artifacts", "finished")
"""Sections of what not every run has: left out where there is none."""
ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "held_out": "Not measured: give files of fedofa-device run --json with --held-out.",
        "calibration": "Not measured: set export.calibration = true and specialize again.",
        "rounds": "No event log of training.",
        "evaluations": "No cost of measuring is noted in the event log.",
        "anytime": "No evaluation is noted.",
        "costs": "Nothing is noted.",
    }
)
"""What stands in place of a table without rows."""


def render(report: Report) -> str:
    """The page's HTML; whatever the report holds is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    jinja = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    names = {"circle": "●", "square": "■", "diamond": "◆", "triangle": "▲"}
    return jinja.get_template(TEMPLATE).render(
        report=report,
        tables=TABLES,
        points=TABLES["fronts"],
        numbers=NUMBERS,
        absent={**dict.fromkeys(TABLES, "Nothing is noted."), **ABSENT},
        headings=[one for one in HEADINGS if one[0] not in OF_SOME or report[one[0]]],
        charts=charts.charts(report["fronts"]),
        shapes=[names[shape] for shape in charts.SHAPES],
        width=charts.WIDTH,
        height=charts.HEIGHT,
        left=charts.LEFT,
        right=charts.RIGHT,
        top=charts.TOP,
        bottom=charts.BOTTOM,
    )
