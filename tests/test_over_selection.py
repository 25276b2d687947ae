"""Rounds that ask some of the devices, and that end when enough good updates are in."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fedofa.server.config import parse_config
from fedofa.server.ledger_report import by_device, verdict
from fedofa.server.local_grid import FIRST_NODE
from fedofa.server.round_config import RoundConfig
from fedofa.server.samplers.assigned import Round
from fedofa.server.samplers.growing import Growing
from fedofa.supernet.axes import put
from fedofa.supernet.errors import RunError, UsageError
from fedofa.supernet.weights import digest
from fleets import (
    Clients,
    Run,
    grid_of,
    raising,
    run_of,
    sending,
    small_config,
    small_fleet,
    with_nan,
)

SOME = ("big", "small", "small")
QUICK = {"steps": 1, "lr_schedule": "constant"}
MANY = ("big", "small", "small", "big", "small", "small", "big")


def fleet_run(folder: Path, app: Any = None, classes: Any = MANY, **fields: Any) -> Run:
    config = small_config(recipe=QUICK, round={"deadline_s": 60.0, **fields})
    return Run(folder, config, grid_of(small_fleet(folder, classes), app or Clients()))


# ── some of the devices ──────────────────────────────────────────────────────────────────────────


def test_a_round_asks_so_many_devices_and_every_one_gets_its_turn(tmp_path: Path) -> None:
    clients = Clients()
    run = fleet_run(tmp_path, clients, clients=3, rounds=2).start()
    assert Counter(number for number, _ in clients.passed) == {1: 3, 2: 3}
    again = fleet_run(tmp_path / "again", clients=3)
    again.roll.gather()
    drawn = [names_of(again) for again.training.round in range(12)]
    assert {len(names) for names in drawn} == {3}
    assert set().union(*drawn) == set(run.roll.fleet().members)
    assert drawn[:2] == [{n for at, n in clients.passed if at == k} for k in (1, 2)]


def names_of(run: Run) -> set[str]:
    return {m.name for m, _ in run.training.assignments(run.roll.fleet()).values()}


def test_asking_at_least_as_many_as_there_are_changes_no_bit(tmp_path: Path) -> None:
    whole = fleet_run(tmp_path / "whole", classes=SOME, rounds=2).start()
    some = fleet_run(tmp_path / "some", classes=SOME, rounds=2, clients=len(SOME)).start()
    assert digest(some.training.weights) == digest(whole.training.weights)


def test_who_is_drawn_does_not_hang_on_who_is_busy(tmp_path: Path) -> None:
    run = fleet_run(tmp_path, clients=3)
    run.roll.gather()
    fleet = run.roll.fleet()
    drawn = set(run.training.assignments(fleet))
    others = frozenset(fleet.by_node()) - drawn
    assert set(run.training.assignments(fleet, others)) == drawn
    gone = min(drawn)
    assert set(run.training.assignments(fleet, frozenset({gone}))) > drawn - {gone}


def test_what_is_decided_for_the_whole_fleet_sees_those_that_are_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Round] = []
    assign = Growing.assign

    def watched(self: Growing, this: Round) -> Any:
        seen.append(this)
        return assign(self, this)

    monkeypatch.setattr(Growing, "assign", watched)
    fleet_run(tmp_path, clients=2, rounds=1).start()
    assert [len(this.clients) for this in seen] == [2]
    assert {client.name for client in seen[0].fleet} == {f"dev-{k}" for k in range(len(MANY))}


def test_an_abandoned_round_asks_others_when_it_is_tried_again(tmp_path: Path) -> None:
    asked: list[set[str]] = []
    run = fleet_run(tmp_path, clients=2, min_replies=2, rounds=1)
    run.roll.gather()
    for _ in range(6):
        assignments = run.training.assignments(run.roll.fleet())
        asked.append({member.name for member, _ in assignments.values()})
        assert run.training.finish_round(assignments, run.roll.fleet(), []) is None
    assert len({frozenset(names) for names in asked}) > 2


def test_for_devices_that_cannot_hold_the_one_network_others_are_drawn(tmp_path: Path) -> None:
    config = small_config(
        recipe={**QUICK, "name": "fedavg"},
        round={"clients": 2},
        sampler={"kind": "single", "arch": dict(small_config().build_space().largest())},
    )
    run = Run(tmp_path, config, grid_of(small_fleet(tmp_path, MANY)))
    run.roll.gather()
    big = {f"dev-{place}" for place, kind in enumerate(MANY) if kind == "big"}
    drawn = [names_of(run) for run.training.round in range(12)]
    assert all(len(names) == 2 and names <= big for names in drawn)


@pytest.mark.parametrize("floor", [3, None])
def test_the_coverage_floor_works_with_those_that_are_asked(
    tmp_path: Path, floor: int | None
) -> None:
    """Only big devices, three of seven, can train all, and at times none of them is asked."""
    sampler = {"kind": "uniform", "coverage_floor": floor}
    config = small_config(recipe=QUICK, round={"clients": 3}, sampler=sampler)
    run = Run(tmp_path, config, grid_of(small_fleet(tmp_path, MANY)))
    run.roll.gather()
    training, late = run.training, []
    for training.round in range(30):
        trained = {n: torch.zeros(t.shape, dtype=torch.bool) for n, t in training.weights.items()}
        asked = training.assignments(run.roll.fleet()).values()
        for _, assigned in asked:
            for name, region in assigned.regions(training.space).items():
                put(trained[name], region, True)
        training.coverage.update(trained)
        if any(member.profile.device_class == "big" for member, _ in asked):
            late.append(training.coverage.oldest() >= 3)
    assert any(late) == (floor is None)


# ── enough replies ───────────────────────────────────────────────────────────────────────────────


def slow_run(folder: Path, slow: set[int], **fields: Any) -> Run:
    config = small_config(recipe=QUICK, round=fields)
    return Run(folder, config, grid_of(small_fleet(folder), slow=slow))


def test_a_round_with_enough_good_updates_waits_for_nobody(tmp_path: Path) -> None:
    slow = {FIRST_NODE + 1}
    run = slow_run(tmp_path / "a", slow, deadline_s=60.0, rounds=1, enough_replies=2).start()
    (closed,) = run.events("round_closed")
    assert (closed["accepted"], closed["not_awaited"]) == (2, ["dev-1"])
    (report,) = run.events("round")
    assert (report["accepted"], report["missing"]) == (2, 1)
    assert report["seconds"] < 30
    assert run.events("no_update") == []
    # It is at its old work, and gets nothing new before that is done.
    assert run.exchange.busy() == slow
    slow.clear()
    assert run.exchange.busy() == frozenset()
    late = slow_run(tmp_path / "b", {FIRST_NODE + 1}, deadline_s=0.3, rounds=1).start()
    assert digest(run.training.weights) == digest(late.training.weights)


def test_whoever_is_not_awaited_is_asked_again_when_its_late_reply_is_there(tmp_path: Path) -> None:
    clients = Clients()
    run = fleet_run(tmp_path, clients, SOME, enough_replies=2, rounds=4).start()
    assert [event["accepted"] for event in run.events("round")] == [2] * 4
    assert run.events("round_abandoned") == []
    # One process answers in order of name; the third works too late, and for nothing.
    assert {name for number, name in clients.passed if number == 1} == {"dev-0", "dev-1", "dev-2"}


def test_an_update_that_is_refused_is_none_of_the_good_ones(tmp_path: Path) -> None:
    clients = Clients({"dev-0": sending(with_nan), "dev-1": raising})
    run = fleet_run(tmp_path, clients, enough_replies=3, rounds=1).start()
    (report,) = run.events("round")
    assert (report["accepted"], report["refused"], report["missing"]) == (3, 1, 3)
    assert run.events("round_closed")[0]["not_awaited"] == ["dev-5", "dev-6"]


def test_a_share_of_all_that_is_awaited_anyway_changes_no_bit(tmp_path: Path) -> None:
    found = set()
    choices: list[dict[str, Any]] = [{}, {"enough_replies": 1.0}, {"enough_replies": 99}]
    for place, fields in enumerate(choices):
        run = fleet_run(tmp_path / str(place), classes=SOME, rounds=2, **fields).start()
        assert run.events("round_closed") == []
        found.add(digest(run.training.weights))
    assert len(found) == 1


def test_the_order_of_arrival_says_who_counts_and_not_how_sums_are_rounded(tmp_path: Path) -> None:
    found = []
    for place, polls in enumerate([{0: 1, 1: 2, 2: 9}, {0: 2, 1: 1, 2: 9}, {0: 9, 1: 1, 2: 2}]):
        folder = tmp_path / str(place)
        arrival = {FIRST_NODE + node: count for node, count in polls.items()}
        config = small_config(recipe=QUICK, round={"rounds": 1, "enough_replies": 2})
        run = Run(folder, config, grid_of(small_fleet(folder), polls=arrival)).start()
        found.append(digest(run.training.weights))
    assert found[0] == found[1] != found[2]


def test_too_few_good_updates_still_abandon_the_round(tmp_path: Path) -> None:
    clients = Clients({f"dev-{place}": raising for place in range(6)})
    run = fleet_run(tmp_path, clients, min_replies=2, enough_replies=2)
    with pytest.raises(RunError, match="min_replies = 2"):
        run.start()


def test_the_ledger_of_rounds_that_ended_early_is_whole(tmp_path: Path) -> None:
    config = small_config(recipe=QUICK, round={"rounds": 2, "clients": 3, "enough_replies": 0.6})
    devices = small_fleet(tmp_path, MANY)
    run = Run(tmp_path, config, grid_of(devices), keeps_ledger=True)
    run.training.begin()
    run.start()
    assert verdict(tmp_path)["ok"]
    rows = by_device(tmp_path)
    assert sum(row["accepted"] for row in rows) == 4
    assert sum(row["missing"] for row in rows) == 2
    assert sum(row["strikes"] for row in rows) == 0


# ── the configuration ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clients": 0}, "round.clients = 0"),
        ({"clients": 2, "min_replies": 3}, "round.clients = 2: fewer than min_replies = 3"),
        ({"enough_replies": 0}, "round.enough_replies = 0: .*a number of replies of at least 1"),
        ({"enough_replies": 1.5}, "round.enough_replies = 1.5: .*at most 1.0"),
        ({"enough_replies": True}, "round.enough_replies = True"),
        ({"enough_replies": "most"}, "round.enough_replies = 'most'"),
        ({"enough_replies": float("nan")}, "round.enough_replies = nan"),
        (
            {"clients": 5, "enough_replies": 6},
            "round.enough_replies = 6: only clients = 5 devices are asked",
        ),
        (
            {"min_replies": 3, "enough_replies": 2},
            "round.enough_replies = 2: 2 updates are fewer than min_replies = 3",
        ),
        (
            {"clients": 10, "min_replies": 6, "enough_replies": 0.5},
            "round.enough_replies = 0.5: 5 updates are fewer than min_replies = 6",
        ),
    ],
)
def test_an_impossible_choice_is_refused_by_its_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_config({"classes": {"phone": {}}, "round": fields})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "asked", "enough"),
    [
        ({}, 10, None),
        ({"enough_replies": 7}, 10, 7),
        ({"enough_replies": 7}, 5, 7),
        ({"enough_replies": 0.8}, 13, 11),
        ({"enough_replies": 0.07}, 100, 7),
        ({"enough_replies": 1}, 10, 1),
        ({"enough_replies": 1.0}, 10, 10),
        ({"enough_replies": 0.5, "min_replies": 3}, 2, 3),
    ],
)
def test_enough_is_a_number_or_a_share_of_the_asked(
    fields: dict[str, Any], asked: int, enough: int | None
) -> None:
    config = RoundConfig.model_validate(fields)
    assert config.enough(asked) == enough
    # A job is handed on as JSON: 1 and 1.0 must stay what they are.
    assert RoundConfig.model_validate_json(config.model_dump_json()).enough(asked) == enough


def test_how_many_are_asked_may_not_change_in_a_run_and_what_is_enough_may(tmp_path: Path) -> None:
    fleet_run(tmp_path, clients=3, rounds=2).start()
    assert fleet_run(tmp_path, clients=3, rounds=2, enough_replies=2).training.resume()
    with pytest.raises(RunError, match="another configuration"):
        fleet_run(tmp_path, clients=4, rounds=2).training.resume()
    whole = run_of(tmp_path / "whole", small_config(recipe=QUICK)).start()
    assert "clients" not in whole.training.fingerprint()["round"]  # type: ignore[operator]
