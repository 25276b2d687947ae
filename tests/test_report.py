"""`fedofa report`: what it says is what the run's files say, and a stranger's words are only words."""

import json
import math
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fedofa.server.cli import app
from fedofa.server.demo_report import write_page
from fedofa.server.report import charts, command, content, costs, held_out
from fedofa.server.report.columns import NOTHING, NUMBERS, TABLES
from fedofa.server.report.page import render
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import ArtifactError, FedofaError, UsageError
from reported import copied, events_of, facts_of, held_out_of, results_again
from typer.testing import CliRunner

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


@pytest.fixture(scope="module")
def report(reported_run: Path) -> content.Report:
    facts = facts_of(reported_run)
    return content.build(facts, held_out_of(reported_run))


def test_every_cell_of_the_page_is_the_records_own_value(report: content.Report) -> None:
    page = Page(render(report))
    assert set(page.tables) == set(TABLES)
    for name, table in TABLES.items():
        shown = [row for row in page.tables[name] if row]
        assert len(shown) == len(report[name]) > 0
        for cells, row in zip(shown, report[name], strict=True):
            assert list(cells) == [column.key for column in table.columns]
            for column in table.columns:
                cell, value = cells[column.key], row[column.key]
                if value is None:
                    assert (cell["text"], cell["value"]) == (NOTHING, None)
                elif column.form in NUMBERS:
                    assert float(cell["value"]) == float(value)
                else:
                    assert cell["text"] == column.text(row)


def test_a_spelt_number_is_the_number_to_its_last_digit() -> None:
    row = {"a": 1234567, "b": 0.98765, "c": -1.26, "d": 0.0123456, "e": None}
    spelt = {"a": "1,234,567", "b": "98.8 %", "c": "-1.3 %", "d": "0.01235"}
    forms = {"a": "count", "b": "percent", "c": "signed", "d": "number"}
    for key, form in forms.items():
        assert TABLES["run"].columns[0].__class__(key, key, form).text(row) == spelt[key]


def test_costs_are_the_sums_of_what_the_event_log_says(
    report: content.Report, reported_run: Path
) -> None:
    events = events_of(reported_run)
    rounds = [event for event in events if event["event"] == "round"]
    measured = [event for event in events if event["event"] == "measured"]
    training, specialization = report["costs"]
    assert training["macs"] == sum(event["train_macs"] for event in rounds)
    assert training["seconds"] == pytest.approx(sum(event["seconds"] for event in rounds))
    assert training["rounds"] == len(rounds) == 2
    assert specialization["macs"] == sum(event["macs"] for event in measured)
    assert sum(row["exchanges"] for row in report["evaluations"]) == len(measured)
    rows = json.loads((reported_run / "specialized.json").read_text())
    assert specialization["evaluations"] == sum(row["evaluations"] for row in rows)


def test_rounds_after_the_specialization_are_no_part_of_its_cost(reported_run: Path) -> None:
    facts = facts_of(reported_run)
    earlier = replace(facts, job=facts.job.model_copy(update={"round": 1}))
    assert [row["round"] for row in costs.of_rounds(earlier)] == [1]


def test_what_measuring_cost_is_each_subnets_macs_on_each_example(
    report: content.Report, reported_run: Path
) -> None:
    """Counted another way: by class, from its subnets and the examples that answered for them."""
    facts = facts_of(reported_run)
    rows = json.loads((reported_run / "specialized.json").read_text())
    searched = final = examples = 0
    for row in rows:
        seen = row["candidates"][0]["examples"]
        for one in row["evaluated"]:
            searched += cost(facts.space, facts.space.arch(one["arch"])).macs * seen
        final += sum(one["macs"] for one in row["candidates"]) * seen
        examples += len(row["candidates"]) * seen
    found = {
        row["step"]: row for row in report["evaluations"] if row["fidelity"].startswith("subnets")
    }
    assert found["measuring finalists"]["macs"] == final
    assert found["measuring finalists"]["examples"] == examples
    begun = found["measuring sampled subnets"]["macs"] + found.get("searching", {"macs": 0})["macs"]
    assert begun == searched


