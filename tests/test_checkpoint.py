"""A checkpoint is there whole or not at all, whatever fails and whichever byte changes."""

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from fedofa.server import checkpoint as module
from fedofa.server.checkpoint import Checkpoint, CheckpointStore
from fedofa.server.config import RunConfig
from fedofa.server.events import EventLog, read_events
from fedofa.server.training import Training
from fedofa.supernet.errors import ArtifactError, RunError
from fedofa.supernet.weights import digest, save


def made(round_: int, size: int = 5) -> Checkpoint:
    generator = torch.Generator().manual_seed(round_)
    return Checkpoint(
        round=round_,
        weights={"a": torch.randn(size, generator=generator), "b": torch.randn(2, 3)},
        optimizer={"m/a": torch.randn(size, generator=generator)},
        ages={"a": torch.full((size,), round_, dtype=torch.int16)},
        notes={"fingerprint": {"seed": 1, "lr": 0.1}, "digest": "x"},
    )


def same(found: Checkpoint | None, expected: Checkpoint) -> bool:
    return (
        found is not None
        and (found.round, found.notes) == (expected.round, expected.notes)
        and digest(found.weights) == digest(expected.weights)
        and digest(found.optimizer) == digest(expected.optimizer)
        and digest(found.ages) == digest(expected.ages)
        and found.ages["a"].dtype == torch.int16
    )


def test_what_was_written_is_read_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.latest() is None
    states = [made(round_) for round_ in range(1, 6)]
    for state in states:
        store.write(state)
        assert same(store.latest(), state)
    assert store.rounds() == [4, 5]
    assert same(store.read(4), states[3])
    assert sorted(path.name for path in store.folder.iterdir()) == ["round-000004", "round-000005"]


def test_an_empty_optimizer_is_a_state_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    state = Checkpoint(1, {"w": torch.ones(1)}, {}, {"w": torch.zeros(1, dtype=torch.int16)}, {})
    store.write(state)
    found = store.latest()
    assert found is not None
    assert found.optimizer == {}


class Interrupted(BaseException):
    """Stands for a signal or a full disk: no handler for ordinary errors stops it."""


