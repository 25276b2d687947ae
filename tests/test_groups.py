"""Groups fold updates as they arrive: the same weights, books and figures as one process, or less."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fedofa.benchmarks.groups import Fed
from fedofa.server.config import RunConfig
from fedofa.server.groups import pool
from fedofa.server.groups.memory import Room, Shared
from fedofa.server.local_grid import FIRST_NODE
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

CLASSES = ("big", "small", "small", "big")
EXACT = {"accumulate": "float64"}


def config(groups: int | None, **changes: Any) -> RunConfig:
    limits = {"rounds": 2, **changes.pop("round", {})}
    if groups is not None:
        limits["groups"] = groups
    fields = {"aggregation": EXACT, "recipe": {"steps": 1}, **changes}
    return small_config(round=limits, **fields)


def trained(folder: Path, given: RunConfig, app: Any = None, **options: Any) -> Run:
    devices = small_fleet(folder, CLASSES)
    grid = grid_of(devices, app or Clients(), **options)
    run = Run(folder, given, grid, keeps_ledger=True)
    run.training.begin()
    return run.start()


def told(run: Run) -> list[Any]:
    """What the event log says, but for times."""
    kinds = ("update_refused", "no_update", "round", "round_closed", "aggregation_note")
    return [
        {key: value for key, value in event.items() if key not in ("time", "seconds")}
        for kind in kinds
        for event in run.events(kind)
    ]


def recorded(run: Run) -> list[Any]:
    """What the ledger says of each round's updates."""
    with (run.folder / "ledger.jsonl").open() as lines:
        entries = [json.loads(line)["body"] for line in lines]
    keys = ("kind", "assigned", "accepted", "refused", "missing", "before", "after")
    return [{key: entry.get(key) for key in keys} for entry in entries if "assigned" in entry]


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "codec": {"codec": "int8"},
    "size": {"aggregation": {**EXACT, "weights": "uniform", "size_power": 1.0}},
    "share": {"share": "local-bn"},
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("size", "share")]


@pytest.mark.parametrize("name", ["plain", "codec", *SLOW])
def test_with_float64_sums_groups_give_the_bits_and_the_books_of_one_process(
    tmp_path: Path, name: str
) -> None:
    clients = {"dev-1": sending(with_nan), "dev-2": raising}
    changes = CHANGES[name]
    if name == "codec":  # its values are bytes
        clients = {"dev-1": sending(lambda v: v[:-1]), "dev-2": raising}
    flat = trained(tmp_path / "flat", config(None, **changes), Clients(clients))
    polls = {FIRST_NODE: 3, FIRST_NODE + 3: 1}
    mine = config(2, **changes)
    found = trained(tmp_path / "two", mine, Clients(clients), polls=polls)
    assert digest(found.training.weights) == digest(flat.training.weights)
    assert told(found) == told(flat)
    assert recorded(found) == recorded(flat)
    assert [event["accepted"] for event in found.events("round")] == [2, 2]
    assert found.training.groups is not None
    assert not found.training.groups.processes


def test_with_float32_sums_groups_differ_by_rounding_only(tmp_path: Path) -> None:
    plain = {"accumulate": "float32"}
    flat = trained(tmp_path / "flat", config(None, round={"rounds": 1}, aggregation=plain))
    found = trained(tmp_path / "two", config(3, round={"rounds": 1}, aggregation=plain))
    for name, value in flat.training.weights.items():
        gap = float((found.training.weights[name] - value).abs().max())
        assert gap <= 1e-6 * max(1.0, float(value.abs().max())), name


def test_a_round_in_groups_ends_with_enough_updates(tmp_path: Path) -> None:
    limits = {"rounds": 1, "enough_replies": 2}
    run = trained(tmp_path, config(2, round=limits), Clients({"dev-0": sending(with_nan)}))
    (report,) = run.events("round")
    assert (report["accepted"], report["refused"], report["missing"]) == (2, 1, 1)
    (closed,) = run.events("round_closed")
    assert closed["not_awaited"] == ["dev-3"]


def test_devices_of_few_bits_are_merged_by_sign_as_without_groups(tmp_path: Path) -> None:
    found = []
    for groups in (None, 2):
        folder = tmp_path / str(groups)
        devices = small_fleet(folder, CLASSES)
        few = folder / "few.toml"
        few.write_text((folder / "profile.toml").read_text() + "train_bits = 4\n")
        devices[1] = devices[1].__class__(
            **{**{f: getattr(devices[1], f) for f in devices[1].__slots__}, "profile": str(few)}
        )
        run = Run(folder, config(groups), grid_of(devices)).start()
        found.append(digest(run.training.weights))
    assert found[0] == found[1]


def killing(run: list[Run]) -> Callable[..., Any]:
    """When this device answers first, a group that has added up an update is killed."""
    done: list[int] = []

    def trick(body: Any, values: Any, message: Any) -> Any:
        groups = run[0].training.groups
        assert groups is not None
        if not done:
            done.append(groups._groups[0].process.pid)
            assert groups._groups[0].told
            assert _until(groups._groups[0].pipe.poll, 150)  # it has said so
            os.kill(done[0], signal.SIGKILL)
            assert _until(lambda: not _lives(done[0]))
        return sending()(body, values, message)

    return trick


