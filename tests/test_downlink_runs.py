"""Whole runs whose devices are sent differences: bytes, repeated bits, and devices that fail."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedofa.client import update_task
from fedofa.client.codec.held import held_states
from fedofa.client.training import Trained
from fedofa.protos.device import Device
from fedofa.protos.held import HeldStates
from fedofa.server.config import RunConfig, parse_config
from fedofa.server.events import read_events
from fedofa.server.jobs import Job
from fedofa.server.outbox import HELD
from fedofa.server.simulate import simulate
from fedofa.supernet.axes import layout
from fedofa.supernet.errors import RunError, UsageError
from fedofa.supernet.weights import digest
from fleets import (
    Clients,
    Run,
    Trick,
    VirtualClock,
    grid_of,
    raising,
    sending,
    small_config,
    small_fleet,
    with_nan,
)

CALM = {"steps": 2, "students": "none", "lr": 0.05, "lr_schedule": "constant"}
FEW = {"recipe": CALM, "sampler": {"kind": "cover"}, "server": {"optimizer": "none"}}


def config_of(downlink: Any = "sparse", rounds: int = 4, **changes: Any) -> RunConfig:
    limits = {"rounds": rounds, **changes.pop("round", {})}
    return small_config(**{**FEW, "round": limits, "downlink": downlink, **changes})


def fleet_in(folder: Path) -> list[Device]:
    """Devices with a folder each."""
    return [
        replace(device, memory=str(folder / "memory" / device.name))
        for device in small_fleet(folder)
    ]


def run_in(folder: Path, config: RunConfig, app: Any = None, **options: Any) -> Run:
    arguments = [] if app is None else [app]
    return Run(folder, config, grid_of(fleet_in(folder), *arguments, **options))


honest = sending()


def tricked(tricks: Mapping[str, Trick], numbers: set[int]) -> Clients:
    """Devices that play their tricks in some rounds only."""

    def some(trick: Trick) -> Trick:
        def play(body: Any, values: Any, message: Any) -> Any:
            if body.round in numbers:
                return trick(body, values, message)
            return honest(body, values, message)

        return play

    return Clients({name: some(trick) for name, trick in tricks.items()})


def check_both_hold_the_same(run: Run) -> None:
    """The last state of each device is the server's last state of it."""
    space = run.training.space
    for device in fleet_in(run.folder):
        folder = run.store.folder / HELD / device.name
        theirs = HeldStates(folder, run.config.name, layout(space)).all()
        mine = held_states(device, run.config.name, space).all()
        assert theirs[-1] == mine[-1]


@pytest.mark.parametrize(("name", "least"), [("int8", 3), ("fedzip", 12), ("sparse", 25)])
def test_bytes_sent_are_those_that_travel_and_the_loss_still_falls(
    name: str, least: int, tmp_path: Path
) -> None:
    run = run_in(tmp_path / "coded", config_of(name)).start()
    plain = run_in(tmp_path / "plain", config_of(None)).start()
    mine, theirs = run.events("round"), plain.events("round")
    sent = [[event["bytes_sent"] for event in rounds] for rounds in (mine, theirs)]
    assert sent[0][0] == sent[1][0]
    # A subnet that reaches further than those before brings some values as they are.
    assert sum(sent[0][2:]) * 2 < sum(sent[1][2:])
    assert min(sent[0]) * least < min(sent[1])
    assert mine[-1]["loss"] < mine[0]["loss"]
    assert all(event["accepted"] == 3 for event in mine)
    check_both_hold_the_same(run)


def test_a_run_without_downlink_keeps_nothing_of_its_devices(tmp_path: Path) -> None:
    run = run_in(tmp_path, config_of(None, rounds=1)).start()
    assert not (run.store.folder / HELD).exists()
    assert not (tmp_path / "memory").exists()


