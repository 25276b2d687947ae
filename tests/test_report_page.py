"""The report's page: every value is the record's own, a stranger's words are only words."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedofa.server.demo_report import write_page
from fedofa.server.report import charts, command, content, held_out, lineage
from fedofa.server.report.columns import TABLES
from fedofa.server.report.forms import NOTHING, NUMBERS, Column
from fedofa.server.report.page import OF_SOME, render
from fedofa.supernet.errors import ArtifactError
from html_page import Page
from reported import copied, facts_of, held_out_of, results_again


@pytest.fixture(scope="module")
def report(reported_run: Path) -> content.Report:
    facts = facts_of(reported_run)
    return content.build(facts, held_out_of(reported_run))


def test_every_cell_of_the_page_is_the_records_own_value(report: content.Report) -> None:
    page = Page(render(report))
    there = {name: table for name, table in TABLES.items() if name not in OF_SOME}
    assert page.tables.keys() == there.keys()
    for name, table in there.items():
        shown = [row for row in page.tables[name] if row]
        assert len(shown) == len(report[name]) > 0
        for cells, row in zip(shown, report[name], strict=True):
            assert list(cells) == [column.key for column in table.columns]
            for column in table.columns:
                cell, value = cells[column.key], row[column.key]
                if value is None:
                    assert (cell["text"], cell["value"]) == (NOTHING, None)
                    continue
                assert cell["text"] == column.text(row)
                if column.form in NUMBERS:
                    assert float(cell["value"]) == float(value)


def test_a_spelt_number_is_the_number_to_its_last_digit() -> None:
    row = {"a": 1234567, "b": 0.98765, "c": -1.26, "d": 0.0123456, "e": None}
    spelt = {"a": "1,234,567", "b": "98.8 %", "c": "-1.3 %", "d": "0.01235"}
    forms = {"a": "count", "b": "percent", "c": "signed", "d": "number"}
    for key, form in forms.items():
        assert Column(key, key, form).text(row) == spelt[key]


def built(facts: Any) -> content.Report:
    """The report of facts that are no whole run's: figures, as if no link were broken."""
    with pytest.MonkeyPatch.context() as patch:
        trace = lineage.trace
        patch.setattr(lineage, "trace", lambda *known: replace(trace(*known), broken=()))
        return content.build(facts)


@pytest.mark.parametrize(("low", "claim"), [(0.01, "searched"), (0.0, content.NO_CLAIM),
                                            (-3.0, content.NO_CLAIM), (None, content.NO_CLAIM)])  # fmt: skip
def test_searched_is_claimed_only_above_zero_whatever_the_row_claims(
    low: float | None, claim: str, reported_run: Path
) -> None:
    facts = facts_of(reported_run)
    row: Any = json.loads(json.dumps(facts.results[0]))
    row["audit"]["improvement"]["low"], row["searched"] = low, True
    found = built(replace(facts, results=(row,)))
    assert found["audit"][0]["claim"] == claim
    page = Page(render(found))
    assert page.tables["audit"][1]["claim"]["text"] == claim


def test_a_front_is_what_nothing_beats_and_its_points_lie_where_their_numbers_say(
    report: content.Report,
) -> None:
    drawn = charts.charts(report["fronts"])
    assert [chart.name for chart in drawn] == [
        "subnets", "ONNX Runtime", "onnxruntime, held-out examples",
    ]  # fmt: skip
    for chart in drawn:
        rows = [mark.row for mark in chart.marks]
        for row in rows:
            beaten = any(
                (o["x"] <= row["x"] and o["accuracy"] > row["accuracy"])
                or (o["x"] < row["x"] and o["accuracy"] >= row["accuracy"])
                for o in rows
            )
            assert row["on_front"] == (not beaten)
        for a in chart.marks:
            for b in chart.marks:
                if a.row["x"] < b.row["x"]:
                    assert a.x < b.x
                if a.row["accuracy"] < b.row["accuracy"]:
                    assert a.y > b.y
        inside = [mark for mark in chart.marks if not 0 <= mark.x <= charts.WIDTH]
        assert inside == []
        assert len(chart.x_ticks) >= 2 <= len(chart.y_ticks)


