"""The report of a run's fleets and finishings: the same links, followed from each of their files."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedofa.protos.manifest import Manifest
from fedofa.server.checkpoint import CheckpointStore
from fedofa.server.config import RunConfig
from fedofa.server.events import read_events
from fedofa.server.finishing import compared
from fedofa.server.fleet_command import FleetOptions, plan_job
from fedofa.server.jobs import run_job
from fedofa.server.ledger_report import verdict
from fedofa.server.operate import finish_job
from fedofa.server.registry import Registry
from fedofa.server.registry_plans import Settled, settle
from fedofa.server.report import command, content
from fedofa.server.report.columns import TABLES
from fedofa.server.report.page import OF_SOME, render
from fedofa.supernet.weights import digest
from fleets import grid_of, small_config, small_fleet
from html_page import Page
from reported import (
    CONFIG,
    asked,
    broken,
    copied,
    facts_of,
    held_out_of,
    quick_exports,
    signed_again,
    traced,
)

# What they share is trained, exported and finished within the first test's time.
pytestmark = pytest.mark.timeout(900)

FLEET = {
    "runtimes": {"pi": {"kind": "onnx_fp32"}, "board": {"kind": "onnx_int8"}},
    "devices": [
        {"name": "pi-1", "runtime": "pi"},
        {"name": "pi-2", "runtime": "pi", "budget": {"params": 2500}},
        {"name": "board-1", "runtime": "board", "budget": {"params": 2500}, "weight": 3},
        {"name": "tiny", "runtime": "board", "budget": {"params": 1}},
    ],
}
ROUNDS = 1


def config_of() -> RunConfig:
    return small_config(**CONFIG, finish={"lr_share": 1.0})


@pytest.fixture(scope="module")
def whole(reported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run's folder, with a fleet's plan carried out and a class finished."""
    state = tmp_path_factory.mktemp("whole")
    folder = copied(reported_run, state)
    devices = small_fleet(state / "devices", ("big", "small"))
    path = state / "homes.json"
    path.write_text(json.dumps(FLEET))
    job, _ = plan_job(state, config_of(), FleetOptions(path, 2))
    with quick_exports(), pytest.MonkeyPatch.context() as patch:
        run_job(job, grid_of(devices))
        patch.setattr(compared, "CHANCE", 2.0)  # what is finished is published
        finishing = finish_job(state, config_of(), "small", rounds=ROUNDS, resume=False)
        run_job(finishing, grid_of(devices))
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return copied(whole, tmp_path)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def models(folder: Path) -> dict[str, str]:
    """sha256 of each model's file → what published it."""
    found = {}
    for of, below in (
        ("classes", "models"),
        ("fleet homes", "fleets/homes/models"),
        ("finishing small", "finished/small/models"),
    ):
        for path in folder.glob(f"{below}/*/*.onnx"):
            found[hashlib.sha256(path.read_bytes()).hexdigest()] = of
    return found


def test_every_file_of_fleets_and_finishings_leads_back_to_rounds_and_devices(whole: Path) -> None:
    found = traced(whole)
    assert found.broken == ()
    # That the class's devices now pull what was finished of it.
    (note,) = found.notes
    assert "version 2 (finished by fedofa finish from version 1): not the model" in note
    assert {one.sha256: one.of for one in found.artifacts} == models(whole)
    of_run = CheckpointStore(whole / "checkpoints").latest()
    own = CheckpointStore(whole / "finished/small/checkpoints").latest()
    assert of_run is not None
    assert own is not None
    for one in found.artifacts:
        assert set(one.devices) == {"dev-0", "dev-1"}
        finished = one.of == "finishing small"
        assert one.supernet_sha256 == digest((own if finished else of_run).weights)
        assert one.from_sha256 == (digest(of_run.weights) if finished else None)
        assert one.rounds == (2 + ROUNDS if finished else 2)
        assert one.round == 2
    assert {one.of for one in found.artifacts} == {"classes", "fleet homes", "finishing small"}
    assert verdict(whole / "finished/small", None, None)["ok"]