def test_devices_are_told_as_they_told_themselves(
    report: content.Report, reported_run: Path
) -> None:
    joined = {e["device"]: e for e in events_of(reported_run) if e["event"] == "device_joined"}
    assert [row["device"] for row in report["devices"]] == ["dev-0", "dev-1"]
    for row in report["devices"]:
        card = joined[row["device"]]
        assert (row["examples"], row["labels"]) == (card["examples"], None)
        assert row["validation_examples"] == card["validation_examples"] > 0
        assert row["accepted"] == row["asked"] == 2
    assert sum(row["share"] for row in report["devices"]) == pytest.approx(1)


@pytest.mark.parametrize(("low", "claim"), [(0.01, "searched"), (0.0, content.NO_CLAIM),
                                            (-3.0, content.NO_CLAIM), (None, content.NO_CLAIM)])  # fmt: skip
def test_searched_is_claimed_only_above_zero_whatever_the_row_claims(
    low: float | None, claim: str, reported_run: Path
) -> None:
    facts = facts_of(reported_run)
    row: Any = json.loads(json.dumps(facts.results[0]))
    row["audit"]["improvement"]["low"], row["searched"] = low, True
    found = content.build(replace(facts, results=(row,)))
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
    found = content.build(replace(facts, joined={HOSTILE: card}, results=(row,)))
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
    assert len([tag for tag in tags if tag == "caption"]) == tags.count("table") == len(TABLES)
    assert all("scope" in given for tag, given in page.elements if tag == "th")
    pictures = [given for tag, given in page.elements if tag == "svg"]
    assert len(pictures) == 3
    for given in pictures:
        assert given["role"] == "img"
        assert set(str(given["aria-labelledby"]).split()) <= targets
    assert "prefers-color-scheme: dark" in html
    assert ("html", {"lang": "en"}) in page.elements


