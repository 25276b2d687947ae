"""A whole fleet from one run: planned without devices, made with them, and nobody over its budget."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broken_converter import export_or_crash_by_name
from fedofa.client.link import Address
from fedofa.client.pull import pull
from fedofa.client.store import DeviceStore
from fedofa.protos.manifest import Manifest
from fedofa.server import cli, fleet_command, measured_subnets
from fedofa.server.checkpoint import CheckpointStore
from fedofa.server.commands import work
from fedofa.server.config import RunConfig
from fedofa.server.depot import serve_depot
from fedofa.server.events import read_events
from fedofa.server.fleet_command import FleetOptions, delivered, plan_job
from fedofa.server.fleet_plan import FleetPlan
from fedofa.server.fleet_plan_file import read_plan
from fedofa.server.fleet_report import as_lines, planned_report
from fedofa.server.jobs import Job, run_job
from fedofa.server.operate import evaluate_job, run_folder, train_job
from fedofa.server.registry import Registry
from fedofa.server.registry_plans import resolve
from fedofa.specialize import export
from fedofa.supernet.errors import ArtifactError, DepotError, RunError, UsageError
from fedofa.supernet.weights import digest
from fleets import grid_of, small_config, small_fleet
from typer.testing import CliRunner

SEARCH = {"samples": 16, "finalists": 2, "random_baseline": 3, "method": "random"}
EXPORT = {"formats": ["onnx"], "max_accuracy_drop": 1.0}
RUNTIMES = {
    "pi": {"kind": "onnx_fp32", "macs_per_s": 1e8, "power_w": 3.0},
    "board": {"kind": "onnx_int8", "pj_per_mac": 4.0, "pj_per_byte": 20.0},
}


def fleet_file(folder: Path) -> Path:
    """Sixty devices on a ladder of budgets, a gateway of two models, and four that go wrong."""
    devices: list[dict[str, Any]] = []
    for place in range(30):
        room = 1.0 + place / 10
        devices.append(
            {
                "name": f"pi-{place}",
                "runtime": "pi",
                "budget": {"latency_ms": 0.15 * room, "energy_mj": 3 * 0.15 * room},
            }
        )
        devices.append(
            {
                "name": f"board-{place}",
                "runtime": "board",
                "budget": {"file_bytes": int(6600 * room), "params": int(1500 * room)},
            }
        )
    devices += [{"name": f"hub-{k}", "runtime": "board", "gateway": "hub"} for k in range(2)]
    devices += [
        {"name": "tiny", "runtime": "board", "budget": {"file_bytes": 10}},
        {"name": "odd", "runtime": "board", "budget": {"file_bytes": -10}},
        {"name": "lost", "runtime": "nowhere"},
        {"name": "rocket", "runtime": "pi", "macs_per_s": 1e14},
    ]  # fmt: skip
    path = folder / "sensors.json"
    gateways = {"hub": {"budget": {"file_bytes": 22_000, "energy_mj": 5.0}}}
    path.write_text(json.dumps({"runtimes": RUNTIMES, "devices": devices, "gateways": gateways}))
    return path


class Site:
    """A trained run whose subnets were measured; `state` is the server's folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.config: RunConfig = small_config(
            round={"rounds": 1}, classes={"big": {}}, search=SEARCH, export=EXPORT
        )
        self.grid = grid_of(small_fleet(state, ("big", "big")))
        run_job(train_job(state, self.config, resume=False), self.grid)
        self.folder = run_folder(state, self.config)

    def plan(self, path: Path, most: int = 5) -> tuple[Job, FleetPlan]:
        return plan_job(self.state, self.config, FleetOptions(path, most))

    def events(self, job: Job, kind: str) -> list[dict[str, Any]]:
        return [e for e, _ in read_events(self.folder / job.events) if e["event"] == kind]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    found = Site(tmp_path_factory.mktemp("state"))
    path = fleet_file(found.state)
    with pytest.raises(
        UsageError, match=r"no subnet of this run was measured yet; .*fedofa evaluate"
    ):
        found.plan(path)
    run_job(evaluate_job(found.state, found.config), found.grid)
    return found


