"""Whole runs with branches: who trains which, what stays untouched, and that runs go on as they were."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fedofa.client.app import app as honest_app
from fedofa.protos.device import DataSource, Device
from fedofa.server.branches.copies import Copies
from fedofa.server.branches.trained import chosen, explained, trained
from fedofa.server.branches.training import BranchedTraining
from fedofa.server.checkpoint import CHECKPOINTS, CheckpointStore
from fedofa.server.config import RunConfig
from fedofa.server.events import EventLog, read_events
from fedofa.server.exchange import Exchange
from fedofa.server.fleet import Roll
from fedofa.server.jobs import Job, run_job
from fedofa.server.ledger_report import verdict
from fedofa.server.operate import results
from fedofa.server.strategy import SupernetStrategy
from fedofa.supernet.errors import RunError, UsageError
from fedofa.supernet.weights import digest, initial
from fleets import SPEEDS, Clients, Run, grid_of, raising, run_of, small_config, small_fleet

COALITIONS: dict[str, Any] = {"by": "coalitions", "c": 4.0}
CALM = {"steps": 2, "students": "none", "lr": 0.05}
SEARCH = {"samples": 8, "population": 4, "generations": 1, "finalists": 1, "random_baseline": 1}


def config_of(branches: object, **sections: Any) -> RunConfig:
    return small_config(**{"recipe": CALM, "branches": branches, "search": SEARCH, **sections})


def fleet(folder: Path, devices: int = 4, silent: Sequence[int] = ()) -> list[Device]:
    """Devices of two groups with classes of their own, which they tell, but for the silent ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, said in (("telling", "true"), ("silent", "false")):
        (folder / f"{name}.toml").write_text(SPEEDS + f"share_labels = {said}\n")
    return [
        Device(
            name=f"dev-{place}",
            device_class="small" if place == 1 else "big",
            source=DataSource("grouped_digits:load", None, place, devices, {"unlike": "labels"}),
            profile=str(folder / f"{'silent' if place in silent else 'telling'}.toml"),
        )
        for place in range(devices)
    ]


@dataclass
class Branched:
    """A run with branches in a folder, for some rounds."""

    folder: Path
    config: RunConfig
    devices: Sequence[Device]
    app: Any = honest_app

    def __post_init__(self) -> None:
        space = self.config.build_space()
        log = EventLog(self.folder / "events.jsonl")
        grid = grid_of(self.devices, self.app)
        exchange = Exchange(grid, poll_s=0.01)
        assert self.config.branches is not None
        self.training = BranchedTraining(self.config, self.config.branches, space, self.folder, log)
        self.roll = Roll(exchange, space, self.config, log)
        self.strategy = SupernetStrategy(self.training, self.roll, exchange, log)

    def start(self) -> "Branched":
        self.strategy.start(self.strategy._exchange.grid)
        return self

    @property
    def digests(self) -> dict[str, str]:
        return {name: digest(part.weights) for name, part in self.training.parts.items()}

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e, _ in read_events(self.folder / "events.jsonl") if e["event"] == kind]


ONE = [{"by": "coalitions", "c": 1e6}, {"by": "architecture", "copies": 1}]


@pytest.mark.parametrize("branches", ONE, ids=["coalitions", "architecture"])
def test_one_branch_is_the_plain_run_bit_for_bit(branches: object, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "round": {"clients": 3},
        "sampler": {"kind": "importance"},
        "server": {"optimizer": "adam"},
        "codec": {"name": "sparse"},
    }
    devices = fleet(tmp_path)
    found = Branched(tmp_path, config_of(branches, **sections), devices).start()
    plain = run_of(tmp_path / "plain", small_config(recipe=CALM, **sections))
    plain = type(plain)(tmp_path / "plain", plain.config, grid_of(devices)).start()
    assert list(found.digests.values()) == [digest(plain.training.weights)]
    mine, theirs = found.events("round"), plain.events("round")
    for event in (*mine, *theirs):
        for name in ("time", "seconds", "branch"):
            event.pop(name, None)
    assert mine == theirs


