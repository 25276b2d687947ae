"""Results on a terminal: a table where it fits, else each record's values below each other."""

import pytest
from fedofa.server.tables import show

ROWS = [
    {"class": "big", "accuracy": 0.91234, "cost": {"macs": 185_792}, "candidates": [{"a": 1}]},
    {"class": "small", "accuracy": 0.5, "cost": {"macs": 55_104}, "candidates": [{"a": 2}]},
]


def test_records_that_fit_are_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(ROWS)
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if "class" in line]
    assert all(name in head for name in ("accuracy", "cost.macs"))
    assert any("big" in line and "0.9123" in line and "185,792" in line for line in lines)


def test_records_that_do_not_fit_come_below_each_other_and_nothing_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    path = "/a/folder/of/a/model/that/is/longer/than/the/terminal/is/wide/manifest.json"
    show([{**row, "manifest": path} for row in ROWS])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "class: big", "accuracy: 0.9123", f"manifest: {path}", "cost.macs: 185,792", "",
        "class: small", "accuracy: 0.5", f"manifest: {path}", "cost.macs: 55,104",
    ]  # fmt: skip


def test_strangers_words_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show([{"runtime": "x[/x]", "[/red]": "[red]y"}])
    out = capsys.readouterr().out
    assert all(word in out for word in ("x[/x]", "[/red]", "[red]y"))