def asked(*arguments: str) -> tuple[int, str]:
    """Exit code and output, as the console entry has them."""
    done = CliRunner().invoke(app, ["report", *arguments])
    if isinstance(done.exception, FedofaError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.stdout


def test_the_command_prints_tables_or_json_and_writes_the_page(
    reported_run: Path, tmp_path: Path
) -> None:
    code, text = asked("--run", str(reported_run))
    assert code == 0
    for caption in ("Published models", "Audit of the search", "Calibration", "Devices", "Cost"):
        assert caption in text
    assert "4 files lead back to rounds and devices, every link checked" in text
    code, text = asked("--run", str(reported_run), "--json")
    found = json.loads(text)
    assert code == 0
    assert found == json.loads(json.dumps(content.build(facts_of(reported_run))))
    page = tmp_path / "report.html"
    code, text = asked("--run", str(reported_run), "--html", str(page))
    assert (code, text) == (0, f"wrote {page}\n")
    assert page.read_text() == render(found)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    code, text = asked("--run", str(reported_run), "--html", str(tmp_path / "no/report.html"))
    assert (code, "--html" in text) == (2, True)


def test_check_says_each_item_and_fails_while_one_is_not_met(reported_run: Path) -> None:
    code, text = asked("--run", str(reported_run), "--check")
    assert code == 1
    assert "not met  test-part" in text
    assert "-> measure each class's model" in text
    assert "met  lineage" in text
    code, text = asked("--run", str(reported_run), "--check", "--json")
    assert code == 1
    assert {row["item"]: row["state"] for row in json.loads(text)}["random-baseline"] == "not met"


def test_held_out_measurements_are_taken_of_this_runs_models_only(
    reported_run: Path, tmp_path: Path
) -> None:
    paths = []
    for place, one in enumerate(held_out_of(reported_run)):
        paths.append(tmp_path / f"{place}.json")
        paths[-1].write_text(one.model_dump_json())
    options = [word for path in paths for word in ("--held-out", str(path))]
    code, text = asked("--run", str(reported_run), "--json", *options)
    found = json.loads(text)
    assert code == 0
    assert [(r["class"], r["accuracy"], r["median_ms"]) for r in found["held_out"]] == [
        ("big", 0.875, 0.25), ("small", 0.875, 0.25),
    ]  # fmt: skip
    states = {row["item"]: row["state"] for row in found["practices"]}
    assert states["test-part"] == "met"

    facts, fields = facts_of(reported_run), json.loads(paths[0].read_text())
    for change, said in (
        ({"manifest_sha256": "e" * 64}, "which this run did not publish for 'big'"),
        ({"accuracy": None}, "accuracy: Input should be a valid number"),
        ({"kind": "onnx_int4"}, "kind: "),
    ):
        paths[0].write_text(json.dumps({**fields, **change}))
        with pytest.raises(UsageError, match=said):
            held_out.read(paths[:1], facts)
    paths[0].write_text("{")
    with pytest.raises(UsageError, match="no JSON"):
        held_out.read(paths[:1], facts)


def test_the_demos_page_holds_what_its_devices_measured(reported_run: Path, tmp_path: Path) -> None:
    measured = {one.device_class: {one.kind: one.model_dump()} for one in held_out_of(reported_run)}
    write_page(tmp_path / "report.html", reported_run, measured)
    page = Page((tmp_path / "report.html").read_text())
    assert [row["class"]["text"] for row in page.tables["held_out"] if row] == ["big", "small"]
    kept = sorted((tmp_path / "held-out").iterdir())
    assert len(held_out.read(kept, facts_of(reported_run))) == 2


def test_a_broken_link_ends_the_report_and_is_an_item_of_the_check(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path / "copy")
    (folder / "models/big/model.int8.onnx").write_bytes(b"x")
    page = tmp_path / "report.html"
    code, text = asked("--run", str(folder), "--html", str(page))
    assert code == 1
    assert "1 broken links" in text
    assert "models/big/model.int8.onnx: its sha256 is" in text
    assert "restore it, or specialize again" in text
    assert not page.exists()
    code, text = asked("--run", str(folder), "--check")
    assert (code, "not met  lineage" in text) == (1, True)


def test_what_is_no_specialized_run_is_refused_with_what_to_do(
    reported_run: Path, tmp_path: Path
) -> None:
    code, text = asked("--run", str(tmp_path / "nowhere"))
    assert (code, "no such folder; a run lies in STATE/runs/NAME" in text) == (2, True)
    code, text = asked("--run", str(tmp_path))
    assert (code, "holds no run" in text) == (2, True)
    code, text = asked("--run", str(reported_run), "--branch", "one")
    assert (code, "the run has no branches" in text) == (2, True)

    folder = copied(reported_run, tmp_path / "copy")
    results = folder / "specialized.json"
    results.write_text(results.read_text()[:-50])
    code, text = asked("--run", str(folder))
    assert (code, f"results {results} are damaged" in text) == (1, True)
    (folder / "run.json").write_text("{")
    code, text = asked("--run", str(folder))
    assert (code, "run.json: not a whole record" in text) == (1, True)
    (folder / "run.json").unlink()
    code, text = asked("--run", str(folder))
    assert (code, "run.json: no such file; a run begins it" in text) == (2, True)


def test_a_run_that_is_only_trained_says_so(reported_run: Path, tmp_path: Path) -> None:
    from reported import signed_again

    folder = copied(reported_run, tmp_path)

    def only_trained(record: dict[str, Any]) -> None:
        record["jobs"] = record["jobs"][:1]

    def killed(record: dict[str, Any]) -> None:
        record["jobs"][-1].update(seconds=None, published=None)

    signed_again(folder, killed)
    with pytest.raises(UsageError, match="its specialization was not ended"):
        command.report_of(folder)
    signed_again(folder, only_trained)
    with pytest.raises(UsageError, match="2 rounds are trained, and it is not specialized yet"):
        command.report_of(folder)


def test_seeds_are_those_of_the_same_configuration_beside_it(
    reported_run: Path, tmp_path: Path
) -> None:
    from reported import signed_again

    folder = copied(reported_run, tmp_path)

    def beside(name: str, **changes: Any) -> None:
        other = folder.parent / name
        shutil.copytree(folder, other)

        def changed(record: dict[str, Any]) -> None:
            for job in record["jobs"]:
                job["config"].update({"name": name, **changes})

        signed_again(other, changed)

    beside("again", seed=7)
    beside("other-space", seed=8, recipe={**facts_of(folder).job.config["recipe"], "lr": 0.9})
    assert facts_of(folder).seeds == (0, 7)


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
