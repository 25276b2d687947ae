"""Fronts hold nothing that is dominated, volumes are exact, and gates open only to what fits."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from fedofa.specialize.search.contract import Evaluated
from fedofa.specialize.search.gate import Gate
from fedofa.specialize.search.nsga2 import crowded_order, crowding, fronts
from fedofa.specialize.search.pareto import (
    best_within,
    front_of,
    hypervolume,
    nondominated,
)
from fedofa.supernet.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_search import ALL, macs_of

GRID = 5


def grids(dimensions: int) -> st.SearchStrategy[list[tuple[int, ...]]]:
    point = st.tuples(*[st.integers(0, GRID) for _ in range(dimensions)])
    return st.lists(point, min_size=1, max_size=12)


def beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


@given(st.integers(1, 3).flatmap(grids))
def test_a_point_is_in_the_front_just_when_no_other_dominates_it(points: list[tuple]) -> None:
    found = nondominated(np.array(points, float))
    for point, stays in zip(points, found, strict=True):
        assert stays == (not any(beats(other, point) for other in points))
    assert found.any()


@given(st.integers(1, 3).flatmap(grids))
def test_fronts_peel_the_points_off_layer_by_layer(points: list[tuple]) -> None:
    left = np.arange(len(points))
    values = np.array(points, float)
    for front in fronts(values):
        assert sorted(front) == sorted(left[nondominated(values[left])])
        left = np.setdiff1d(left, front)
    assert not len(left)
    assert sorted(crowded_order(values)) == list(range(len(points)))


@given(st.integers(1, 3).flatmap(grids), st.randoms(use_true_random=False))
def test_the_volume_is_the_count_of_cells_that_something_dominates(
    points: list[tuple], rng: object
) -> None:
    corner = (GRID,) * len(points[0])
    cells = itertools.product(range(GRID), repeat=len(corner))
    counted = sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
        for cell in cells
    )
    assert hypervolume(np.array(points, float), corner) == counted
    rng.shuffle(points)  # type: ignore[attr-defined]
    assert hypervolume(np.array(points, float), corner) == counted
    kept = np.array(points, float)[nondominated(np.array(points, float))]
    assert hypervolume(kept, corner) == counted


def test_a_volume_that_cannot_be_computed_is_refused() -> None:
    for points, corner in (
        ([[1.0] * 4], [2.0] * 4),
        ([[math.nan]], [2.0]),
        ([[1.0]], [math.inf]),
    ):
        with pytest.raises(UsageError, match="hypervolume"):
            hypervolume(np.array(points), corner)
    assert hypervolume(np.empty((0, 2)), (1, 1)) == 0


def test_crowding_is_the_gap_between_neighbours_and_infinite_at_the_ends() -> None:
    points = np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])
    assert crowding(points).tolist() == [math.inf, 4 / 4 + 4 / 4, math.inf]


evaluations = st.lists(
    st.tuples(st.sampled_from(ALL), st.integers(0, 6)),
    min_size=1,
    max_size=25,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: [Evaluated(arch, score / 6, 0.0) for arch, score in pairs])


@given(evaluations, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_a_front_of_subnets_is_the_same_in_any_order_and_covers_everything(
    found: list[Evaluated], rng: object
) -> None:
    def keep_small(arch: object) -> tuple[float, ...]:
        return (float(macs_of(arch)),)  # type: ignore[arg-type]

    front = front_of(found, keep_small)
    macs = [macs_of(one.arch) for one in front]
    assert macs == sorted(set(macs))
    assert [one.score for one in front] == sorted({one.score for one in front})
    for one in found:
        assert any(
            kept.score >= one.score and macs_of(kept.arch) <= macs_of(one.arch) for kept in front
        )
    rng.shuffle(found)  # type: ignore[attr-defined]
    assert front_of(found, keep_small) == front
    assert front_of(front, keep_small) == front


def test_of_equal_subnets_the_same_one_is_kept_in_any_order() -> None:
    equal: dict[int, list[Evaluated]] = {}
    for arch in ALL:
        equal.setdefault(macs_of(arch), []).append(Evaluated(arch, 0.5, 0.0))
    alike = max(equal.values(), key=len)
    assert len(alike) > 1
    fronts = [front_of(order, lambda _: (1.0,)) for order in (alike, alike[::-1])]
    assert fronts[0] == fronts[1]
    assert len(fronts[0]) == 1


@given(evaluations, st.integers(0, 10**5))
@settings(max_examples=60)
def test_a_lookup_in_the_front_is_as_good_as_one_among_all(
    found: list[Evaluated], bound: int
) -> None:
    front = front_of(found, lambda arch: (float(macs_of(arch)),))
    fitting = [one for one in found if macs_of(one.arch) <= bound]
    if fitting:
        best = best_within(front, lambda arch: macs_of(arch) <= bound)
        assert macs_of(best.arch) <= bound
        assert best.score == max(one.score for one in fitting)
    else:
        with pytest.raises(UsageError, match=f"none of the {len(front)} architectures"):
            best_within(front, lambda arch: macs_of(arch) <= bound)


def test_an_empty_front_says_so() -> None:
    assert front_of([], lambda _: (0.0,)) == ()
    with pytest.raises(UsageError, match="none of the 0"):
        best_within((), lambda _: True)


# ── gates ────────────────────────────────────────────────────────────────────────────────────────

positive = st.floats(1e-3, 1e3)
names = ("latency_ms", "macs", "file_bytes")
triples = st.fixed_dictionaries({name: st.tuples(positive, positive, positive) for name in names})


@given(
    triples, st.fixed_dictionaries({name: st.sampled_from((0.25, 8.0, 1024.0)) for name in names})
)
def test_an_overshoot_is_zero_just_when_all_bounds_are_kept_and_the_same_in_every_unit(
    given_: dict[str, tuple[float, float, float]], units: dict[str, float]
) -> None:
    def gate(scale: dict[str, float]) -> tuple[Gate, dict[str, float]]:
        bounds = {name: scale[name] * given_[name][0] for name in names}
        worst = {name: scale[name] * given_[name][1] for name in names}
        return Gate(bounds, worst), {name: scale[name] * given_[name][2] for name in names}

    one, spent = gate(dict.fromkeys(names, 1.0))
    other, scaled = gate(units)
    assert (one.overshoot(spent) == 0) == one.fits(spent) == (not one.excess(spent))
    assert other.overshoot(scaled) == pytest.approx(one.overshoot(spent))
    more = {name: 2 * value for name, value in spent.items()}
    assert one.overshoot(more) >= one.overshoot(spent)


def test_an_overshoot_counts_in_parts_of_what_the_space_exceeds_at_most() -> None:
    gate = Gate({"macs": 100, "latency_ms": 2}, {"macs": 300})
    assert gate.overshoot({"macs": 200, "latency_ms": 2}) == pytest.approx(0.5)
    assert gate.overshoot({"macs": 50, "latency_ms": 3}) == pytest.approx(0.5)
    assert gate.excess({"macs": 200, "latency_ms": 3}) == ["macs 200 > 100", "latency_ms 3 > 2"]


def test_a_measurement_that_is_missing_or_no_number_never_fits() -> None:
    gate = Gate({"latency_ms": 2})
    assert not gate.fits({"latency_ms": math.nan})
    assert gate.overshoot({"latency_ms": math.nan}) == math.inf
    with pytest.raises(UsageError, match="latency_ms is bounded and was not measured"):
        gate.fits({"macs": 1})


@pytest.mark.parametrize("bound", [0, -1, math.nan, math.inf])
def test_an_absurd_bound_is_named(bound: float) -> None:
    with pytest.raises(UsageError, match="latency_ms"):
        Gate({"latency_ms": bound})