def test_devices_are_divided_by_what_they_have_and_each_branch_has_its_own_answers(
    tmp_path: Path,
) -> None:
    app = Clients()
    run = Branched(tmp_path, config_of(COALITIONS), fleet(tmp_path, silent=[3]), app).start()
    (planned,) = run.events("coalitions")
    divided = [set(one["devices"]) for one in planned["coalitions"]]
    assert sorted(map(sorted, divided)) == [["dev-0", "dev-2"], ["dev-1"]]
    (placed,) = run.events("device_placed")
    assert placed["device"] == "dev-3"
    assert "tells no labels" in placed["reason"]
    assert placed["branch"] == "coalition-1"  # the largest
    rounds = run.events("round")
    assert [(e["round"], e["branch"], e["accepted"]) for e in rounds] == [
        (number, branch, accepted)
        for number in (1, 2)
        for branch, accepted in (("coalition-1", 3), ("coalition-2", 1))
    ]
    why = {one["branch"]: one for one in planned["coalitions"]}
    assert why["coalition-1"]["untrained"] == {"share": 0.0, "tensors": ""}
    assert why["coalition-2"]["untrained"]["share"] > 0  # it has but a small device
    assert why["coalition-2"]["untrained"]["tensors"]


def test_a_coalition_trains_as_a_run_of_its_own_devices_would(tmp_path: Path) -> None:
    classes: dict[str, Any] = {"big": {}}
    devices = [replace(device, device_class="big") for device in fleet(tmp_path)]
    run = Branched(tmp_path, config_of(COALITIONS, classes=classes), devices).start()
    planned = run.events("coalitions")[0]["coalitions"]
    assert len(planned) == 2
    for one in planned:
        mine = [device for device in devices if device.name in one["devices"]]
        config = small_config(recipe=CALM, classes=classes)
        alone = Run(tmp_path / one["branch"], config, grid_of(mine)).start()
        assert digest(alone.training.weights) == run.digests[one["branch"]]


def test_a_branch_without_good_updates_keeps_its_bytes_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    app = Clients({"dev-1": raising, "dev-3": raising})
    run = Branched(tmp_path, config_of(COALITIONS), fleet(tmp_path), app).start()
    first = digest(initial(run.training.space, 0))
    (planned,) = run.events("coalitions")
    branches = {tuple(one["devices"]): one["branch"] for one in planned["coalitions"]}
    alone = branches["dev-1", "dev-3"]
    assert run.digests[alone] == first
    (other,) = set(run.digests) - {alone}
    assert run.digests[other] != first
    part = run.training.parts[alone]
    assert part.round == run.training.round == 2
    assert part.coverage.oldest() == 2
    assert {e["branch"] for e in run.events("round_abandoned")} == {alone}
    for name in run.digests:  # a round that a branch rests in is entered too
        assert verdict(tmp_path / "branches" / name)["round"] == 2


def test_a_round_in_which_no_branch_gets_on_is_abandoned(tmp_path: Path) -> None:
    tricks = {f"dev-{place}": raising for place in range(4)}
    run = Branched(tmp_path, config_of(COALITIONS), fleet(tmp_path), Clients(tricks))
    with pytest.raises(RunError, match="abandoned 3 times"):
        run.start()
    assert run.training.round == 0
    assert CheckpointStore(tmp_path / CHECKPOINTS).rounds() == []


BOTH: list[dict[str, Any]] = [COALITIONS, {"by": "architecture", "copies": 2, "axis": "s1.depth"}]


@pytest.mark.parametrize("branches", BOTH, ids=["coalitions", "architecture"])
def test_a_run_that_is_resumed_is_the_one_that_was_not_stopped(
    branches: dict[str, Any], tmp_path: Path
) -> None:
    sections: dict[str, Any] = {"sampler": {"kind": "cover"}, "server": {"optimizer": "adam"}}
    whole = Branched(
        tmp_path / "whole", config_of(branches, round={"rounds": 3}, **sections),
        fleet(tmp_path),
    ).start()  # fmt: skip
    folder = tmp_path / "stopped"
    config = config_of(branches, round={"rounds": 3, "keep_checkpoints": 1}, **sections)
    stopped = Branched(folder, config, fleet(tmp_path))
    stopped.roll.gather()
    for _ in range(2):
        stopped.strategy._round()
    # Killed after the branches' checkpoints, before the run's own.
    store = CheckpointStore(folder / CHECKPOINTS)
    noted = store.read(2)
    stopped.strategy._round()
    store.write(noted)
    store._remove(folder / CHECKPOINTS / "round-000003")
    again = Branched(folder, config, fleet(tmp_path))
    assert again.training.resume()
    assert again.training.round == 2
    again.start()
    assert again.digests == whole.digests
    for name in again.digests:
        assert verdict(folder / "branches" / name)["ok"]
    change = {"c": 5.0} if "c" in branches else {"copies": 3}
    other = Branched(folder, config_of({**branches, **change}), fleet(tmp_path))
    with pytest.raises(RunError, match="another \\[branches\\] table"):
        other.training.resume()