def test_an_axis_gives_values_their_places() -> None:
    axis = charts.Axis(10, 1000, 0, 100, log=True)
    assert [axis.place(value) for value in (10, 100, 1000)] == pytest.approx([0, 50, 100])
    axis = charts.Axis(0.5, 1.0, 200, 0, log=False)
    assert [axis.place(value) for value in (0.5, 0.75, 1.0)] == pytest.approx([200, 100, 0])


HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>\'"&'


def test_hostile_names_are_only_text(reported_run: Path) -> None:
    facts = facts_of(reported_run)
    card = {**facts.joined["dev-0"], "device": HOSTILE, "device_class": HOSTILE}
    row: Any = {**facts.results[0], "class": HOSTILE, "method": HOSTILE}
    found = built(replace(facts, joined={HOSTILE: card}, results=(row,)))
    found["lineage"][0]["devices"] = [HOSTILE]
    found["lineage"][0]["class"] = HOSTILE
    found["lineage_notes"] = [HOSTILE]
    found["run"][0]["name"] = HOSTILE
    html = render(found)
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert page.text.count('<script>alert("1")</script>') >= 6
    attributes = [name for _, given in page.elements for name in given]
    assert not [name for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing_and_can_be_read_by_machines_and_ears(
    report: content.Report,
) -> None:
    html = render(report)
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(tags)
    for _, given in page.elements:
        assert "src" not in given
        assert str(given.get("href", "#")).startswith("#")
    assert not any(word in html for word in ("url(", "@import", "http://", "https://"))
    targets = {given["id"] for _, given in page.elements if "id" in given}
    links = {str(given["href"])[1:] for tag, given in page.elements if tag == "a"}
    assert links <= targets
    assert len([tag for tag in tags if tag == "caption"]) == tags.count("table")
    assert tags.count("table") == len(TABLES) - len(OF_SOME)
    assert all("scope" in given for tag, given in page.elements if tag == "th")
    marks = [given for _, given in page.elements if "mark" in str(given.get("class")).split()]
    assert len(marks) == len(report["fronts"])
    assert len([one for one in marks if "front" in str(one["class"])]) == sum(
        row["on_front"] for row in report["fronts"]
    )
    pictures = [given for tag, given in page.elements if tag == "svg"]
    assert len(pictures) == 3
    for given in pictures:
        assert given["role"] == "img"
        assert set(str(given["aria-labelledby"]).split()) <= targets
    assert "prefers-color-scheme: dark" in html
    assert ("html", {"lang": "en"}) in page.elements


def test_the_demos_page_holds_what_its_devices_measured(reported_run: Path, tmp_path: Path) -> None:
    measured = {one.device_class: {one.kind: one.model_dump()} for one in held_out_of(reported_run)}
    write_page(tmp_path / "report.html", reported_run, measured)
    page = Page((tmp_path / "report.html").read_text())
    assert [row["class"]["text"] for row in page.tables["held_out"] if row] == ["big", "small"]
    kept = sorted((tmp_path / "held-out").iterdir())
    assert len(held_out.read(kept, facts_of(reported_run))) == 2


def test_a_row_that_was_tampered_with_by_the_keys_owner_is_still_shown_as_it_stands(
    reported_run: Path, tmp_path: Path
) -> None:
    """The report computes nothing of its own: what the record says is what the page says."""
    folder = copied(reported_run, tmp_path)
    results_again(folder, lambda rows: rows[0]["validation"].update(onnx_int8=0.4242))
    found = command.report_of(folder)
    assert found["broken"] == []
    (row,) = [r for r in found["models"] if (r["class"], r["kind"]) == ("big", "onnx_int8")]
    assert row["accuracy"] == 0.4242
    assert "42.4 %" in Page(render(found)).text
    error = math.sqrt(0.4242 * (1 - 0.4242) / row["examples"])
    points = [p for p in found["fronts"] if (p["class"], p["what"]) == ("big", "onnx_int8")]
    assert points[0]["standard_error"] == pytest.approx(error)
    with pytest.raises(ArtifactError):
        command.require_whole({**found, "broken": ["x"]})