@pytest.fixture(scope="module")
def done(site: Site) -> tuple[Job, FleetPlan, dict[str, Any]]:
    """One artifact's exporter crashes; the fleet is served by the others."""
    job, plan = site.plan(site.state / "sensors.json")
    # That of the roomiest board: what is smaller fits it too.
    (broken,) = [p.artifact for p in plan.plan.placed if p.demand.device == "board-29"]
    name = planned_report(plan)["artifacts"][broken]["device_class"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_floats", export_or_crash_by_name)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("CRASHING", name)
        run_job(job, site.grid)
    return job, plan, delivered(job, plan)


def assignment(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((site.folder / "fleets/sensors/assignment.json").read_text())
    return found


def test_a_plan_needs_no_device_and_names_who_is_not_served(site: Site) -> None:
    _, plan = site.plan(site.state / "sensors.json")
    report = planned_report(plan)
    told = {one["device"]: one["field"] for one in report["not_served"]}
    assert told == {
        "tiny": "budget.file_bytes",
        "odd": "budget.file_bytes",
        "lost": "runtime",
        "rocket": "macs_per_s",
    }
    summary = report["summary"]
    assert (summary["devices"], summary["served"], summary["artifacts"]) == (66, 62, 5)
    assert summary["artifacts_if_each_had_its_own"] > 5
    loss = summary["loss_of_predicted_accuracy"]
    assert 0 <= loss["mean"] <= loss["95_percent_below"] <= loss["most"] < 0.2
    assert sum(row["devices"] for row in report["artifacts"]) == 62
    again = site.plan(site.state / "sensors.json")[1]
    assert again == plan
    many = site.plan(site.state / "sensors.json", most=64)[1]
    assert planned_report(many)["summary"]["loss_of_predicted_accuracy"]["most"] == 0


def test_a_plan_is_read_back_as_it_was_written(site: Site) -> None:
    job, plan = site.plan(site.state / "sensors.json")
    found = read_plan(Path(str(job.fleet)), site.config.build_space())
    assert found.plan.artifacts == plan.plan.artifacts
    assert found.plan.placed == plan.plan.placed
    assert found.not_served == plan.not_served
    with pytest.raises(ArtifactError, match="plan again"):
        read_plan(site.state / "sensors.json", site.config.build_space())


def test_every_device_that_can_be_is_on_a_published_artifact_that_fits(
    site: Site, done: tuple[Job, FleetPlan, dict[str, Any]]
) -> None:
    found = assignment(site)
    published = {row["device_class"]: row for row in found["artifacts"]}
    assert len(published) == 4  # of five planned, one could not be made
    for row in found["devices"]:
        artifact = published[row["device_class"]]
        assert artifact["kind"] == row["kind"]
        assert all(row["spends"][name] <= limit for name, limit in row["bounds"].items())
        if "file_bytes" in row["bounds"]:
            assert row["spends"]["file_bytes"] == artifact["size_bytes"]
        assert row["loss"] >= 0
    served = {row["device"] for row in found["devices"]}
    not_served = {row["device"] for row in found["not_served"]}
    assert not served & not_served
    assert len(served | not_served) == 66
    hub = [row["spends"] for row in found["devices"] if row["device"].startswith("hub")]
    assert sum(spent["file_bytes"] for spent in hub) <= 22_000
    assert sum(spent["energy_mj"] for spent in hub) <= 5.0


def test_what_is_published_is_one_verified_file_of_the_kind_and_nothing_else(
    site: Site, done: tuple[Job, FleetPlan, dict[str, Any]]
) -> None:
    with Registry(site.state / "registry") as registry:
        for row in assignment(site)["artifacts"]:
            manifest, _ = registry.resolve(row["device_class"])
            assert [file.kind for file in manifest.files] == [row["kind"]]
            assert manifest.files[0].size_bytes == row["size_bytes"]
            assert set(manifest.golden.tolerance) == {row["kind"]}
            folder = Path(row["manifest"]).parent
            names = sorted(path.name for path in folder.iterdir())
            assert names == ["manifest.json", manifest.files[0].name, "trainable.safetensors"]
            assert 0 <= row["validation_file"] <= 1
    assert not list((site.folder / "fleets/sensors/models").glob(".draft*"))


def test_each_device_pulls_its_artifact_by_its_own_name_or_is_told_why_not(
    site: Site, done: tuple[Job, FleetPlan, dict[str, Any]]
) -> None:
    found = assignment(site)
    assert found["summary"]["devices_of_other_plans"] == {}
    with Registry(site.state / "registry") as registry:
        for row in found["devices"]:
            got = resolve(registry, row["device"])
            manifest = Manifest.from_json(got.manifest)
            assert manifest.device_class == got.device_class == row["device_class"]
        for row in found["not_served"]:
            with pytest.raises(DepotError) as caught:
                resolve(registry, row["device"])
            told = f"(run tiny): {row['field']}: {row['reason']}"
            assert (caught.value.code, told in str(caught.value)) == ("not_served", True)
        depot = serve_depot(registry, "127.0.0.1:0")
        store = DeviceStore(site.state / "device", device="hub-1")
        pulled = pull(Address(f"127.0.0.1:{depot.port}"), store)
        depot.stop(0)
    rows = {row["device"]: row for row in found["devices"]}
    assert pulled.activated
    assert pulled.model.manifest.device_class == rows["hub-1"]["device_class"]
    assert pulled.model.kind == rows["hub-1"]["kind"]


def test_an_artifact_that_fails_is_told_and_its_devices_move(
    site: Site, done: tuple[Job, FleetPlan, dict[str, Any]]
) -> None:
    job, _, report = done
    (failed,) = site.events(job, "class_failed")
    assert failed["reason"] == "the converter's process was ended by signal 6"
    assert failed["device_class"] not in {row["device_class"] for row in report["artifacts"]}
    assert report["summary"]["moved_after_export"] > 0
    assert {row["device"]: row["device_class"] for row in assignment(site)["devices"]}["board-29"]
    told = [(e["what"], e["done"], e["total"]) for e in site.events(job, "converted")]
    assert told == [("exporting", k, 5) for k in range(1, 6)] + [
        ("quantizing", k, 4) for k in range(1, 5)
    ]
    steps = [(event["what"], event["done"], event["total"]) for event in site.events(job, "step")]
    assert [done for _, done, _ in steps] == list(range(5))
    shown = as_lines(report)
    assert shown[0]["fleet"] == "sensors"
    assert len(shown[1]) == 4


def test_a_plan_of_an_older_supernet_is_refused(site: Site, tmp_path: Path) -> None:
    job, _ = site.plan(site.state / "sensors.json")
    told = json.loads(Path(str(job.fleet)).read_text())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**told, "supernet_sha256": "0" * 64}))
    with pytest.raises(UsageError, match=r"another supernet .* plan again"):
        run_job(replace(job, fleet=str(path)), site.grid)