@contextmanager
def failing(at: int, *, killed: bool = False) -> Iterator[list[str]]:
    """Let the `at`-th call of anything that touches the disk fail, before or after its work.

    `killed`: so do all after it, as if the process were gone.
    """
    calls: list[str] = []

    def note(name: str) -> None:
        calls.append(name)
        if len(calls) == at or (killed and 0 < at < len(calls)):
            raise Interrupted(name)

    def wrap(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def stand_in(*args: object, **kwargs: object) -> object:
            note(name)
            result = original(*args, **kwargs)
            note(f"{name} done")
            return result

        return stand_in

    with (
        mock.patch.object(os, "fsync", wrap("fsync", os.fsync)),
        mock.patch.object(os, "replace", wrap("replace", os.replace)),
        mock.patch.object(module, "save", wrap("save", save)),
        mock.patch.object(Path, "write_text", wrap("write_text", Path.write_text)),
        mock.patch.object(shutil, "rmtree", wrap("rmtree", shutil.rmtree)),
        mock.patch.object(os, "unlink", wrap("unlink", os.unlink)),
        mock.patch.object(os, "rmdir", wrap("rmdir", os.rmdir)),
    ):
        yield calls


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("killed", [False, True])
def test_after_a_failure_at_any_step_the_old_or_the_new_round_is_there_whole(
    tmp_path: Path, keep: int, killed: bool
) -> None:
    old, new, later = made(1), made(2), made(3)
    with failing(0) as calls:
        store = CheckpointStore(tmp_path / "count", keep)
        for state in (old, new):
            store.write(state)
    steps = len(calls)
    assert {"fsync", "replace", "save", "write_text"} <= set(calls)
    seen = set()
    for at in range(1, steps + 1):
        store = CheckpointStore(tmp_path / f"run-{keep}-{at}", keep)
        store.write(old)
        interrupted = False
        with failing(at, killed=killed) as calls:
            try:
                store.write(new)
            except Interrupted:
                interrupted = True
        again = CheckpointStore(store.folder, keep)
        found = again.latest()
        assert same(found, old) or same(found, new), calls[-1]
        seen.add(found.round)  # type: ignore[union-attr]
        for number in again.rounds():
            assert same(again.read(number), {1: old, 2: new}[number])
        again.write(later)
        assert same(again.latest(), later)
        names = {path.name for path in again.folder.iterdir()}
        assert not any(name.startswith(".") for name in names), "a draft was left behind"
        assert names == {f"round-{number:06d}" for number in again.rounds()}
        if not interrupted:
            break
    assert seen == {1, 2}


def test_a_first_checkpoint_that_fails_leaves_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    with failing(3), pytest.raises(Interrupted):
        store.write(made(1))
    assert store.latest() is None


def test_drafts_of_a_killed_server_are_swept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    draft = tmp_path / ".draft-killed"
    draft.mkdir()
    (draft / "weights.safetensors").write_bytes(b"half")
    assert store.latest() is None
    store.write(made(1))
    assert not draft.exists()


@pytest.mark.parametrize("name", ["weights", "optimizer", "ages", "state"])
def test_a_changed_byte_is_detected_and_the_round_before_is_used(tmp_path: Path, name: str) -> None:
    store, old, new = CheckpointStore(tmp_path), made(1), made(2)
    store.write(old)
    store.write(new)
    file = tmp_path / "round-000002" / (f"{name}.safetensors" if name != "state" else "state.json")
    content = file.read_bytes()
    rng = random.Random(0)
    places = range(len(content)) if name == "state" else rng.sample(range(len(content)), 40)
    for place in places:
        for changed in {content[place] ^ 1, content[place] ^ 0x20} - {content[place]}:
            file.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
            found = store.latest()
            if name == "state" and same(found, new):
                # White space between JSON's values says nothing.
                assert json.loads(file.read_bytes()) == json.loads(content)
            else:
                assert same(found, old), (place, changed)


@pytest.mark.parametrize("damage", ["truncate", "delete", "swap"])
def test_a_damaged_file_is_detected_and_the_round_before_is_used(
    tmp_path: Path, damage: str
) -> None:
    store, old = CheckpointStore(tmp_path), made(1)
    store.write(old)
    for file in ("weights.safetensors", "optimizer.safetensors", "ages.safetensors", "state.json"):
        store.write(made(2))
        path = tmp_path / "round-000002" / file
        if damage == "truncate":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "delete":
            path.unlink()
        else:
            path.write_bytes((tmp_path / "round-000001" / file).read_bytes())
        if damage == "swap" and file == "state.json":
            with pytest.raises(ArtifactError):
                store.read(2)
        assert same(store.latest(), old), file


def test_where_no_checkpoint_is_whole_it_says_so_and_what_to_do(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.write(made(1))
    (tmp_path / "round-000001" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"no whole checkpoint.*sha256.*start a new run"):
        store.latest()


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", '{"state": {}}', '{"state": 1, "sha256": 2}']
)
def test_a_state_that_is_no_state_is_an_artifact_error(tmp_path: Path, text: str) -> None:
    store = CheckpointStore(tmp_path)
    store.write(made(1))
    (tmp_path / "round-000001" / "state.json").write_text(text)
    with pytest.raises(ArtifactError):
        store.read(1)


# ── resuming ─────────────────────────────────────────────────────────────────────────────────────

BASE: dict[str, object] = {
    "space": {"preset": "digits", "resolutions": [4]},
    "classes": {"phone": {}},
}


def training(folder: Path, **changes: object) -> Training:
    config = RunConfig.model_validate({**BASE, **changes})
    log = EventLog(folder / "events.jsonl")
    return Training(config, config.build_space(), CheckpointStore(folder / "c"), log)


def test_a_run_without_checkpoint_has_nothing_to_resume(tmp_path: Path) -> None:
    assert training(tmp_path).resume() is False


def test_a_resumed_run_has_the_state_that_was_written(tmp_path: Path) -> None:
    first = training(tmp_path)
    first.round = 3
    first.optimizer.state["m/x"] = torch.ones(2)
    first.coverage.update(dict.fromkeys(first.weights, False))
    first.checkpoint()
    second = training(tmp_path)
    assert second.resume() is True
    assert second.round == 3
    assert digest(second.weights) == digest(first.weights)
    assert digest(second.optimizer.state) == digest(first.optimizer.state)
    assert digest(second.coverage.ages) == digest(first.coverage.ages)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"space": {"preset": "digits", "resolutions": [5]}},
        {"recipe": {"lr": 0.2}},
        {"server": {"optimizer": "adam"}},
        {"classes": {"phone": {"params": 10**6}}},
        {"classes": {"phone": {}, "board": {}}},
        {"round": {"rounds": 99}},
        {"sampler": {"candidates": 1}},
        {"round": {"max_examples_ratio": 2.0}},
        {"round": {"max_update_ratio": 2.0}},
    ],
)
def test_resuming_with_another_configuration_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    training(tmp_path).checkpoint()
    with pytest.raises(RunError, match="another configuration") as error:
        training(tmp_path, **change).resume()
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize("change", [{"round": {"deadline_s": 5.0}}, {"round": {"min_replies": 2}}])
def test_what_does_not_decide_the_weights_may_change(
    tmp_path: Path, change: dict[str, object]
) -> None:
    training(tmp_path).checkpoint()
    assert training(tmp_path, **change).resume() is True


def test_with_a_constant_learning_rate_a_run_may_go_on_for_longer(tmp_path: Path) -> None:
    recipe = {"lr_schedule": "constant"}
    training(tmp_path, recipe=recipe, round={"rounds": 3}).checkpoint()
    assert training(tmp_path, recipe=recipe, round={"rounds": 9}).resume() is True


# ── the event log ────────────────────────────────────────────────────────────────────────────────


def test_events_are_read_from_where_one_stopped_and_never_by_halves(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    assert list(read_events(path)) == []
    log = EventLog(path)
    log("a", n=1)
    (found,) = read_events(path)
    assert (found[0]["event"], found[0]["n"]) == ("a", 1)
    log("b", text="é\n")
    with path.open("a") as file:
        file.write('{"event": "half')
    ((event, offset),) = read_events(path, found[1])
    assert event["text"] == "é\n"
    assert list(read_events(path, offset)) == []


def test_every_event_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path)("a", loss=math.nan, parts=[1.5, math.inf], inner={"x": (-math.inf, "NaN")})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert (found["loss"], found["parts"], found["inner"]) == (
        None, [1.5, None], {"x": [None, "NaN"]},
    )  # fmt: skip


def test_a_line_that_a_killed_server_left_half_does_not_hide_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path)("a")
    with path.open("a") as file:
        file.write('{"event": "half')
    EventLog(path)("b")
    assert [event["event"] for event, _ in read_events(path)] == ["a", "b"]