def _until(true: Callable[[], bool], wait_s: float = 60.0) -> bool:
    end = time.monotonic() + wait_s
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@pytest.mark.timeout(500)
def test_what_was_in_a_group_that_was_killed_is_missing_and_the_round_goes_on(
    tmp_path: Path,
) -> None:
    run: list[Run] = []
    devices = small_fleet(tmp_path, CLASSES)
    app = Clients({"dev-3": killing(run)})
    run.append(Run(tmp_path, config(2), grid_of(devices, app), keeps_ledger=True))
    run[0].training.begin()
    run[0].start()
    first, second = run[0].events("round")
    lost = run[0].events("no_update")
    assert lost
    assert all("process of its group was ended by signal 9" in event["reason"] for event in lost)
    assert first["missing"] == len(lost)
    assert first["accepted"] == 4 - len(lost)
    assert (second["accepted"], second["missing"]) == (4, 0)
    names = sorted(event["device"] for event in lost)
    entry = recorded(run[0])[0]
    assert (entry["missing"], entry["refused"]) == (names, {})
    # And nothing of what was lost is in the weights.
    others = Clients(dict.fromkeys(names, raising))
    # Of as many rounds: assignments follow from how many there will be.
    flat = trained(tmp_path / "flat", config(None), others)
    assert recorded(flat)[0]["accepted"] == entry["accepted"]
    assert recorded(flat)[0]["after"] == entry["after"]


def test_a_round_whose_groups_all_end_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    run = run_of(tmp_path, config(1))
    with pytest.raises(RunError, match="abandoned 3 times"):
        run.start()
    assert any("exit code 1" in event["reason"] for event in run.events("no_update"))
    assert run.training.groups is not None
    assert not run.training.groups.processes


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
sys.path[:0] = {path!r}
from test_groups import config, small_fleet, Run, grid_of, Clients, CLASSES
folder = Path({folder!r})
run = Run(folder, config(2), grid_of(small_fleet(folder, CLASSES)))
def trick(body, values, message):
    draft = folder / "draft"
    draft.write_text(" ".join(map(str, run.training.groups.processes)))
    draft.rename(folder / "pids")
    time.sleep(600)
run.grid._app = Clients({{"dev-2": trick}})
run.start()
"""


@pytest.mark.timeout(500)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_server_is_killed_or_interrupted(
    tmp_path: Path, number: signal.Signals
) -> None:
    tests = str(Path(__file__).parent)
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    script = SCRIPT.format(path=[tests], folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert _until(lambda: len(_written(tmp_path / "pids")) == 2, 150)
            pids = _written(tmp_path / "pids")
            assert all(map(psutil.pid_exists, pids))
        finally:
            os.kill(server.pid, number)
        server.wait(60)
    # One that is still importing ends when it has done so.
    assert _until(lambda: not any(map(_lives, pids)), 150)
    after = set(os.listdir("/dev/shm")) if before else set()
    assert not {name for name in after - before if "fedofa" in name}


def _written(path: Path) -> list[int]:
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregation": {"rule": "median"}}, "aggregation.rule = median with round.groups = 2"),
        ({"aggregation": {"clip": 2.0}}, "aggregation.clip = 2.0 with round.groups = 2"),
        (
            {"round": {"mode": "async", "buffer": 2}},
            "round.groups = 2 is used with round.mode = sync",
        ),
        ({"round": {"groups": 0}}, "round.groups = 0"),
        ({"round": {"groups": 65}}, "round.groups = 65"),
    ],
)
def test_what_has_no_partial_sums_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    limits = {"groups": 2, **changes.get("round", {})}
    with pytest.raises(UsageError, match=words):
        small_config(**{**changes, "round": limits})


def test_the_memory_is_one_bounded_piece_without_a_name() -> None:
    room = Room(values=1000, groups=2, sums="float64", slots=4, slot_bytes=4000)
    assert room.size_bytes == 4096 + 2 * 8192 + 4 * 4096
    shared = Shared.new(room)
    try:
        pieces = [shared.weights(), *map(shared.sum_of, range(2))]
        pieces += [shared.slot(k, "float32", 1000) for k in range(4)]
        for place, piece in enumerate(pieces):
            piece[:] = place
        assert [float(piece.sum()) / 1000 for piece in pieces] == list(range(7))
        assert Path(f"/proc/self/fd/{shared.descriptor}").readlink().name.endswith("(deleted)")
    finally:
        shared.close()


def test_no_process_starts_without_groups(tmp_path: Path) -> None:
    assert run_of(tmp_path).training.groups is None


MEMORY = """
import sys
sys.path[:0] = {path!r}
import test_groups
print(*test_groups.peaks_of(10, 200))
"""


def peaks_of(*counts: int) -> list[int]:
    """Bytes that this process and its group have taken at most after so many updates each."""
    peaks = []
    with Fed(groups=1) as fed:
        for count in counts:
            fed.feed(count)
            fed.end()
            peaks.append(sum(_peak(pid) for pid in (os.getpid(), *fed.groups.processes)))
    return peaks


def _peak(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if "VmHWM" in line) * 1024


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_memory_is_the_same_for_ten_updates_and_for_two_hundred() -> None:
    script = MEMORY.format(path=[str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=550
    )
    ten, two_hundred = map(int, done.stdout.split())
    # Updates have about 8 MB: those of 190 more would be 1.5 GB.
    assert two_hundred <= 1.1 * ten + 20e6


def test_a_round_that_was_left_in_the_middle_leaves_nothing_to_the_next() -> None:
    with Fed(groups=1) as fed:
        fed.feed(3)
        assert fed.groups.waiting
        fed.groups.begin(fed.weights)
        fed.feed(2)
        (partial,) = fed.end()
    assert partial.updates == 2
    assert not fed.groups.processes
