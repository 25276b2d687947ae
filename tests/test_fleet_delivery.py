"""Delivering a fleet where making artifacts goes wrong: told truly, and what is whole is published."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fedofa.server import fleet_delivery, measured_sizes
from fedofa.server.chosen import Chosen
from fedofa.server.events import EventLog, read_events
from fedofa.server.fleet_delivery import Delivered, Delivery
from fedofa.server.fleet_plan import FleetPlan
from fedofa.specialize.filesize import predicted_size_bytes
from fedofa.specialize.fleet.demand import Bound, Demand
from fedofa.specialize.fleet.plan import Artifact, Placed, Plan
from fedofa.supernet.errors import RunError
from toy_search import ALL, TOY

KIND = "onnx_int8"
SIZE = f"file_bytes:{KIND}"


class Workshop:
    """Stands in for `Production`: each file has the size that is stated for it, if it can be made."""

    sizes: dict[str, int]
    broken: dict[str, Exception]

    def __init__(self, *_: Any) -> None:
        self.failed: dict[str, str] = {}
        self.names: list[str] = []

    def fail(self, name: str, reason: object) -> None:
        self.failed[name] = str(reason)
        if name in self.names:
            self.names.remove(name)

    def begin(self, chosen: Iterable[Chosen]) -> None:
        self.names = [one.name for one in chosen]

    def files(self, _converters: object, steps: Any) -> None:
        steps("exporting")
        for name in self.names:
            if name in self.broken:
                raise self.broken[name]

    def verify(self, _steps: object) -> dict[str, dict[str, int]]:
        for name in [name for name in self.names if name not in self.sizes]:
            self.fail(name, "the converter broke")
        return {name: {KIND: self.sizes[name]} for name in self.names}

    def publish(self, _publish: object, _tell: object, names: Iterable[str]) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.names if name in names]


def plan_of(count: int) -> FleetPlan:
    """As many artifacts, each a little smaller, and a device for each that takes no larger one."""
    artifacts = tuple(
        Artifact(KIND, ALL[place], 0.5, {"macs": 10.0, "params": float(count - place), SIZE: 100.0})
        for place in range(count)
    )
    placed = []
    for place in range(count):
        bounds = (Bound("file_bytes", 120.0, SIZE), Bound("params", float(count - place), "params"))
        placed.append(Placed(Demand(f"dev-{place}", KIND, bounds), place, 0.5))
    plan = Plan(artifacts, tuple(placed), (), (), count, {KIND: count}, count)
    return FleetPlan("f", "run", "sha", plan, (), {})


@pytest.fixture
def deliver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def work(plan: FleetPlan, sizes: dict[str, int], **broken: Exception) -> Delivered:
        monkeypatch.setattr(fleet_delivery, "Production", Workshop)
        monkeypatch.setattr(fleet_delivery, "ForkServer", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(fleet_delivery, "digest", lambda _weights: "sha")
        Workshop.sizes = sizes
        Workshop.broken = {
            plan.name_of(plan.plan.artifacts[int(k[1:])]): e for k, e in broken.items()
        }
        everything = dict.fromkeys(range(len(plan.plan.artifacts)))
        evaluator = SimpleNamespace(
            weights=None,
            space=TOY,
            statistics=lambda _targets: everything,
            accuracy=lambda _targets, _statistics: everything,
        )
        made: Any = Delivery(None, evaluator, None, EventLog(tmp_path / "log"))  # type: ignore[arg-type]
        return made.run(tmp_path, tmp_path / "registry", plan, "stable")

    return work


def test_a_device_whose_artifact_failed_is_told_so_and_not_that_nothing_fits(deliver: Any) -> None:
    plan = plan_of(3)
    names = [plan.name_of(one) for one in plan.plan.artifacts]
    done = deliver(plan, {names[0]: 110, names[1]: 130})
    assert [one.demand.device for one in done.placed] == ["dev-0"]
    told = {one.device: (one.field, one.reason) for one in done.not_served}
    assert told["dev-1"] == (
        "artifacts",
        f"its artifact {names[1]} has a file of 130 bytes, too large for it where at most 100 were "
        "reckoned with, and none of the others fits; plan again: plans reckon with such files from "
        "now on",
    )
    assert told["dev-2"] == (
        "artifacts",
        f"its artifact {names[2]} could not be made (the converter broke; see class_failed in the "
        "event log), and none of the others fits; put that right and plan again",
    )


def test_a_fleet_that_no_file_fits_is_planned_with_larger_files_from_then_on(
    deliver: Any, tmp_path: Path
) -> None:
    plan = plan_of(2)
    predicted = [predicted_size_bytes(KIND, TOY.layers(one.arch)) for one in plan.plan.artifacts]
    sizes = dict(
        zip(map(plan.name_of, plan.plan.artifacts), (3 * p for p in predicted), strict=True)
    )
    with pytest.raises(
        RunError, match=r"no artifact could be published; dev-0: .* plan again: plans"
    ):
        deliver(plan, sizes)
    assert measured_sizes.most(tmp_path) == {KIND: 3.0}


@pytest.mark.parametrize("error", [OSError("no space left"), RunError("too few replies")])
def test_a_batch_that_breaks_leaves_the_others(
    deliver: Any, error: Exception, tmp_path: Path
) -> None:
    plan = plan_of(40)
    names = [plan.name_of(one) for one in plan.plan.artifacts]
    done = deliver(plan, dict.fromkeys(names, 100), _20=error)
    assert list(done.made) == [*range(16), *range(32, 40)]
    assert len(done.placed) == 40  # whoever lost an artifact takes a smaller one
    steps = [event for event, _ in read_events(tmp_path / "log") if event["event"] == "step"]
    assert [event["done"] for event in steps] == [0, 1, 5, 6, 10, 11]
    with pytest.raises(RunError, match=f"no artifact could be published; .*{error}"):
        deliver(plan_of(1), {}, _0=error)
