"""A report's page, taken apart by an HTML parser."""

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "circle", "rect", "path", "line", "polyline"}


class Page(HTMLParser):
    """Tables by name (cells by key: text, and the number behind it), elements, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._cell: dict[str, Any] | None = None
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(str(given["data-table"]), [])
        if tag == "tr":
            self._rows.append({})
        if "data-key" in given:
            self._cell = self._rows[-1][str(given["data-key"])] = {"text": "", "value": None}
        if tag == "data" and self._cell is not None:
            self._cell["value"] = given["value"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data
        if self._cell is not None:
            self._cell["text"] += data
