"""What goes wrong around a fleet's plan: whose fault it is is said, and the others go on."""

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fedofa.server import fleet_runtimes, measured_sizes, measured_subnets
from fedofa.server.accuracies import Accuracies
from fedofa.server.events import EventLog
from fedofa.server.fleet import Fleet
from fedofa.server.fleet_delivery import Delivered
from fedofa.server.fleet_demands import wanted
from fedofa.server.fleet_file import Rejected
from fedofa.server.fleet_job import settled_of
from fedofa.server.fleet_plan import FleetPlan, artifact_name, check_name, export_digest, planned
from fedofa.server.fleet_plan_file import read_plan, sweep_plans, write_plan
from fedofa.server.jobs import Job, awaited_plans
from fedofa.server.specialization import Specialization
from fedofa.specialize.filesize import predicted_size_bytes
from fedofa.specialize.fleet.columns import Seen
from fedofa.specialize.fleet.demand import Demand
from fedofa.specialize.fleet.plan import Artifact, Placed, Plan
from fedofa.specialize.fleet.settle import settled
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fleets import small_config
from test_fleet_file import SAMPLES, device, few_looks, fleet, measured_by, no_probes, rejected
from toy_search import ALL, TOY

__all__ = ["few_looks"]


def test_runs_that_share_a_registry_publish_the_same_subnet_for_classes_of_their_own() -> None:
    kind = "onnx_int8"
    names = {artifact_name((run, "s", "e"), kind, ALL[0]) for run in ("one", "two", "two.branch")}
    assert len(names) == 3
    assert artifact_name(("one", "s", "e"), kind, ALL[0]) in names
    assert artifact_name(("one", "s", "e"), kind, ALL[1]) not in names


def test_what_changes_a_file_changes_the_class_that_it_is_published_for(tmp_path: Path) -> None:
    """A device that pulls by class keeps a file that was compared with its bounds."""
    artifact = Artifact("onnx_int8", ALL[0], 0.5, {})
    plan = FleetPlan("f", "run", "a" * 64, Plan((), (), (), (), 0, {}, 0), (), {}, "/f.json", "b")
    changes: list[dict[str, str]] = [{}, {"supernet_sha256": "c" * 64}, {"export": "d"}]
    assert len({replace(plan, **change).name_of(artifact) for change in changes}) == 3  # type: ignore[arg-type]
    assert replace(plan, fleet="g", source="/g.json").name_of(artifact) == plan.name_of(artifact)
    assert read_plan(write_plan(tmp_path, plan), TOY).name_of(artifact) == plan.name_of(artifact)
    export = small_config().export
    digests = {export_digest(export), export_digest(export.model_copy(update={"equalize": True}))}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"macs_per_s": 1e-30}, "macs_per_s"),
        ({"budget": {"latency_ms": 1e-31}}, "budget.latency_ms"),
        ({"runtime": "mine", "budget": {"energy_mj": 1.0}}, "budget.energy_mj"),
        ({"runtime": "mine", "gateway": "hub"}, "budget.energy_mj"),
        ({"runtime": "zero", "budget": {"macs": 1}}, "runtimes.zero.measurements"),
        ({"runtime": "half", "budget": {"macs": 1}}, "runtimes.half.measurements"),
    ],
)
def test_one_absurd_figure_rejects_its_own_device(fields: dict[str, Any], field: str) -> None:
    runtimes = {
        "mine": {"kind": "onnx_fp32", "macs_per_s": 1e9, "power_w": 1e-100},
        "zero": {"kind": "onnx_fp32", "measurements": "a\u0000b"},
        "half": {"kind": "onnx_fp32", "measurements": "\ud800"},
    }
    gateways = {"hub": {"budget": {"energy_mj": 5.0}}}
    found = rejected(fleet(device(**fields), runtimes=runtimes, gateways=gateways))
    assert found.keys() == {"bad"}
    assert found["bad"].startswith(f"{field}: "), found["bad"]
    found["bad"].encode()


