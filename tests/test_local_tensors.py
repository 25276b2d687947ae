"""What a device keeps to itself over changing subnets, and what frozen tensors are spared."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.local_step import LocalStep
from fedofa.client.local_tensors import LocalTensors, local_tensors
from fedofa.client.training import LocalTask, train
from fedofa.protos.device import DataSource, Device
from fedofa.protos.recipe import Recipe
from fedofa.supernet.axes import layout, regions, rolled_regions, take
from fedofa.supernet.batch import Batch
from fedofa.supernet.space import Space
from fedofa.supernet.weights import Flat, gather, part, shapes_of, size_of
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import positions, shared_weights
from strategies import DIGITS, some_space

SMALLEST, LARGEST = DIGITS.smallest(), DIGITS.largest()
HEAD = ("head.classifier.weight", "head.classifier.bias")


def written(full: Mapping[str, Any], flat: Flat, where: Any, names: Any) -> None:
    """Put a flat array's values of these tensors at their places, by numpy's own indexing."""
    begin = 0
    for name, region in where.items():
        grid = np.ix_(*map(positions, region))
        size = full[name][grid].size
        if name in names:
            full[name][grid] = flat[begin : begin + size].reshape(full[name][grid].shape)
        begin += size


@settings(max_examples=15)
@given(some_space, st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_a_round_begins_where_the_devices_last_training_of_each_value_ended(
    space: Space, rounds: int, seed: int, rolled: bool
) -> None:
    draws, rng = random.Random(seed), np.random.default_rng(seed)
    shared, own = shared_weights(space, seed), LocalTensors(None, "run", layout(space))
    names = draws.sample(sorted(layout(space)), 3)
    truth = {name: value.numpy().copy() for name, value in shared.items()}
    for number in range(1, rounds + 1):
        arch = space.sample(draws)
        where = rolled_regions(space, arch, number) if rolled else regions(space, arch)
        begun = own.begin(number, gather(shared, where), where, names)
        assert (begun == gather({n: torch.from_numpy(v) for n, v in truth.items()}, where)).all()
        trained = rng.standard_normal(len(begun), np.float32)
        own.keep(number, trained, where, names)
        written(truth, trained, where, names)


def test_a_round_that_is_asked_for_again_begins_where_it_began(tmp_path: Path) -> None:
    where = regions(DIGITS, SMALLEST)
    sent = gather(shared_weights(DIGITS), where)
    for number in (1, 2, 3):
        own = LocalTensors(tmp_path, "run", layout(DIGITS))
        own.keep(number, np.full_like(sent, number), where, HEAD)
    again = part(own.begin(3, sent, where, HEAD), shapes_of(where), HEAD)
    assert (again == 2).all()
    assert (part(own.begin(4, sent, where, HEAD), shapes_of(where), HEAD) == 3).all()
    assert {path.name for path in tmp_path.iterdir()} == {"2.safetensors", "3.safetensors"}


def test_of_a_training_that_diverged_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = regions(DIGITS, SMALLEST)
    sent = gather(shared_weights(DIGITS), where)
    own = LocalTensors(tmp_path, "run", layout(DIGITS))
    own.keep(1, np.ones_like(sent), where, HEAD)
    for bad in (np.nan, np.inf):
        own.keep(2, np.full_like(sent, bad), where, HEAD)
    assert "round 2 diverged; those before it stay" in caplog.text
    assert (part(own.begin(3, sent, where, HEAD), shapes_of(where), HEAD) == 1).all()


def test_a_tensor_that_is_no_longer_local_is_forgotten(tmp_path: Path) -> None:
    where = regions(DIGITS, LARGEST)
    sent = gather(shared_weights(DIGITS), where)
    own = LocalTensors(tmp_path, "run", layout(DIGITS))
    own.keep(1, sent + 1, where, HEAD)
    own.keep(2, sent + 2, where, HEAD[:1])
    assert set(own.after(2, HEAD)) == {HEAD[0]}
    found = part(own.begin(3, sent, where, HEAD), shapes_of(where), HEAD[1:])
    assert (found == part(sent, shapes_of(where), HEAD[1:])).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_decay": 0.1, "momentum": 0.9},
        {"optimizer": "adam", "weight_decay": 0.1, "proximal": 0.5},
        {"clip_value": 0.01, "clip_norm": 0.1, "students": "sandwich", "combine": "project"},
        {"students": "random", "random_subnets": 2, "one_pass": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [32, 4])
def test_frozen_tensors_are_not_touched_and_all_others_are(
    fields: dict[str, Any], bits: int
) -> None:
    arch, frozen = DIGITS.sample(random.Random(6)), {"head.classifier.weight", "stem.bn.weight"}
    before = take(shared_weights(DIGITS, 3), regions(DIGITS, arch))
    after = {name: value.clone() for name, value in before.items()}
    recipe = Recipe(**{"students": "none", "steps": 3, "return_quantized": False, **fields})
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 32)
    train(LocalTask(DIGITS, arch, recipe, 0.1, (0, 1, "d"), bits, frozenset(frozen)), after, x, y)
    assert {n for n in before if torch.equal(before[n], after[n])} == frozen


def test_what_is_trained_beside_frozen_tensors_is_trained_as_if_they_were_not() -> None:
    """One step without a bound on the whole gradient: nothing else depends on the frozen ones."""
    before = take(shared_weights(DIGITS, 3), regions(DIGITS, LARGEST))
    recipe = Recipe(students="sandwich", steps=1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 32)
    found = []
    for frozen in (frozenset[str](), frozenset(HEAD)):
        values = {name: value.clone() for name, value in before.items()}
        train(LocalTask(DIGITS, LARGEST, recipe, 0.1, (0, 1, "d"), 32, frozen), values, x, y)
        found.append(values)
    assert {n for n in before if not torch.equal(found[0][n], found[1][n])} == set(HEAD)
    assert size_of(shapes_of(regions(DIGITS, LARGEST))) == sum(v.numel() for v in before.values())


@pytest.mark.parametrize("bits", [32, 4])
def test_no_gradient_of_a_frozen_tensor_is_worked_out(bits: int) -> None:
    values = take(shared_weights(DIGITS, 3), regions(DIGITS, LARGEST))
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8)
    local = LocalStep(DIGITS, LARGEST, Recipe(proximal=0.1), values, y, bits)
    local.freeze(HEAD)
    local.fill(Batch(x, y), [SMALLEST])
    assert {name for name, leaf in local.leaves.items() if leaf.grad is None} == set(HEAD)


def test_no_device_without_a_folder_is_forgotten_however_many_there_are() -> None:
    devices = [Device(f"many-{number}", DataSource("none:none"))
               for number in range(200)]  # fmt: skip
    where = regions(DIGITS, SMALLEST)
    trained = np.ones(size_of(shapes_of(where)), np.float32)
    for device in devices:
        local_tensors(device, "many", DIGITS).keep(1, trained, where, HEAD)
    for device in devices:
        assert local_tensors(device, "many", DIGITS).after(1, HEAD).keys() == set(HEAD)
        assert not local_tensors(device, "other", DIGITS).after(1, HEAD)
