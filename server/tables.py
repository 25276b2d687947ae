"""Results as tables on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..protos.manifest import INT4S, INTS


def show(value: Any) -> None:
    """A list of records as a table, one record as lines; a list of phrases one a line.

    Records that do not fit side by side into the terminal's width come one below the other.
    """
    console = Console()
    if isinstance(value, Mapping):
        _show_lines(console, value)
        return
    rows = [_flat(row) for row in value]
    if not rows:
        console.print("nothing there yet")
        return
    found = table(rows)
    if Measurement.get(console, console.options.update(max_width=10_000), found).maximum <= (
        console.width
    ):
        console.print(found)
        return
    for place, row in enumerate(rows):
        if place:
            console.print()
        _show_lines(console, row)


def _show_lines(console: Console, record: Mapping[str, Any]) -> None:
    for key, item in _lines(record):
        if isinstance(item, list) and any(" " in str(one) for one in item):
            console.print(f"{key}:", highlight=False, markup=False, soft_wrap=True)
            for one in item:
                console.print(f"  - {_text(one)}", highlight=False, markup=False, soft_wrap=True)
            continue
        console.print(f"{key}: {_text(item)}", highlight=False, markup=False, soft_wrap=True)


def table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """One column per key of the first record; what a cell says is never markup."""
    found = Table(title=title or None, title_justify="left")
    for key in rows[0]:
        number = isinstance(rows[0][key], int | float) and not isinstance(rows[0][key], bool)
        found.add_column(Text(str(key)), justify="right" if number else "left")
    for row in rows:
        found.add_row(*(Text(_text(row.get(key, ""))) for key in rows[0]))
    return found


def _lines(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """A record's values; those of a record inside it have its name before theirs."""
    for key, item in record.items():
        if isinstance(item, Mapping):
            yield from _lines(item, f"{above}{key}.")
        else:
            yield above + key, item


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The record's plain values; nested ones stay in the JSON form."""
    plain = (str, int, float, bool)
    listed = {
        key: ", ".join(_text(one) for one in item)
        for key, item in row.items()
        if isinstance(item, list) and all(isinstance(one, plain) for one in item)
    }
    return (
        {key: item for key, item in row.items() if isinstance(item, plain)}
        | listed
        | {
            f"{key}.{inner}": item[inner]
            for key, item in row.items()
            if isinstance(item, Mapping)
            for inner in ("macs", "params", "pytorch", *INTS.values(), *INT4S.values())
            if inner in item and key in ("cost", "validation")
        }
    )


def _text(item: Any) -> str:
    """A value as text that any terminal can take: half of a surrogate pair stands escaped."""
    return _plain(item).encode("utf-8", "backslashreplace").decode()


def _plain(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, int) and not isinstance(item, bool):
        return f"{item:,}"
    return ", ".join(map(str, item)) if isinstance(item, list) else str(item)