def predicted_bytes(one: Artifact) -> int:
    return predicted_size_bytes(one.kind, TOY.layers(one.arch))


def test_a_thousand_devices_of_one_budget_are_served_where_files_err_as_is_stated() -> None:
    """The best subnet under a bound lies right at it: its file may be as much larger as is stated."""
    budget = {"file_bytes": predicted_size_bytes("tflite_int8", TOY.layers(ALL[len(ALL) // 2]))}
    devices = [device(name=f"d{k}", runtime="fast", budget=budget) for k in range(1000)]
    asked = wanted(fleet(*devices), Path(), TOY, no_probes)
    plan, not_served = planned(fleet(*devices), asked, ("linear", SAMPLES), 64, seed=0)
    assert not not_served
    sizes = {at: int(1.0199 * predicted_bytes(one)) for at, one in enumerate(plan.artifacts)}
    placed, refused = settled(plan.artifacts, sizes, plan.placed)
    assert (len(placed), refused) == (1001, [])


def test_what_files_were_over_their_prediction_is_kept_and_planned_with(tmp_path: Path) -> None:
    assert measured_sizes.most(tmp_path) == {}
    measured_sizes.note(tmp_path, {}, [("onnx_int8", 0.9), ("onnx_int8", 1.5)])
    measured_sizes.note(tmp_path, measured_sizes.most(tmp_path), [("onnx_int8", 1.2)])
    assert measured_sizes.most(tmp_path) == {"onnx_int8": 1.5}
    figures = wanted(fleet(), Path(), TOY, no_probes, {"onnx_int8": 1.5}).columns.figures
    seen = Seen(ALL[3], TOY.layers(ALL[3]), cost(TOY, ALL[3]))
    for kind, ratio in (("onnx_int8", 1.5 * 1.02), ("onnx_fp32", 1.02)):
        predicted = predicted_size_bytes(kind, seen.plans)  # type: ignore[arg-type]
        assert figures[f"file_bytes:{kind}"](seen) == math.ceil(ratio * predicted)
    for damage in ("{", '{"onnx_int8": 0}', '{"onnx_int8": NaN}', '{"gguf": 1.0}'):
        (tmp_path / measured_sizes.FILE).write_text(damage)
        with pytest.raises(UsageError, match="remove it and plan again"):
            measured_sizes.most(tmp_path)


@pytest.mark.parametrize("odd", [float("nan"), -1.0, float("inf")])
@pytest.mark.parametrize("ends", [True, False])
def test_a_runtime_whose_latency_is_predicted_as_no_number_rejects_its_own_devices(
    odd: float, ends: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, real = measured_by(1e9, tmp_path), fleet_runtimes.device_latency

    def broken(*arguments: Any) -> Any:
        found = real(*arguments)

        class Odd:
            method, errors = found.method, found.errors

            def predict(self, arch: Any) -> float:
                whole = not ends and arch in (TOY.smallest(), TOY.largest())
                return 1.0 if whole else odd

        return Odd()

    monkeypatch.setattr(fleet_runtimes, "device_latency", broken)
    runtimes = {"phone": {"kind": "tflite_int8", "measurements": "phone.json"}}
    bad = device(runtime="phone", budget={"latency_ms": 5.0})
    found = rejected(fleet(bad, runtimes=runtimes), tmp_path, lambda: probes)
    assert found.keys() == {"bad"}
    assert ("measure it again" if ends else "no subnet fits") in found["bad"]


@pytest.mark.parametrize("kind", [Accuracies, Specialization])
@pytest.mark.parametrize("damage", ["{", '{"searches": 0}', "folder"])
def test_damaged_measurements_are_told_before_anything_is_searched(
    kind: Any, damage: str, tmp_path: Path
) -> None:
    path = tmp_path / measured_subnets.FILE
    if damage == "folder":
        path.mkdir()
    else:
        path.write_text(damage)
    config = small_config()
    space = config.build_space()
    weights: Any = {}
    state: Any = SimpleNamespace(round=1, weights=weights)
    log = EventLog(tmp_path / "log")
    nobody: Any = Fleet({})
    of = state if kind is Accuracies else weights
    work = kind(config, space, of, SimpleNamespace(), nobody, log)
    arguments = [tmp_path] if kind is Accuracies else [tmp_path, tmp_path / "registry"]
    with pytest.raises(UsageError, match=r"measured.json: .*; remove .* and measure"):
        work.run(*arguments)
    assert not log.path.exists()


@pytest.mark.parametrize("name", ["...json", ".json", "a b.json", "a\n.json", "x" * 65, "é.json"])
def test_a_fleet_whose_file_cannot_name_a_folder_is_refused(name: str) -> None:
    check_name(Path("sensors-2.v1.json"))
    with pytest.raises(UsageError, match="Rename the file"):
        check_name(Path("folder") / name)


def test_a_plan_replaces_neither_another_fleets_nor_one_that_a_job_reads(tmp_path: Path) -> None:
    plan = Plan((), (), (), (), 0, {}, 0)
    first = FleetPlan("f", "run", "sha", plan, (), {"measured_subnets": 10}, "/one/f.json")
    later = replace(first, known={"measured_subnets": 20})
    of_job = write_plan(tmp_path, first)
    assert write_plan(tmp_path, later) != of_job
    assert read_plan(of_job, TOY) == first
    assert read_plan(tmp_path / "fleets/f/plan.json", TOY) == later
    with pytest.raises(UsageError, match=r"is of the fleet /one/f.json, and /two/f.json would"):
        write_plan(tmp_path, replace(first, source="/two/f.json"))
    assert read_plan(tmp_path / "fleets/f/plan.json", TOY) == later
    (tmp_path / "fleets/f/plan.json").write_text("{}")
    write_plan(tmp_path, replace(first, source="/two/f.json"))


def test_a_settled_plan_sweeps_older_ones_that_no_job_waits_for(tmp_path: Path) -> None:
    plan = Plan((), (), (), (), 0, {}, 0)
    first = FleetPlan("f", "run", "sha", plan, (), {"measured_subnets": 0}, "/one/f.json")
    made = []
    for place in range(5):
        path = write_plan(tmp_path, replace(first, known={"measured_subnets": place}))
        os.utime(path, ns=(place, place))
        made.append(path)
    other = write_plan(tmp_path, replace(first, fleet="g"))
    os.utime(other, ns=(0, 0))
    job = Job("specialize", str(tmp_path), {}, fleet=str(made[1]))
    submitted = job.write()
    sweep_plans(made[3], awaited_plans(tmp_path))
    assert [path for path in made if path.exists()] == [made[1], made[3], made[4]]
    submitted.unlink()
    sweep_plans(made[3], awaited_plans(tmp_path))
    assert [path for path in made if path.exists()] == made[3:]
    assert other.exists()
    assert read_plan(tmp_path / "fleets/f/plan.json", TOY).known == {"measured_subnets": 4}


def test_a_name_that_is_served_is_not_refused_by_a_row_that_repeats_it() -> None:
    reject = [
        Rejected("pi", "name", "devices[0] has this name too"),
        Rejected("devices[3]", "fields", "no object"),
        Rejected("odd", "budget.macs", "below 0"),
        Rejected("odd", "name", "devices[4] has this name too"),
    ]
    placed = Placed(Demand("pi", "onnx_int8", ()), 2, 0.5)
    made: Any = SimpleNamespace(manifest=SimpleNamespace(model="run.c", version=7))
    plan = FleetPlan("f", "run", "sha", Plan((), (), (), (), 0, {}, 0), (), {})
    done = Delivered(plan, {2: (made, made)}, (placed,), tuple(reject), 0)
    found = settled_of(done)
    assert (found.run, found.fleet, found.served) == ("run", "f", {"pi": ("run.c", 7)})
    assert found.not_served == {"odd": "budget.macs: below 0"}