def test_measurements_of_another_supernet_are_not_planned_from(site: Site, tmp_path: Path) -> None:
    newest = CheckpointStore(site.folder / "checkpoints").latest()
    assert newest is not None
    space, sha = site.config.build_space(), digest(newest.weights)
    samples = measured_subnets.samples(site.folder, sha, space)
    # The search's own, and what stood beside it, each once.
    assert len({(one.group, one.arch) for one in samples}) == len(samples) >= 16
    assert {one.group for one in samples} == {"1.big"}
    with pytest.raises(UsageError, match="before the run was trained on"):
        measured_subnets.samples(site.folder, "0" * 64, space)
    (tmp_path / measured_subnets.FILE).write_text('{"searches": 0}')
    with pytest.raises(UsageError, match="remove the file"):
        measured_subnets.samples(tmp_path, sha, space)


def test_the_command_shows_a_plan_and_refuses_what_does_not_go_together(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "config_of", lambda _path: site.config)
    arguments = ["specialize", "--state", str(site.state), "--plan-only"]
    asked = ["--fleet", str(site.state / "sensors.json"), "--artifacts", "5"]
    shown = CliRunner().invoke(cli.app, [*arguments, *asked])
    assert shown.exit_code == 0, shown.output
    for text in (
        "served: 62",
        "loss_of_predicted_accuracy.mean: ",
        "tiny: budget.file_bytes: no subnet",
    ):
        assert text in shown.output.replace("\n", " "), shown.output
    as_json = CliRunner().invoke(cli.app, [*arguments, *asked, "--json"])
    assert json.loads(as_json.output)["summary"]["served"] == 62
    refused = CliRunner().invoke(cli.app, arguments)
    assert isinstance(refused.exception, UsageError)
    assert "--plan-only goes with --fleet" in str(refused.exception)


def test_when_no_artifact_can_be_made_the_job_fails_with_a_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, plan = site.plan(site.state / "sensors.json", most=1)
    monkeypatch.setattr(export, "export_floats", export_or_crash_by_name)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("CRASHING", planned_report(plan)["artifacts"][0]["device_class"])
    with pytest.raises(RunError, match=r"no artifact could be published; .* ended by signal 6"):
        run_job(job, site.grid)


def test_fleet_commands_name_the_branches_that_a_run_has(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_command, "branch_names", lambda _folder: ["one", "two"])
    with pytest.raises(UsageError, match=r"has branches \(one, two\): say with --branch"):
        site.plan(site.state / "sensors.json")


def test_devices_of_4_bits_get_such_files_alone_and_of_the_size_that_was_planned(
    site: Site,
) -> None:
    path = site.state / "few.json"
    devices = [
        {"name": f"few-{k}", "runtime": "few", "budget": {"file_bytes": 6000 + 1500 * k}}
        for k in range(4)
    ]
    path.write_text(json.dumps({"runtimes": {"few": {"kind": "onnx_int4"}}, "devices": devices}))
    job, plan = site.plan(path, most=2)
    run_job(job, site.grid)
    found = delivered(job, plan)
    assert found["summary"]["served"] == 4
    told = json.loads((site.folder / "fleets/few/assignment.json").read_text())
    assert {row["kind"] for row in told["artifacts"]} == {"onnx_int4"}
    for row in told["devices"]:
        assert row["spends"]["file_bytes"] <= row["bounds"]["file_bytes"]
    for row in told["artifacts"]:
        assert 0.97 * row["predicted_bytes"] < row["size_bytes"] <= row["predicted_bytes"]
        manifest = Manifest.from_json(Path(row["manifest"]).read_bytes())
        assert [file.kind for file in manifest.files] == ["onnx_int4"]
        assert manifest.trainable is None
