"""How a value of the report is spelt, and what a table of such values is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

NOTHING = "–"


def _when(value: float) -> str:
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _bounds(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {bound:,}" for key, bound in value.items()) or "none"


FORMS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "text": str,
        "count": lambda value: f"{value:,}",
        "percent": lambda value: f"{100 * value:.1f} %",
        "points": lambda value: f"{100 * value:+.1f}",
        "signed": lambda value: f"{value:+.1f} %",
        "number": lambda value: f"{value:.4g}",
        "seconds": lambda value: f"{value:,.1f}",
        "list": lambda value: ", ".join(map(str, value)),
        "bounds": _bounds,
        "when": _when,
        "digest": str,
        "flag": lambda value: "yes" if value else "no",
    }
)
"""How a value is spelt, by the name of its form."""
NUMBERS = ("count", "percent", "points", "signed", "number", "seconds")


@dataclass(frozen=True, slots=True)
class Column:
    """One value of a row. A `narrow` one is shown on terminals too."""

    key: str
    heading: str
    form: str = "text"
    narrow: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """The row's value as people read it."""
        value = row[self.key]
        return NOTHING if value is None else FORMS[self.form](value)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report: its caption, what must be known to read it, its columns."""

    caption: str
    note: str
    columns: tuple[Column, ...]


def column(key: str, heading: str, form: str = "text") -> Column:
    """One that is shown on the page alone."""
    return Column(key, heading, form)


def narrow(key: str, heading: str, form: str = "text") -> Column:
    """One that is shown on terminals too."""
    return Column(key, heading, form, narrow=True)
