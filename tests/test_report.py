"""`fedofa report`: what it says is what the run's files say; what is no run is refused."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedofa.server.report import command, content, costs
from fedofa.server.report.columns import TABLES
from fedofa.server.report.page import render
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from reported import (
    asked,
    copied,
    events_of,
    facts_of,
    held_out_of,
    results_again,
    signed_again,
)


@pytest.fixture(scope="module")
def report(reported_run: Path) -> content.Report:
    facts = facts_of(reported_run)
    return content.build(facts, held_out_of(reported_run))


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


@pytest.mark.parametrize("told", [{}, {"fleet": "homes", "artifacts": 3}])
def test_the_searchs_cost_is_not_that_of_a_job_that_came_after(
    told: dict[str, Any], reported_run: Path, tmp_path: Path
) -> None:
    """A specialization that was killed, or one for a fleet; a training after it vouches for more."""
    folder = copied(reported_run, tmp_path)
    measured = next(event for event in events_of(folder) if event["event"] == "measured")
    log = folder / "events.jsonl"
    with log.open("a") as file:
        file.write(json.dumps({"event": "started", "job": "specialize", **told}) + "\n")
        file.write(json.dumps({**measured, "macs": 10**15}) + "\n")

    def marked(record: dict[str, Any], job: int) -> None:
        data = log.read_bytes()
        mark = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        record["jobs"][job]["logs"]["events.jsonl"] = mark

    signed_again(folder, lambda record: marked(record, 0))
    before = content.build(facts_of(reported_run))
    assert content.build(facts_of(folder))["costs"] == before["costs"]
    if told:  # also where the log was marked later than it is
        signed_again(folder, lambda record: marked(record, 1))
        assert content.build(facts_of(folder))["costs"] == before["costs"]


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
    assert (code, f"results {results}: they are not those that run.json" in text) == (1, True)
    (folder / "run.json").write_text("{")
    code, text = asked("--run", str(folder))
    assert (code, "run.json: not a whole record" in text) == (1, True)
    (folder / "run.json").unlink()
    code, text = asked("--run", str(folder))
    assert (code, "run.json: no such file; a run begins it" in text) == (2, True)


def test_a_run_that_is_only_trained_says_so(reported_run: Path, tmp_path: Path) -> None:
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


def test_a_files_accuracy_is_told_with_the_examples_that_it_was_measured_on(
    reported_run: Path, tmp_path: Path
) -> None:
    """Files are measured in another exchange than their subnet: another device may answer."""
    folder = copied(reported_run, tmp_path)
    (first, *_) = rows = json.loads((folder / "specialized.json").read_text())
    assert all(row["validation_examples"].keys() == {"pytorch", *row["files"]} for row in rows)
    assert first["validation_examples"]["pytorch"] == first["validation"]["examples"]

    def fewer(rows: list[dict[str, Any]]) -> None:
        rows[0]["validation"].update(onnx_int8=0.5, examples=1000)
        rows[0]["validation_examples"]["onnx_int8"] = 25
        del rows[1]["validation_examples"]

    results_again(folder, fewer)
    report = content.build(facts_of(folder))
    model = next(row for row in report["models"] if row["kind"] == "onnx_int8")
    assert (model["examples"], model["subnet_examples"]) == (25, 1000)
    points = {(row["class"], row["what"]): row for row in report["fronts"]}
    assert points[model["class"], "onnx_int8"]["standard_error"] == pytest.approx(0.1)
    # Results of an earlier version do not say.
    older = next(row for row in report["models"] if row["class"] == rows[1]["class"])
    assert older["examples"] is None
    assert points[older["class"], "onnx_int8"]["standard_error"] is None
    assert "± –" in render(report)


def test_seed_and_recipe_are_those_that_the_weights_were_trained_with(
    reported_run: Path, tmp_path: Path
) -> None:
    """`fedofa run --seed 12345`, and then `fedofa specialize`, which takes the file's."""
    folder = copied(reported_run, tmp_path)

    def other_training(record: dict[str, Any]) -> None:
        config = record["jobs"][0]["config"]
        config.update(seed=12345, recipe={**config["recipe"], "name": "heterofl"})

    signed_again(folder, other_training)
    report = content.build(facts_of(folder))
    (row,) = report["run"]
    assert (row["seed"], row["recipe"], row["search_seed"]) == (12345, "heterofl", 0)
    shown = {column.key: column.text(row) for column in TABLES["run"].columns}
    assert (shown["seed"], shown["recipe"], shown["search_seed"]) == ("12345", "heterofl", "0")
    items = {item["item"]: item for item in report["practices"]}
    assert items["configuration"]["evidence"].startswith("seed: trained with another value")
    assert "of seed 12345" in items["seeds"]["evidence"]
    assert "--specialize" in items["seeds"]["advice"]

    signed_again(folder, lambda record: record["jobs"].pop(0))
    (row,) = content.build(facts_of(folder))["run"]
    assert (row["seed"], row["recipe"]) == (None, None)


def test_a_branch_is_reported_by_its_own_rounds(reported_run: Path, tmp_path: Path) -> None:
    """Its record lies in its folder; the event log is the run's, and tells of other branches too."""
    run = copied(reported_run, tmp_path)
    log, branch = run / "events.jsonl", run / "branches/one"
    rounds = [event for event in events_of(run) if event["event"] == "round"]
    with log.open("a") as file:
        file.write(json.dumps({"event": "started", "job": "train"}) + "\n")
        file.write(json.dumps({**rounds[0], "branch": "two", "train_macs": 10**15}) + "\n")
    branch.mkdir(parents=True)
    for path in list(run.iterdir()):
        if path.name not in ("events.jsonl", "branches"):
            path.rename(branch / path.name)

    def where(record: dict[str, Any]) -> None:
        data = log.read_bytes()
        mark = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for job in record["jobs"]:
            job["logs"] = {"../../events.jsonl": mark}

    signed_again(branch, where)
    found = command.report_of(run, "one")
    assert found["broken"] == []
    assert found["rounds"] == [{key: event[key] for key in found["rounds"][0]} for event in rounds]
    with pytest.raises(UsageError, match="several supernets; its branches are one"):
        command.report_of(run)
    with pytest.raises(UsageError, match="--branch 'three'; its branches are one"):
        command.report_of(run, "three")