def test_each_copy_sends_the_difference_from_what_a_device_holds_of_that_copy(
    tmp_path: Path,
) -> None:
    by = {"by": "architecture", "copies": 2, "axis": "s1.depth"}
    # A device's subnet is the same in every round: what it was once sent is all that it needs.
    config = config_of(by, downlink="sparse", sampler={"kind": "tiers"}, round={"rounds": 6})
    devices = [replace(one, memory=str(tmp_path / one.name)) for one in fleet(tmp_path)]
    app = Clients()
    run = Branched(tmp_path, config, devices, app).start()
    owned: set[tuple[str, str]] = set()
    again = 0
    for event in run.events("round"):
        assert event["missing"] == 0
        most = 0.0
        for (number, device), (body, values) in app.passed.items():
            if number == event["round"] and body.run == f"tiny.{event['branch']}":
                known = (body.run, device) in owned
                most += values.nbytes / 10 if known else values.nbytes
                again += known
                owned.add((body.run, device))
        assert event["bytes_sent"] <= most
    assert again >= 8  # the other rounds of four devices that meet two copies
    held = {path.name for path in tmp_path.glob("dev-*/held/*")}
    assert held == {"tiny.copy-1", "tiny.copy-2"}


def test_each_copy_is_changed_by_its_own_assignments_only(tmp_path: Path) -> None:
    config = config_of({"by": "architecture", "copies": 2, "axis": "s1.depth"})
    app = Clients()
    run = Branched(tmp_path, config, fleet(tmp_path), app)
    run.roll.gather()
    fleet_, used = run.roll.fleet(), set()
    for number in (1, 2):
        assigned = run.training.assignments(fleet_)
        owners = {
            member.name: run.training.router.branch(member, a, number)
            for member, a in assigned.values()
        }
        used |= set(owners.values())
        before = {n: dict(p.weights) for n, p in run.training.parts.items()}
        assert run.strategy._round() is not None
        for name, part in run.training.parts.items():
            mine = [a for m, a in assigned.values() if owners[m.name] == name]
            for tensor, value in part.weights.items():
                untouched = torch.ones(value.shape, dtype=torch.bool)
                for one in mine:
                    where = one.regions(run.training.space)
                    if tensor in where:
                        untouched[where[tensor]] = False
                same = before[name][tensor][untouched] == value[untouched]
                assert same.all()
            assert bool(mine) == (digest(part.weights) != digest(before[name]))
    assert used == {"copy-1", "copy-2"}
    assert {body.run for body, _ in app.passed.values()} == {f"tiny.{name}" for name in used}
    told = run.events("divided")
    assert [e["round"] for e in told] == [1, 2]
    assert [row["configuration"] for row in told[0]["rows"]] == ["s1.depth=1", "s1.depth=2"]
    assert [row["probabilities"] for row in told[0]["rows"]] == [[0.5, 0.5]] * 2  # nothing known
    router = run.training.router
    assert isinstance(router, Copies)
    assert (router._v_am <= 1).all()
    assert (router._v_am < 1).any()


def test_copies_begin_apart_and_the_first_like_a_plain_run(tmp_path: Path) -> None:
    run = Branched(tmp_path, config_of(BOTH[1]), fleet(tmp_path))
    run.roll.gather()
    run.training.assignments(run.roll.fleet())
    plain = run_of(tmp_path / "plain", small_config()).training
    assert run.digests["copy-1"] == digest(plain.weights) != run.digests["copy-2"]


