"""Activation ranges from several devices against those of all values in one place."""

import json

import numpy as np
import pytest
from fedofa.protos.inference import Ranges
from fedofa.specialize.ranges import agreeing, merge
from fedofa.supernet.errors import ExportError
from hypothesis import given
from hypothesis import strategies as st

values = st.floats(-(2.0**99), 2.0**99, width=32)
seen = st.lists(values, min_size=1, max_size=20)
devices = st.lists(st.tuples(seen, seen), min_size=1, max_size=6)


def ranges(first: list[float], second: list[float]) -> Ranges:
    return {"a0": (min(first), max(first)), "a7": (min(second), max(second))}


@given(devices, st.randoms(use_true_random=False))
def test_merged_ranges_are_those_of_all_values_pooled_in_any_order(
    found: list[tuple[list[float], list[float]]], rng: object
) -> None:
    pooled = ranges(*([v for part in parts for v in part] for parts in zip(*found, strict=True)))
    parts = [ranges(*part) for part in found]
    rng.shuffle(parts)  # type: ignore[attr-defined]
    assert merge(parts) == pooled
    assert merge([merge(parts[:1]), *parts[1:]]) == pooled


@given(values, values)
def test_ranges_travel_as_json_without_losing_a_bit(low: float, high: float) -> None:
    back = json.loads(json.dumps({"a0": (low, high)}))
    assert np.array(back["a0"], np.float32).tobytes() == np.array([low, high], np.float32).tobytes()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no device"),
        ([{"a0": (0.0, 1.0)}, {"a1": (0.0, 1.0)}], "other tensors.*a0.*a1"),
        ([{"a0": (0.0, 1.0)}, {}], "other tensors"),
        ([{}, {"a0": (0.0, 1.0)}], "other tensors"),
        ([{"a0": (float("nan"), 1.0)}], "a0"),
        ([{"a0": (0.0, float("inf"))}], "a0"),
        ([{"a0": (0.0, 1.0)}, {"a0": (2.0, 1.0)}], "a0"),
    ],
)
def test_ranges_that_cannot_be_are_refused(parts: list[Ranges], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        merge(parts)


def test_a_device_that_names_other_tensors_is_left_out_of_the_merge() -> None:
    parts = [{"a": (0.0, 1.0)}, {"b": (-9.0, 9.0)}, {"a": (-1.0, 0.5)}]
    assert merge(agreeing(parts)) == {"a": (-1.0, 1.0)}
    assert agreeing([]) == []
