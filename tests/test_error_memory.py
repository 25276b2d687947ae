"""What an update loses is sent later, wherever in the shared weights it belongs; nothing twice."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from artifacts import Died, Disk
from fedofa.client.codec import reply
from fedofa.client.codec.memory import ErrorMemory
from fedofa.protos.codec.config import CodecConfig
from fedofa.protos.codec.wire import decode, encode
from fedofa.supernet.axes import Regions, layout, regions, rolled_regions
from fedofa.supernet.errors import ArtifactError
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.weights import Flat, shapes_of, size_of
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import positions
from strategies import DIGITS, some_space

SPARSE = CodecConfig(keep=0.05, levels="sign")
SMALLEST, LARGEST = (regions(DIGITS, a) for a in (DIGITS.smallest(), DIGITS.largest()))

Full = Mapping[str, np.ndarray]


def nothing(space: Space) -> Full:
    """Zeros for all shared weights: the oracle's sums, float64."""
    return {name: np.zeros(tensor.shape) for name, tensor in layout(space).items()}


def add_to(full: Full, flat: Flat, where: Regions) -> None:
    """Add values at their places, by numpy's own indexing."""
    begin = 0
    for name, region in where.items():
        grid = np.ix_(*map(positions, region))
        size = full[name][grid].size
        full[name][grid] += flat[begin : begin + size].reshape(full[name][grid].shape)
        begin += size


def flat_of(full: Full, where: Regions) -> np.ndarray:
    parts = [full[name][np.ix_(*map(positions, region))].ravel() for name, region in where.items()]
    return np.concatenate(parts)


def delta_of(where: Regions, seed: int) -> Flat:
    return np.random.default_rng(seed).standard_normal(size_of(shapes_of(where)), np.float32)


def do_round(memory: ErrorMemory, number: int, where: Regions, seed: int) -> tuple[Flat, Flat]:
    """A device's round: the true update and what arrives of it and of what was owed."""
    delta, shapes = delta_of(where, seed), shapes_of(where)
    total = memory.add(number, delta, where)
    arrived = decode(encode(total, shapes, SPARSE, seed), shapes, SPARSE)
    memory.keep(number, total - arrived, where)
    return delta, arrived


def owed(memory: ErrorMemory, number: int, where: Regions) -> Flat:
    """What is owed of some weights before a round."""
    return memory.add(number, np.zeros(size_of(shapes_of(where)), np.float32), where)


def check_telescoping(
    memory: ErrorMemory, space: Space, wheres: Sequence[Regions], seed: int
) -> None:
    true, sent = nothing(space), nothing(space)
    whole = regions(space, space.largest())
    for number, where in enumerate(wheres, 1):
        delta, arrived = do_round(memory, number, where, seed + number)
        add_to(true, delta, where)
        add_to(sent, arrived, where)
    left = owed(memory, len(wheres) + 1, whole)
    assert np.abs(flat_of(true, whole) - flat_of(sent, whole) - left).max() < 1e-4