@pytest.fixture
def idle_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that are asked after round 2 train nothing: what they send back is what they hold."""
    train = update_task.train

    def idle(task: Any, values: Any, x: Any, y: Any) -> Trained:
        return train(task, values, x, y) if task.key[1] <= 2 else Trained(1, 1.0, 1)

    monkeypatch.setattr(update_task, "train", idle)


def digests(run: Run) -> list[object]:
    return [run.store.read(number).notes["digest"] for number in run.store.rounds()]


@pytest.mark.usefixtures("idle_later")
def test_an_update_is_the_change_of_what_its_device_holds(tmp_path: Path) -> None:
    """Not of the weights as they are: these would be drawn back to what devices hold of them."""
    limits = {"keep_checkpoints": 99}
    run = run_in(tmp_path, config_of("sparsest", rounds=5, round=limits)).start()
    _, after_2, *others = digests(run)
    assert len(others) == 3
    assert set(others) == {after_2}


@pytest.mark.usefixtures("idle_later")
def test_a_stale_update_is_the_change_of_what_its_device_held_then(tmp_path: Path) -> None:
    limits = {"mode": "async", "buffer": 1, "deadline_s": 60.0, "keep_checkpoints": 99}
    clock = VirtualClock()
    grid = grid_of(fleet_in(tmp_path), paces=(1.0, 3.5, 1.5), clock=clock)
    run = Run(tmp_path, config_of("sparsest", rounds=14, round=limits), grid, clock).start()
    assert max(event["staleness"] for event in run.events("round")[7:]) > 0
    assert len(set(digests(run)[:6])) > 1
    assert len(set(digests(run)[6:])) == 1


class Killed(BaseException):
    """Whatever a client raises becomes its reply; this does not."""


def test_a_run_killed_in_a_round_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = run_in(tmp_path / "whole", config_of()).start()
    folder = tmp_path / "killed"

    def kill(*_: Any) -> Any:
        raise Killed

    with pytest.raises(Killed):
        run_in(folder, config_of(), tricked({"dev-1": kill}, {3})).start()
    again = run_in(folder, config_of())
    assert again.training.resume()
    assert again.training.round == 2
    again.start()
    assert digest(again.training.weights) == digest(whole.training.weights)
    mine, theirs = (run.events("round")[-1]["bytes_sent"] for run in (again, whole))
    assert mine == theirs
    check_both_hold_the_same(again)


def test_one_codec_holds_for_the_whole_run(tmp_path: Path) -> None:
    run_in(tmp_path, config_of(rounds=1)).start()
    for other in ("fedzip", None, {"name": "sparse", "keep": 0.1}):
        with pytest.raises(RunError, match="belongs to another configuration"):
            run_in(tmp_path, config_of(other)).training.resume()
    changed = {"name": "sparse", "devices": 7}
    assert run_in(tmp_path, config_of(changed)).training.resume()


def test_a_device_that_fails_is_sent_all_values_in_the_next_round(tmp_path: Path) -> None:
    run = run_in(tmp_path, config_of(rounds=4), tricked({"dev-0": raising}, {2})).start()
    assert [event["accepted"] for event in run.events("round")] == [3, 2, 3, 3]
    sent = [event["bytes_sent"] for event in run.events("round")]
    assert sent[2] > 2 * max(sent[1], sent[3])
    check_both_hold_the_same(run)


def test_a_device_that_is_late_is_sent_a_difference_all_the_same(tmp_path: Path) -> None:
    slow = {101}
    run = run_in(tmp_path, config_of(round={"deadline_s": 0.5}), slow=slow)
    run.roll.gather()
    slow.clear()
    reports = []
    for late in (False, True, False):
        slow |= {101} if late else set()
        reports.append(run.strategy._round())
        slow.clear()
    assert [report.missing for report in reports if report] == [0, 1, 0]
    sent = [report.bytes_sent for report in reports if report]
    assert 2 * sent[2] < sent[0]
    check_both_hold_the_same(run)


def test_an_update_of_wrong_values_is_refused_and_what_the_device_holds_still_counts(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path, config_of(rounds=3), tricked({"dev-0": sending(with_nan)}, {1})).start()
    sent = [event["bytes_sent"] for event in run.events("round")]
    assert [event["refused"] for event in run.events("round")] == [1, 0, 0]
    assert 2 * sent[1] < sent[0]


def test_versions_with_everybody_at_work_are_the_rounds_bit_for_bit(tmp_path: Path) -> None:
    rounds = run_in(tmp_path / "rounds", config_of()).start()
    limits = {"mode": "async", "buffer": 3}
    versions = run_in(tmp_path / "versions", config_of(round=limits)).start()
    assert digest(rounds.training.weights) == digest(versions.training.weights)
    sent = [[e["bytes_sent"] for e in run.events("round")] for run in (rounds, versions)]
    assert sent[0] == sent[1]


def test_a_private_run_may_send_differences(tmp_path: Path) -> None:
    config = config_of(
        rounds=2,
        sampler={"kind": "tiers"},
        aggregation={"weights": "uniform"},
        reputation={"strikes": 0},
        privacy={"epsilon": 8.0, "delta": 1e-3, "clip": 0.5, "mode": "local"},
    )
    run = run_in(tmp_path, config).start()
    assert [event["accepted"] for event in run.events("round")] == [3, 3]
    sent = [event["bytes_sent"] for event in run.events("round")]
    assert 2 * sent[1] < sent[0]


def test_a_simulated_run_goes_on_with_differences(tmp_path: Path) -> None:
    def job(rounds: int, *, resume: bool = False) -> Job:
        config = config_of("int8", rounds, simulation={"clients": {"big": 2, "small": 1}})
        return Job("train", str(tmp_path / "run"), config.model_dump(mode="json"), resume)

    simulate(job(2))
    simulate(job(3, resume=True))
    events = [event for event, _ in read_events(tmp_path / "run" / "events.jsonl")]
    sent = [int(str(event["bytes_sent"])) for event in events if event["event"] == "round"]
    assert len(sent) == 3
    assert 3 * sent[2] < 1.2 * sent[0]


@pytest.mark.parametrize(
    ("downlink", "words"),
    [
        ("zip", "downlink = 'zip': .*downlink 'zip' is unknown; known: exact"),
        ("exact", "would send every value in full, as is done without downlink; leave it out"),
        ({"levels": "uniform"}, "bits is missing"),
        ({"name": "sparse", "keep": 0}, "downlink.keep = 0"),
        ({"name": "int4", "rounding": "chance"}, "by chance on 4 bits, whose error can exceed"),
        ("qsgd", "step = 4 does not go with rounding = nearest"),
        ({"name": "sparse", "devices": 0}, "downlink.devices = 0"),
        ({"name": "sparse", "device": 5}, "unknown key 'device' in .downlink.; did you mean"),
        ({"name": "sparse", "error_memory": True}, "unknown key 'error_memory' in .downlink."),
    ],
)
def test_an_impossible_downlink_is_refused(downlink: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_config({"classes": {"phone": {}}, "downlink": downlink})


def test_a_downlink_comes_back_from_its_dump() -> None:
    for downlink in ("int4", "sparse", {"name": "int8", "rounding": "chance", "devices": 9}):
        config = config_of(downlink)
        assert parse_config(config.model_dump(mode="json")) == config