def test_coalitions_from_a_file_of_distances_and_later_devices(tmp_path: Path) -> None:
    path = tmp_path / "distances.json"
    far = {f"dev-{a}": {f"dev-{b}": float((a < 2) != (b < 2)) for b in range(a)} for a in range(4)}
    path.write_text(json.dumps({k: v for k, v in far.items() if v}))
    devices = fleet(tmp_path, silent=range(4))
    config = config_of({**COALITIONS, "distances": str(path)})
    run = Branched(tmp_path, config, devices[:3])
    run.roll.gather()
    run.training.assignments(run.roll.fleet())
    divided = {one["branch"]: one["devices"] for one in run.training.router.explained(1)}
    assert sorted(divided.values()) == [["dev-0", "dev-1"], ["dev-2"]]
    later = Branched(tmp_path / "later", config, devices)
    later.training.router.restore(run.training.router.memory)
    later.roll.gather()
    later.training.router.settle(later.roll.fleet(), EventLog(tmp_path / "log"))
    found = {one["branch"]: one["devices"] for one in later.training.router.explained(1)}
    assert sorted(found.values()) == [["dev-0", "dev-1"], ["dev-2", "dev-3"]]


def test_coalitions_that_cannot_be_planned_are_refused_before_any_round(tmp_path: Path) -> None:
    run = Branched(tmp_path / "a", config_of(COALITIONS), fleet(tmp_path, silent=range(4)))
    with pytest.raises(UsageError, match="no device tells its label counts"):
        run.start()
    config = config_of(COALITIONS, round={"min_replies": 3})
    run = Branched(tmp_path / "b", config, fleet(tmp_path))
    with pytest.raises(UsageError, match=r"round\.min_replies = 3: the coalition of dev-"):
        run.start()


def test_some_devices_of_each_coalition_are_asked(tmp_path: Path) -> None:
    config = config_of(COALITIONS, round={"rounds": 8, "clients": 2})
    run = Branched(tmp_path, config, fleet(tmp_path))
    run.roll.gather()
    fleet_, asked = run.roll.fleet(), []
    for number in range(8):
        for part in run.training.parts.values():
            part.round = number
        run.training.round = number
        asked.append({m.name for m, _ in run.training.assignments(fleet_).values()})
    assert {len(one) for one in asked} == {2}
    assert set().union(*asked) == set(fleet_.members)


def test_a_branch_is_evaluated_on_its_own_devices(tmp_path: Path) -> None:
    config, devices = config_of(COALITIONS, round={"rounds": 1}), fleet(tmp_path)
    folder, fields = tmp_path / "run", config.model_dump(mode="json")
    seen = _Evaluated()
    run_job(Job("train", str(folder), fields, evaluate=True), grid_of(devices, seen))
    names = chosen(folder, None)
    assert names == ["coalition-1", "coalition-2"]
    rows = explained(folder, config)
    assert [row["branch"] for row in rows] == names
    job = Job("evaluate", str(folder), fields)
    found = results(job, "accuracies.json")
    classes = {row["branch"]: set[str]() for row in found}
    for row in found:
        classes[row["branch"]].add(row["class"])
    small = next(row["branch"] for row in rows if "dev-1" in row["devices"])
    assert classes[small] == {"big", "small"}  # dev-1 and dev-3
    assert classes[({*names} - {small}).pop()] == {"big"}
    seen.names.clear()
    run_job(Job("evaluate", str(folder), fields, branch=small), grid_of(devices, seen))
    assert seen.names == {"dev-1", "dev-3"}
    one = trained(folder, config, small)
    assert one.config.name == f"tiny.{small}"
    assert one.channel == small
    with pytest.raises(UsageError, match="there are coalition-1, coalition-2"):
        chosen(folder, "coalition-9")


class _Evaluated:
    """The ClientApp; remembers which devices were asked to evaluate."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, message: Any, context: Any) -> Any:
        from fedofa.client.device import of_node

        if message.metadata.message_type.startswith("evaluate"):
            self.names.add(of_node(context.node_config, context.run_config).name)
        return honest_app(message=message, context=context)


def test_a_run_without_branches_has_none(tmp_path: Path) -> None:
    run = run_of(tmp_path, small_config(recipe=CALM, round={"rounds": 1})).start()
    assert chosen(tmp_path, None) == [None]
    with pytest.raises(UsageError, match="the run has no branches"):
        chosen(tmp_path, "coalition-1")
    with pytest.raises(UsageError, match=r"has no \[branches\]"):
        explained(tmp_path, run.config)
    assert not (tmp_path / "branches").exists()
    assert len(small_fleet(tmp_path)) == 3
