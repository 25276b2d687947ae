"""Who trains what: within every bound, as large as it can be, and what others left out."""

import random
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from fedofa.protos.manifest import Normalization
from fedofa.protos.messages import DeviceProfile
from fedofa.protos.recipe import Recipe
from fedofa.server import assignment
from fedofa.server.coverage import Coverage
from fedofa.server.limits import Limits, require_fit, training_limits
from fedofa.server.samplers.assigned import Client, Round
from fedofa.server.samplers.catalogue import SamplerConfig
from fedofa.server.samplers.drawing import maximal_fit
from fedofa.supernet.axes import layout, regions
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.space import Arch, Space
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DIGITS, some_space

BATCH = 16


def assign(
    space: Space,
    fleet: Sequence[tuple[str, Limits]],
    coverage: Coverage,
    candidates: int,
    key: tuple[int, int],
) -> dict[str, Arch]:
    """The default method's choice for (seed, round)."""
    clients = [Client(name, space, limits) for name, limits in sorted(fleet, key=lambda m: m[0])]
    this = Round(space, clients, key[1], 10, key[0])
    chosen = assignment.assign(SamplerConfig(candidates=candidates), this, coverage.ages)
    return {name: found.arch for name, found in chosen.items()}


def maximal(space: Space, limits: Limits, rng: random.Random) -> Arch:
    return maximal_fit(space, lambda arch: limits.fits(space, arch), rng)


Trained = dict[str, torch.Tensor | bool]


