"""The difference from what a device holds: equal bits on both sides, no stranger's bytes believed."""

import contextlib
import tracemalloc

import numpy as np
import pytest
from codec_cases import seeds, size_of, some_config, some_shapes, tensors, update
from fedofa.protos.codec.bounds import worst_error
from fedofa.protos.codec.config import NEAREST_STEP_MOST, PRESETS, CodecConfig
from fedofa.protos.codec.difference import decode_difference, encode_difference
from fedofa.protos.codec.errors import CodecError
from fedofa.protos.codec.wire import largest_bytes
from fedofa.supernet.weights import Flat, Shapes
from hypothesis import given
from hypothesis import strategies as st

SHAPES = {"kernel": (24, 8, 3, 3), "scale": (24,), "bias": (24,), "head": (10, 24)}
ROUNDING = 2.0**-23
"""Two roundings to float32, each of half a unit in the last place."""


def partly(shapes: Shapes, seed: int, share: float) -> Flat:
    """Values of which only this share is held; the others are nan."""
    held = update(shapes, "normal", seed)
    held[np.random.default_rng(seed).random(len(held)) >= share] = np.nan
    return held


def delta_of(held: Flat, now: Flat) -> Flat:
    return np.where(np.isnan(held), np.float32(0), now - held)


def check_error(held: Flat, now: Flat, there: Flat, shapes: Shapes, config: CodecConfig) -> None:
    """What is new is exact; the rest is off by what the codec states for this difference alone."""
    fresh = np.isnan(held)
    assert (there[fresh] == now[fresh]).all()
    worst = worst_error(delta_of(held, now), shapes, config)
    off = np.abs(there.astype(np.float64) - now)
    slack = ROUNDING * (np.abs(now) + np.abs(np.nan_to_num(held)) + np.abs(there))
    for (name, errors), (_, more) in zip(tensors(off, shapes), tensors(slack, shapes), strict=True):
        assert (errors <= worst[name] + more).all(), name


@given(some_shapes, some_config, seeds, st.sampled_from((0.0, 0.5, 1.0)))
def test_values_arrive_within_the_stated_error_and_what_is_new_arrives_as_it_is(
    shapes: Shapes, config: CodecConfig, seed: int, share: float
) -> None:
    held, now = partly(shapes, seed, share), update(shapes, "heavy", seed + 1)
    data = encode_difference(held, now, shapes, config, seed)
    fresh = int(np.isnan(held).sum())
    assert len(data) <= largest_bytes(shapes, config) + 4 * fresh
    check_error(held, now, decode_difference(held, data, shapes, config), shapes, config)


def downwards(name: str) -> CodecConfig:
    """A preset as a run takes it for the way down: to the nearest, and not too coarsely for that."""
    config = PRESETS[name]
    if config.levels != "uniform":
        return config
    step = None if config.step is None else NEAREST_STEP_MOST
    return config.model_copy(update={"rounding": "nearest", "step": step})


@pytest.mark.parametrize("name", list(PRESETS)[1:])
def test_the_error_does_not_grow_over_rounds(name: str) -> None:
    config = downwards(name)
    held = now = update(SHAPES, "normal", 0)
    errors = []
    for number in range(1, 40):
        before, now = held, now + update(SHAPES, "normal", number)
        data = encode_difference(held, now, SHAPES, config, number)
        held = decode_difference(held, data, SHAPES, config)
        check_error(before, now, held, SHAPES, config)
        errors.append(float(np.linalg.norm(held - now)))
    still = now
    for number in range(40, 240):  # and it goes away where the weights rest
        data = encode_difference(held, still, SHAPES, config, number)
        held = decode_difference(held, data, SHAPES, config)
    assert np.linalg.norm(held - still) < 0.5 * min(errors[20:])


@given(st.sampled_from(list(PRESETS.values())), st.binary(max_size=300), seeds, st.booleans())
def test_random_bytes_are_a_difference_or_refused(
    config: CodecConfig, data: bytes, seed: int, known: bool
) -> None:
    held = partly(SHAPES, seed, 1.0 if known else 0.99)
    for head in (b"", b"\1", b"\1\0\0\0\0"):
        try:
            there = decode_difference(held, np.frombuffer(head + data, np.uint8), SHAPES, config)
        except CodecError:
            continue
        assert np.isfinite(there).all()


def test_new_values_that_are_no_numbers_or_missing_are_refused() -> None:
    config, held, now = PRESETS["sparse"], partly(SHAPES, 0, 0.5), update(SHAPES, "normal", 1)
    data = encode_difference(held, now, SHAPES, config, 0)
    with pytest.raises(CodecError):
        decode_difference(held, data[:-4], SHAPES, config)
    with pytest.raises(CodecError, match="more expected for new values"):
        decode_difference(held, data[:100], SHAPES, config)
    bad = data.copy()
    bad[-4:] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    with pytest.raises(CodecError, match="a value becomes no number"):
        decode_difference(held, bad, SHAPES, config)


def test_a_difference_too_large_for_float32_is_refused_on_both_sides() -> None:
    shapes, config = {"w": (2,)}, PRESETS["fedzip"]
    high, low = np.full(2, 3e38, np.float32), np.full(2, -3e38, np.float32)
    with pytest.raises(CodecError):
        encode_difference(low, high, shapes, config, 0)
    data = encode_difference(
        np.zeros(2, np.float32), np.full(2, 1e38, np.float32), shapes, config, 0
    )
    with pytest.raises(CodecError, match="a value becomes no number"):
        decode_difference(high, data, shapes, config)


@pytest.mark.parametrize("config", list(PRESETS.values())[1:], ids=lambda config: config.name)
def test_whatever_bytes_promise_no_more_memory_is_taken_than_the_values_need(
    config: CodecConfig,
) -> None:
    shapes = {"a": (256, 256), "b": (256,)}
    size = size_of(shapes)
    held = partly(shapes, 0, 1.0)
    good = encode_difference(held, partly(shapes, 1, 1.0), shapes, config, 0).tobytes()
    allowed = 3 * 4 * size + 30 * largest_bytes(shapes, config) + 2**18
    tracemalloc.start()
    try:
        for count in (0, 1, 2**16, 2**32 - 1):
            bad = np.frombuffer(good[:1] + count.to_bytes(4, "little") + good[5:], np.uint8)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(CodecError):
                decode_difference(held, bad, shapes, config)
            assert tracemalloc.get_traced_memory()[1] - before < allowed
    finally:
        tracemalloc.stop()