CHAIN = (
    "fleets/homes/assignment.json",
    "fleets/homes/models/*/manifest.json",
    "fleets/homes/models/*/*.onnx",
    "specialize-events.jsonl",
    "finished/small/finished.json",
    "finished/small/run.json",
    "finished/small/events.jsonl",
    "finished/small/ledger.jsonl",
    "finished/small/start/*/weights.safetensors",
    "finished/small/start/*/state.json",
    f"finished/small/checkpoints/round-00000{ROUNDS}/weights.safetensors",
    "finished/small/models/small/manifest.json",
    "finished/small/models/small/*.onnx",
)


@pytest.mark.parametrize("name", CHAIN)
def test_a_changed_byte_is_found_and_so_is_a_file_that_is_gone(name: str, run: Path) -> None:
    assert broken(run) == ""
    path = sorted(run.glob(name))[0]
    data = path.read_bytes()
    for place in (len(data) // 3, 2 * len(data) // 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert path.name in broken(run) or str(path.parent) in broken(run)
    path.unlink()
    found = broken(run) or "\n".join(traced(run).notes)
    words = (path.name, str(path.parent), f"{path.parents[1]}: it holds no checkpoint")
    assert any(word in found for word in words)
    path.write_bytes(data)
    assert broken(run) == ""


def again(folder: Path, path: Path, change: Callable[[Any], None], where: str) -> None:
    """Change a manifest, or what a job left, and note it as it is now."""
    fields = read(path)
    change(fields)
    if path.name == "manifest.json":
        path.write_bytes(Manifest.model_validate(fields).to_json())
    else:
        path.write_text(json.dumps(fields))
    now = hashlib.sha256(path.read_bytes()).hexdigest()

    def noted(record: dict[str, Any]) -> None:
        left = record["jobs"][-1]["published"]
        if where == "results":
            left["results_sha256"] = now
        else:
            left["manifests"][path.parent.name] = now

    signed_again(folder, noted)


def test_a_manifest_of_another_beginning_is_found_also_where_its_digest_was_noted(
    run: Path,
) -> None:
    own = run / "finished/small"
    path = own / "models/small/manifest.json"
    again(own, path, lambda fields: fields["finished"].update(round=1), "manifest")
    assert "it was finished from ('tiny', 1, " in broken(run)
    again(own, path, lambda fields: fields.update(finished=None), "manifest")
    assert "it does not say that it was finished" in broken(run)


def test_a_start_of_other_weights_than_the_runs_is_found(run: Path) -> None:
    """By the ledger of the run, and by the finishing's own, each for itself."""
    own = run / "finished/small"
    store = CheckpointStore(own / "start")
    begun = store.latest()
    assert begun is not None
    weights = {name: value + 1 for name, value in begun.weights.items()}
    other, notes = digest(weights), dict(begun.notes)
    notes["finishing"] = {**notes["finishing"], "supernet_sha256": other}  # type: ignore[dict-item]
    shutil.rmtree(own / "start")
    store.write(type(begun)(begun.round, weights, {}, {}, notes))
    found = broken(run).splitlines()
    assert any(line.startswith(f"ledger {own}/ledger.jsonl: it begins with") for line in found)
    assert any(
        line.startswith(f"ledger {run}/ledger.jsonl: round 2 left the weights") for line in found
    )


def test_an_assignment_of_other_artifacts_than_were_published_is_found(run: Path) -> None:
    path = run / "fleets/homes/assignment.json"

    def other(fields: Any) -> None:
        head = fields["artifacts"][0]["arch"]["head.width"]
        fields["artifacts"][0]["arch"]["head.width"] = 48 - head

    again(run, path, other, "results")
    assert "its architecture is not that of assignment.json" in broken(run)


def test_what_the_registry_gives_the_devices_is_compared_with_the_assignment(run: Path) -> None:
    registry = Path(facts_of(run).job.published.registry)  # type: ignore[union-attr]
    rows = read(run / "fleets/homes/assignment.json")["devices"]
    classes = {row["device"]: (f"tiny.{row['device_class']}", 1) for row in rows}
    with Registry(registry) as opened:
        settle(opened, Settled("other", "homes", {"pi-1": classes["pi-1"]}, {}))
    found = traced(run)
    assert found.broken == ()
    assert "gives 1 of 3 devices of fleet homes what the plan of another" in found.notes[-1]
    with Registry(registry) as opened:
        settle(opened, Settled("tiny", "homes", {"pi-1": classes["pi-1"]}, {"pi-2": "why"}))
    assert "does not give 2 of 3 devices what" in traced(run).notes[-1]


def test_models_that_no_job_published_are_named_and_what_is_not_recorded_is_noted(
    run: Path,
) -> None:
    made = next((run / "fleets/homes/models").glob("onnx*"))
    shutil.copytree(made, made.with_name("stranger"))
    assert "stranger/manifest.json: no job for fleet homes in run.json published it" in broken(run)
    shutil.rmtree(made.with_name("stranger"))

    # What a former plan had, of a job that is in no record: the registry holds it.
    manifest = Manifest.from_json((made / "manifest.json").read_bytes())
    former = manifest.model_copy(update={"model": "tiny.former", "device_class": "former"})
    beside = shutil.copytree(made, made.with_name("former"))
    (beside / "manifest.json").write_bytes(former.to_json())
    assert "former/manifest.json: no job for fleet homes" in broken(run)
    with Registry(Path(facts_of(run).job.published.registry)) as registry:  # type: ignore[union-attr]
        registry.publish(former, {n: made / f.name for n, f in former.named().items()})
    assert broken(run) == ""

    def unended(record: dict[str, Any]) -> None:
        record["jobs"][-1].update(seconds=None, published=None)

    signed_again(run / "finished/small", unended)
    assert any("it is not over; fedofa finish --resume" in note for note in traced(run).notes)
    (run / "finished/small/run.json").unlink()
    assert any("small: it has no run.json" in note for note in traced(run).notes)
    signed_again(run, unended)
    assert any("homes: its plan was not carried out" in note for note in traced(run).notes)
    signed_again(run, lambda record: record["jobs"].pop())
    assert any("no job in run.json is about that fleet" in note for note in traced(run).notes)


def test_the_tables_say_what_assignment_and_finishing_say(whole: Path) -> None:
    report = content.build(facts_of(whole))
    told = read(whole / "fleets/homes/assignment.json")
    (fleet,) = report["fleets"]
    assert (fleet["fleet"], fleet["devices"], fleet["served"], fleet["not_served"]) == (
        "homes", 4, 3, 1,
    )  # fmt: skip
    loss = [row["loss"] for row in told["devices"]]
    weights = [3.0 if row["device"] == "board-1" else 1.0 for row in told["devices"]]
    mean = sum(a * b for a, b in zip(loss, weights, strict=True)) / sum(weights)
    assert fleet["loss_mean"] == pytest.approx(mean)
    assert fleet["loss_most"] == max(loss)
    assert fleet["artifacts"] == len(report["artifacts"]) == len(told["artifacts"])
    for row in report["artifacts"]:
        mine = [one for one in told["devices"] if one["device_class"] == row["class"]]
        manifest = read(whole / f"fleets/homes/models/{row['class']}/manifest.json")
        assert row["devices"] == len(mine)
        assert row["size_bytes"] == manifest["files"][0]["size_bytes"]
        assert (row["macs"], row["params"]) == (
            manifest["cost"]["macs"], manifest["cost"]["params"],
        )  # fmt: skip
        assert row["accuracy"] == manifest["metrics"][f"validation_accuracy.{row['kind']}"]
    (finished,) = report["finished"]
    outcome = read(whole / "finished/small/finished.json")
    for name in ("published", "version", "before", "after", "gain", "p"):
        assert finished[name] == outcome[name]
    assert (finished["from_version"], finished["from_round"], finished["rounds"]) == (1, 2, ROUNDS)


def test_what_they_cost_is_the_sum_of_their_own_events(whole: Path) -> None:
    costs = {row["what"]: row for row in content.build(facts_of(whole))["costs"]}
    assert list(costs) == ["training", "specialization", "fleet homes", "finishing small"]

    def events(path: Path, kind: str) -> list[dict[str, Any]]:
        return [event for event, _ in read_events(path) if event["event"] == kind]

    measured = events(whole / "specialize-events.jsonl", "measured")
    assert costs["fleet homes"]["macs"] == sum(event["macs"] for event in measured)
    log = whole / "finished/small/events.jsonl"
    rounds = events(log, "round")
    assert costs["finishing small"]["rounds"] == len(rounds) == ROUNDS
    assert costs["finishing small"]["macs"] == sum(event["train_macs"] for event in rounds) + sum(
        event["macs"] for event in events(log, "measured")
    )


def test_the_command_and_the_page_show_them(whole: Path, tmp_path: Path) -> None:
    code, text = asked("--run", str(whole))
    assert code == 0
    for caption in ("Fleets", "Artifacts of fleets", "Finished classes"):
        assert caption in text
    assert f"{len(models(whole))} files lead back to rounds and devices" in text
    report = content.build(facts_of(whole), held_out_of(whole))
    html = render(report)
    page = Page(html)
    assert page.tables.keys() == TABLES.keys()
    for name in OF_SOME:
        for cells, row in zip(page.tables[name][1:], report[name], strict=True):
            for column in TABLES[name].columns:
                assert cells[column.key]["text"] == column.text(row)
    assert 'href="#fleets"' in html
    assert html.count("(fleet homes)") == len(report["artifacts"])
    assert "finished weights <code>" in html
    assert 'href="#fleets"' not in render({**report, **{name: [] for name in OF_SOME}})


def test_a_device_measures_a_fleets_artifact_on_held_out_examples(
    whole: Path, tmp_path: Path
) -> None:
    path = next((whole / "fleets/homes/models").glob("onnx*/manifest.json"))
    fields = {
        **held_out_of(whole)[0].model_dump(),
        "device_class": path.parent.name,
        "kind": path.parent.name.partition(".")[0],
        "manifest_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (tmp_path / "one.json").write_text(json.dumps(fields))
    (row,) = command.report_of(whole, None, [tmp_path / "one.json"])["held_out"]
    assert row["class"] == path.parent.name


def test_a_run_that_was_specialized_for_a_fleet_alone_has_a_report(run: Path) -> None:
    def alone(record: dict[str, Any]) -> None:
        record["jobs"] = [job for job in record["jobs"] if job["kind"] != "specialize"]

    signed_again(run, alone)
    for name in ("models", "finished"):
        shutil.rmtree(run / name)
    (run / "specialized.json").unlink()
    report = command.report_of(run)
    assert report["broken"] == []
    assert [row["what"] for row in report["costs"]] == ["training", "fleet homes"]
    assert {row["of"] for row in report["lineage"]} == {"fleet homes"}
    states = {row["item"]: row["state"] for row in report["practices"]}
    assert {name for name, state in states.items() if state == "does not apply"} == {
        "test-part", "anytime", "random-baseline", "same-protocol", "claims", "predictor",
        "shipped-files",
    }  # fmt: skip
    assert (states["lineage"], states["search-cost"]) == ("met", "met")
    assert asked("--run", str(run))[0] == 0
    assert set(Page(render(report)).tables) >= {"fleets", "artifacts", "lineage"}
