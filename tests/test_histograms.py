"""Histograms from several devices against those of all values in one place, and their ranges."""

import math

import numpy as np
import pytest
from fedofa.protos.histograms import MOST_BINS, Histogram
from fedofa.specialize.estimators import ESTIMATORS, TAIL, estimated, mse, percentile
from fedofa.supernet.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

numbers = st.floats(-(2.0**99), 2.0**99, width=32)
seen = st.lists(numbers, min_size=1, max_size=30)
sizes = st.sampled_from([2, 3, 16, 512, MOST_BINS])


@given(st.lists(seen, min_size=1, max_size=5), sizes, st.randoms(use_true_random=False))
def test_merged_histograms_are_that_of_all_values_pooled_in_any_order(
    parts: list[list[float]], bins: int, rng: object
) -> None:
    pooled = Histogram.of(np.float32([v for part in parts for v in part]), bins)
    found = [Histogram.of(np.float32(part), bins) for part in parts]
    rng.shuffle(found)  # type: ignore[attr-defined]
    merged = found[0]
    for part in found[1:]:
        merged = merged + part
    assert merged == pooled


@given(seen, sizes)
def test_a_histogram_counts_each_value_where_it_lies(values: list[float], bins: int) -> None:
    found = Histogram.of(np.float32(values), bins)
    edges = found.edges()
    assert (found.low, found.high, found.total) == (min(values), max(values), len(values))
    assert len(found.counts) <= bins
    assert found.zeros == values.count(0)
    for low, high, count in zip(edges[:-1], edges[1:], found.counts, strict=True):
        assert count == sum(low <= v < high and v != 0 for v in values)


@given(seen)
def test_a_histogram_uses_more_than_a_quarter_of_its_bins(values: list[float]) -> None:
    found = Histogram.of(np.float32(values), 64)
    assert len(found.counts) > 16 or found.level == -149


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 1}, "bins = 1; allowed: 2 to"),
        ({"low": math.nan}, "no finite range"),
        ({"high": math.inf}, "no finite range"),
        ({"low": 3.0}, "no finite range"),
        ({"level": 5}, "not those of its range"),
        ({"first": 1}, "not those of its range"),
        ({"counts": (1,)}, "not those of its range"),
        ({"zeros": -1}, "counts from 0 on"),
        ({"counts": (0, -1, 2), "zeros": 9}, "counts from 0 on"),
        ({"counts": (0, 0, 0), "zeros": 0}, "at least one value"),
    ],
)
def test_a_histogram_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    right: dict[str, object] = {
        "bins": 4,
        "low": 0.0,
        "high": 2.0,
        "level": 0,
        "first": 0,
        "counts": (0, 0, 1),
    }
    right["zeros"] = 1
    assert Histogram(**right) == Histogram.of(np.float32([0.0, 2.0]), 4)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        Histogram(**{**right, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [-math.inf]])
def test_what_is_no_number_makes_no_histogram(values: list[float]) -> None:
    with pytest.raises(UsageError, match="finite values expected"):
        Histogram.of(np.float32(values), 16)


def test_histograms_of_other_limits_do_not_add_up() -> None:
    with pytest.raises(UsageError, match="16 and 32 bins"):
        Histogram.of(np.float32([1]), 16) + Histogram.of(np.float32([1]), 32)


def clip_error(values: NDArray[np.float64], low: float, high: float, steps: int) -> float:
    """What rounding to a range does to values, by doing it."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / steps
    zero = np.round(-low / step)
    held = (np.clip(np.round(values / step) + zero, 0, steps) - zero) * step
    return float(np.square(held - values).mean())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("tails", [2, 3, 30])
@pytest.mark.parametrize("steps", [15, 255])
def test_the_range_of_least_error_is_nearly_the_best_of_all_ranges(
    relu: bool, tails: int, steps: int
) -> None:
    rng = np.random.default_rng(tails)
    values = rng.standard_t(tails, size=20_000).astype(np.float32)
    values = np.maximum(values, 0) if relu else values
    low, high = mse(Histogram.of(values, 2048), steps)
    found = clip_error(values.astype(np.float64), low, high, steps)
    shares = np.linspace(1 / 64, 1, 64)
    tried = [
        clip_error(
            values.astype(np.float64), a * float(values.min()), b * float(values.max()), steps
        )
        for a in (shares[::4] if not relu else [1.0])
        for b in shares
    ]
    # Within a step errors are taken to be uniform; of 15 steps over long tails that is not quite so.
    assert found <= (1.01 if steps == 255 else 1.08) * min(tried)
    if steps == 15:  # few steps and long tails: all of the range is far from the best
        assert found < 0.9 * clip_error(
            values.astype(np.float64), float(values.min()), float(values.max()), steps
        )


@given(st.lists(numbers, min_size=1, max_size=300), st.sampled_from(ESTIMATORS))
def test_estimated_ranges_lie_within_what_was_seen(values: list[float], estimator: str) -> None:
    seen = Histogram.of(np.float32(values), 128)
    low, high = estimated({"a0": seen}, estimator)["a0"]  # type: ignore[arg-type]
    assert min(values) <= low <= high <= max(values)
    if estimator == "minmax":
        assert (low, high) == (min(values), max(values))


def test_a_percentile_leaves_out_few_values_at_either_end_but_the_outliers() -> None:
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    values[:2], values[2:4] = 100.0, -50.0
    low, high = percentile(Histogram.of(values, 4096), 255)
    assert -5 < low < -3
    assert 3 < high < 5
    for beyond in (values > high, values < low):
        assert 2 <= beyond.sum() <= TAIL * len(values)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(UsageError, match="ranges = 'median'; allowed: minmax, percentile, mse"):
        estimated({}, "median")  # type: ignore[arg-type]