@settings(max_examples=15)
@given(some_space, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_what_arrives_in_all_is_what_was_trained_less_what_is_owed(
    space: Space, rounds: int, seed: int
) -> None:
    draws = random.Random(seed)
    archs: list[Arch] = [space.sample(draws) for _ in range(rounds)]
    wheres = [regions(space, arch) for arch in archs]
    check_telescoping(ErrorMemory(None, "run", layout(space)), space, wheres, seed)


def test_the_same_holds_for_windows_that_roll_and_on_disk(tmp_path: Path) -> None:
    small, large = DIGITS.smallest(), DIGITS.largest()
    wheres = [
        rolled_regions(DIGITS, arch, 3 * at) for at, arch in enumerate([small, small, large] * 2)
    ]
    check_telescoping(ErrorMemory(tmp_path, "run", layout(DIGITS)), DIGITS, wheres, 0)


def test_what_is_owed_of_weights_that_a_round_does_not_cover_stays(tmp_path: Path) -> None:
    memory = ErrorMemory(tmp_path, "run", layout(DIGITS))
    do_round(memory, 1, LARGEST, 0)
    before = nothing(DIGITS)
    add_to(before, owed(memory, 2, LARGEST), LARGEST)
    do_round(memory, 2, SMALLEST, 1)
    after = nothing(DIGITS)
    add_to(after, owed(memory, 3, LARGEST), LARGEST)
    for full in (before, after):
        for name, region in SMALLEST.items():
            full[name][np.ix_(*map(positions, region))] = 0
    assert any(value.any() for value in before.values())
    for name in before:
        assert (before[name] == after[name]).all()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_round_that_is_asked_for_again_counts_nothing_twice(
    tmp_path: Path, on_disk: bool
) -> None:
    memory = ErrorMemory(tmp_path if on_disk else None, "run", layout(DIGITS))
    do_round(memory, 1, LARGEST, 1)
    do_round(memory, 4, SMALLEST, 2)
    first = do_round(memory, 9, LARGEST, 3)
    left = owed(memory, 10, LARGEST)
    if on_disk:
        memory = ErrorMemory(tmp_path, "run", layout(DIGITS))
    again = do_round(memory, 9, LARGEST, 3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (owed(memory, 10, LARGEST) == left).all()


def test_a_round_from_before_all_that_is_kept_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = ErrorMemory(tmp_path, "run", layout(DIGITS))
    for number in (5, 6, 7):
        do_round(memory, number, SMALLEST, number)
    assert not owed(memory, 3, SMALLEST).any()
    assert "nothing from before round 3" in caplog.text
    do_round(memory, 3, SMALLEST, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["3.safetensors"]


def test_the_last_two_rounds_are_kept_and_as_much_as_was_trained(tmp_path: Path) -> None:
    memory = ErrorMemory(tmp_path, "run", layout(DIGITS))
    for number in range(1, 6):
        do_round(memory, number, SMALLEST, number)
    assert {path.name for path in tmp_path.iterdir()} == {"4.safetensors", "5.safetensors"}
    trained = 4 * size_of(shapes_of(SMALLEST))
    names = 400 * len(SMALLEST)
    assert (tmp_path / "5.safetensors").stat().st_size < 1.2 * trained + names
    assert trained < 0.5 * 4 * size_of(shapes_of(LARGEST))


def test_another_run_begins_with_nothing(tmp_path: Path) -> None:
    do_round(ErrorMemory(tmp_path, "one", layout(DIGITS)), 5, SMALLEST, 0)
    other = ErrorMemory(tmp_path, "two", layout(DIGITS))
    assert not owed(other, 6, SMALLEST).any()
    delta, arrived = do_round(other, 6, SMALLEST, 1)
    assert (owed(other, 7, SMALLEST) == delta - arrived).all()
    assert not owed(ErrorMemory(tmp_path, "one", layout(DIGITS)), 7, SMALLEST).any()


def test_another_space_of_the_same_run_begins_with_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    do_round(ErrorMemory(tmp_path, "run", layout(DIGITS)), 1, LARGEST, 0)
    smaller = {name: tensor for name, tensor in layout(DIGITS).items() if name in SMALLEST}
    name = next(iter(smaller))
    del smaller[name]
    assert not owed(ErrorMemory(tmp_path, "run", smaller), 2, SMALLEST).any()
    assert "is no tensor of this run's space; it begins anew" in caplog.text


def test_a_damaged_file_counts_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = ErrorMemory(tmp_path, "run", layout(DIGITS))
    do_round(memory, 1, SMALLEST, 0)
    path, draws = tmp_path / "1.safetensors", random.Random(0)
    good = path.read_bytes()
    damaged = [b"", b"garbage", good[:-1], good[:100], good + b"\0", b"\xff" * 8 + good[8:]]
    for at in (*range(0, 800, 7), *(draws.randrange(len(good)) for _ in range(50))):
        damaged.append(good[:at] + bytes([good[at] ^ 1 << draws.randrange(8)]) + good[at + 1 :])
    for data in damaged:
        caplog.clear()
        path.write_bytes(data)
        assert not owed(memory, 2, SMALLEST).any()
        other_run = b'"run":"run"' not in data
        assert "it begins anew" in caplog.text or other_run
    assert caplog.records[-1].levelno == logging.WARNING


def test_wherever_the_process_dies_the_round_can_be_done_again(tmp_path: Path) -> None:
    start, steps = tmp_path / "start", 0
    memory = ErrorMemory(start, "run", layout(DIGITS))
    for number in (1, 2):
        do_round(memory, number, SMALLEST, number)
    before, files = owed(memory, 3, SMALLEST), {p.name: p.read_bytes() for p in start.iterdir()}
    residual = delta_of(SMALLEST, 9)
    for dies in (True, False):
        for step in range(1, 100):
            folder = tmp_path / f"{dies}-{step}"
            folder.mkdir()
            for name, data in files.items():
                (folder / name).write_bytes(data)
            memory = ErrorMemory(folder, "run", layout(DIGITS))
            with pytest.MonkeyPatch.context() as patch:
                disk = Disk(step, dies).watch(patch)
                try:
                    memory.keep(3, residual, SMALLEST)
                except (ArtifactError, Died):
                    assert disk.failed
            assert (owed(memory, 3, SMALLEST) == before).all()
            assert any((owed(memory, 4, SMALLEST) == v).all() for v in (before, residual))
            memory.keep(3, residual, SMALLEST)
            assert (owed(memory, 4, SMALLEST) == residual).all()
            if not disk.failed:
                break
            steps += 1
    assert steps > 10


def test_what_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    memory = ErrorMemory(tmp_path / "file" / "folder", "run", layout(DIGITS))
    with pytest.raises(ArtifactError, match=r"error memory .*folder: "):
        memory.keep(1, delta_of(SMALLEST, 0), SMALLEST)


def test_an_array_of_other_weights_is_refused() -> None:
    memory = ErrorMemory(None, "run", layout(DIGITS))
    with pytest.raises(ValueError, match="these weights have"):
        memory.add(1, np.zeros(3, np.float32), SMALLEST)
    with pytest.raises(ValueError, match="these weights have"):
        memory.keep(1, np.zeros(3, np.float32), SMALLEST)


def test_no_device_without_a_folder_is_forgotten_however_many_there_are() -> None:
    names = [f"many-{number}" for number in range(200)]
    one = np.ones(size_of(shapes_of(SMALLEST)), np.float32)
    for name in names:
        reply._memory(name, None, "many", DIGITS).keep(1, one, SMALLEST)
    for name in names:
        assert owed(reply._memory(name, None, "many", DIGITS), 2, SMALLEST).all()
        assert not owed(reply._memory(name, None, "other", DIGITS), 2, SMALLEST).any()