@st.composite
def limits_in(draw: st.DrawFn, space: Space) -> Limits:
    """Bounds between the smallest subnet's and a bit above the largest's, some of them missing."""
    low, high = cost(space, space.smallest()), cost(space, space.largest())

    def bound(least: int, most: int) -> int | None:
        return draw(st.none() | st.integers(least, most + most // 10))

    return Limits(
        Budget(
            macs=bound(low.macs, high.macs),
            params=bound(low.params, high.params),
            train_memory_bytes=bound(low.train_memory_bytes(BATCH), high.train_memory_bytes(BATCH)),
            peak_activation_bytes=bound(low.peak_activation_bytes, high.peak_activation_bytes),
        ),
        BATCH,
    )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Space, list[tuple[str, Limits]]]:
    space = draw(some_space)
    count = draw(st.integers(1, 5))
    return space, [(f"device-{k}", draw(limits_in(space))) for k in range(count)]


def covered(space: Space, archs: Sequence[Arch]) -> int:
    """Weights that somebody trains, by marking them one after the other."""
    marks = {name: np.zeros(tensor.shape, bool) for name, tensor in layout(space).items()}
    for arch in archs:
        for name, region in regions(space, arch).items():
            marks[name][region] = True
    return sum(int(mark.sum()) for mark in marks.values())


def trained_by(space: Space, archs: Sequence[Arch]) -> Trained:
    found: dict[str, torch.Tensor | bool] = {
        name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in layout(space).items()
    }
    for arch in archs:
        for name, region in regions(space, arch).items():
            found[name][region] = True  # type: ignore[index]
    return found


@given(fleets(), st.integers(0, 999))
@settings(max_examples=40)
def test_every_subnet_fits_its_clients_limits_and_no_larger_neighbour_does(
    drawn: tuple[Space, list[tuple[str, Limits]]], seed: int
) -> None:
    space, fleet = drawn
    chosen = assign(space, fleet, Coverage(layout(space)), 3, (seed, 1))
    assert chosen.keys() == dict(fleet).keys()
    for name, limits in fleet:
        spent = cost(space, chosen[name])
        budget = limits.budget
        for have, bound in (
            (spent.macs, budget.macs),
            (spent.params, budget.params),
            (spent.train_memory_bytes(BATCH), budget.train_memory_bytes),
            (spent.peak_activation_bytes, budget.peak_activation_bytes),
        ):
            assert bound is None or have <= bound
        assert not any(limits.fits(space, larger) for larger in space.grown(chosen[name]))


@given(fleets(), st.integers(0, 999), st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_an_assignment_depends_on_seed_round_and_fleet_and_not_on_its_order(
    drawn: tuple[Space, list[tuple[str, Limits]]], seed: int, rng: random.Random
) -> None:
    space, fleet = drawn
    coverage = Coverage(layout(space))
    chosen = assign(space, fleet, coverage, 3, (seed, 1))
    shuffled = rng.sample(fleet, len(fleet))
    random.seed(rng.random())
    assert assign(space, shuffled, coverage, 3, (seed, 1)) == chosen
    # The first to choose, by name, chooses as it would alone.
    assert assign(space, fleet[:1], coverage, 3, (seed, 1))["device-0"] == chosen["device-0"]


def test_another_round_or_seed_or_name_gives_another_assignment() -> None:
    limits = Limits(Budget(macs=cost(DIGITS, DIGITS.largest()).macs // 4), BATCH)
    coverage = Coverage(layout(DIGITS))

    def one(name: str, key: tuple[int, int]) -> Arch:
        return assign(DIGITS, [(name, limits)], coverage, 1, key)[name]

    assert len({one("a", (0, r)) for r in range(8)}) > 4
    assert len({one("a", (s, 0)) for s in range(8)}) > 4
    assert len({one(name, (0, 0)) for name in "abcdefgh"}) > 4


@given(fleets(), st.integers(0, 999))
@settings(max_examples=15)
def test_where_one_client_can_hold_the_largest_subnet_every_weight_is_trained(
    drawn: tuple[Space, list[tuple[str, Limits]]], seed: int
) -> None:
    space, fleet = drawn
    fleet = [*fleet, ("big", Limits(Budget(), BATCH))]
    chosen = assign(space, fleet, Coverage(layout(space)), 2, (seed, 1))
    assert chosen["big"] == space.largest()
    assert Coverage(layout(space)).update(trained_by(space, list(chosen.values()))) == 1.0


def test_choosing_what_others_leave_out_covers_more_than_choosing_alone_or_at_random() -> None:
    spent = cost(DIGITS, DIGITS.largest())
    fleet = [(f"d{k}", Limits(Budget(params=spent.params // 2), BATCH)) for k in range(3)]
    coverage = Coverage(layout(DIGITS))
    together, alone, blind = [], [], []
    for key in [(0, round_) for round_ in range(5)]:
        chosen = assign(DIGITS, fleet, coverage, 6, key)
        single = [assign(DIGITS, [member], coverage, 6, key) for member in fleet]
        rng = random.Random(key[1])
        together.append(covered(DIGITS, list(chosen.values())))
        alone.append(covered(DIGITS, [arch for one in single for arch in one.values()]))
        blind.append(covered(DIGITS, [maximal(DIGITS, limits, rng) for _, limits in fleet]))
    assert statistics.mean(together) > 1.02 * statistics.mean(blind)
    assert statistics.mean(together) > statistics.mean(alone)


def test_what_waited_longest_is_trained_first() -> None:
    """Two weights' worth: a client that fits one of two growths takes the one that is older."""
    shared = layout(DIGITS)
    limits = Limits(Budget(params=cost(DIGITS, DIGITS.largest()).params // 2), BATCH)
    chosen = assign(DIGITS, [("a", limits)], Coverage(shared), 8, (0, 1))["a"]
    ages = {name: torch.zeros(tensor.shape, dtype=torch.int16) for name, tensor in shared.items()}
    for name, left_out in trained_by(DIGITS, [chosen]).items():
        ages[name][~torch.as_tensor(left_out)] = 1000
    later = assign(DIGITS, [("a", limits)], Coverage(shared, ages), 8, (0, 1))["a"]
    waiting = [
        sum(int(ages[name][region].sum()) for name, region in regions(DIGITS, arch).items())
        for arch in (chosen, later)
    ]
    assert waiting[0] == 0 < waiting[1]


def test_ages_count_the_rounds_since_a_weight_was_trained() -> None:
    coverage = Coverage(layout(DIGITS))
    small, everything = DIGITS.smallest(), dict.fromkeys(layout(DIGITS), True)
    sizes = {name: int(np.prod(tensor.shape)) for name, tensor in layout(DIGITS).items()}
    for waited in (1, 2, 3):
        part = coverage.update(trained_by(DIGITS, [small]))
        assert part == pytest.approx(covered(DIGITS, [small]) / sum(sizes.values()))
        assert coverage.oldest() == waited
        for name, mask in trained_by(DIGITS, [small]).items():
            ages = torch.where(torch.as_tensor(mask), 0, waited).to(torch.int16)
            assert torch.equal(coverage.ages[name], ages)
    assert coverage.update(everything) == 1.0
    assert coverage.oldest() == 0
    assert coverage.update(dict.fromkeys(layout(DIGITS), False)) == 0.0
    assert coverage.oldest() == 1


def test_ages_do_not_run_over() -> None:
    ages = {"w": torch.full((2,), 32766, dtype=torch.int16)}
    coverage = Coverage({}, ages)
    for _ in range(3):
        coverage.update({"w": False})
    assert coverage.oldest() == 32766


def test_a_budget_below_the_smallest_subnet_is_a_usage_error() -> None:
    limits = Limits(Budget(macs=1), BATCH)
    with pytest.raises(UsageError, match="no subnet of this space"):
        maximal(DIGITS, limits, random.Random(0))
    with pytest.raises(UsageError, match=r"classes\.tiny: no subnet fits.*macs \d+ > 1"):
        require_fit(DIGITS, limits.budget, BATCH, "classes.tiny")
    require_fit(DIGITS, Budget(), BATCH, "x")


def profile(**changes: object) -> DeviceProfile:
    fields: Mapping[str, object] = {
        "device": "d",
        "device_class": "c",
        "cores": 1,
        "memory_bytes": 10**9,
        "train_macs_per_s": 1e9,
        "infer_macs_per_s": 1e9,
        "budget": {},
        "runtimes": (),
        "examples": 100,
        "validation_examples": 0,
        "input_shape": (1, 8, 8),
        "classes": ("0",),
        "normalization": Normalization(mean=(0.0,), std=(1.0,)),
    }
    return DeviceProfile(**{**fields, **changes})  # type: ignore[arg-type]


def test_limits_are_the_tightest_of_class_device_memory_and_speed() -> None:
    recipe = Recipe(batch_size=10, steps=5, students="none")
    device = profile(budget={"params": 50, "macs": 10**12})
    found = training_limits(DIGITS, device, Budget(params=70, file_bytes=9), recipe, 10.0)
    # Half of 10 s at 1e9 MACs/s, for 5 steps of 10 examples, forward and backward thrice.
    assert found.budget == Budget(
        macs=int(1e9 * 5.0 / (5 * 10 * 3)), params=50, train_memory_bytes=10**9, file_bytes=9
    )
    assert found.batch_size == 10
    distilled = Recipe(batch_size=10, steps=5, random_subnets=1)
    assert training_limits(DIGITS, profile(), Budget(), distilled, 10.0).budget.macs == int(
        1e9 * 5.0 / (5 * 10 * 9)
    )
    epochs = Recipe(batch_size=10, epochs=2, students="none")
    assert training_limits(DIGITS, profile(), Budget(), epochs, 10.0).budget.macs == int(
        1e9 * 5.0 / (20 * 10 * 3)
    )


def test_a_slow_device_may_still_train_the_smallest_subnet() -> None:
    slow = training_limits(DIGITS, profile(train_macs_per_s=1.0), Budget(), Recipe(), 10.0)
    assert slow.fits(DIGITS, DIGITS.smallest())
    assert maximal(DIGITS, slow, random.Random(0)).count("s0.depth") == 1


def test_the_numbers_of_the_most_boastful_device_do_not_break_the_limits() -> None:
    boastful = profile(train_macs_per_s=1e18, memory_bytes=2**53, examples=2**53)
    assert training_limits(DIGITS, boastful, Budget(), Recipe(), 1e7).budget.macs is not None
    with pytest.raises(UsageError, match="unknown bound"):
        training_limits(DIGITS, profile(budget={"mac": 1}), Budget(), Recipe(), 1e7)
