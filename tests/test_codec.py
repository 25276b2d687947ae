"""An update as few bytes, and back: errors as stated, sizes as promised, nothing from strangers."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from codec_cases import seeds, size_of, some_config, some_shapes, some_update, tensors, update
from fedofa.benchmarks.accuracy_tasks import FASHION
from fedofa.protos.codec.bits import Reader
from fedofa.protos.codec.bounds import worst_error
from fedofa.protos.codec.config import NEAREST_STEP_MOST, PRESETS, CodecConfig
from fedofa.protos.codec.errors import CodecError
from fedofa.protos.codec.frequencies import PARTS, SYMBOLS, read_table, write_table
from fedofa.protos.codec.gaps import split_gaps
from fedofa.protos.codec.rans import Coded, bound_bits, decode_symbols, encode_symbols, lanes_of
from fedofa.protos.codec.wire import decode, encode, largest_bytes
from fedofa.supernet.axes import regions
from fedofa.supernet.weights import Flat, shapes_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

FASHION_SHAPES = shapes_of(regions(FASHION, FASHION.largest()))
SHAPES = {"kernel": (24, 16, 3, 3), "scale": (24,), "bias": (24,), "head": (10, 24)}


@given(some_update, some_config, seeds)
def test_what_arrives_is_within_the_stated_error_and_size(
    case: tuple[dict[str, tuple[int, ...]], Flat], config: CodecConfig, seed: int
) -> None:
    shapes, delta = case
    data = encode(delta, shapes, config, seed)
    assert len(data) <= largest_bytes(shapes, config)
    arrived = decode(memoryview(data), shapes, config)
    assert arrived.dtype == np.float32
    worst = worst_error(delta, shapes, config)
    assert list(worst) == list(shapes)
    there = dict(tensors(arrived, shapes))
    for name, values in tensors(delta, shapes):
        off = np.abs(there[name].astype(np.float64) - values).max(initial=0)
        assert off <= worst[name], name


@given(some_update, some_config, seeds)
def test_what_is_zero_stays_zero(
    case: tuple[dict[str, tuple[int, ...]], Flat], config: CodecConfig, seed: int
) -> None:
    shapes, delta = case
    arrived = decode(encode(delta, shapes, config, seed), shapes, config)
    assert not arrived[delta == 0].any()


@given(some_update, st.sampled_from(("rans", "none")))
def test_an_exact_codec_gives_back_every_bit(
    case: tuple[dict[str, tuple[int, ...]], Flat], entropy: str
) -> None:
    shapes, delta = case
    delta[::7] = -0.0
    config = CodecConfig.model_validate({"entropy": entropy})
    arrived = decode(encode(delta, shapes, config, 0), shapes, config)
    assert arrived.tobytes() == delta.tobytes()
    assert set(worst_error(delta, shapes, config).values()) <= {0.0}


@given(some_shapes, st.sampled_from((0.5, 0.1, 0.01)), seeds)
def test_the_values_sent_are_the_largest_of_each_tensor(
    shapes: dict[str, tuple[int, ...]], keep: float, seed: int
) -> None:
    delta = update(shapes, "normal", seed)
    config = CodecConfig(keep=keep)
    arrived = dict(tensors(decode(encode(delta, shapes, config, 0), shapes, config), shapes))
    for name, values in tensors(delta, shapes):
        most = max(1, round(keep * len(values)))
        expected = np.zeros_like(values)
        largest = np.argsort(-np.abs(values))[:most]
        expected[largest] = values[largest]
        assert (arrived[name] == expected).all()
        rest = np.sort(np.abs(values))[:-most]
        assert worst_error(delta, shapes, config)[name] == rest.max(initial=0)


def test_of_equal_magnitudes_no_more_are_sent_than_wanted() -> None:
    delta = np.array([1, -1, 1, 2, 1, -1, 1, 1, 1, 1], np.float32)
    config = CodecConfig(keep=0.3)
    arrived = decode(encode(delta, {"t": (10,)}, config, 0), {"t": (10,)}, config)
    assert arrived.tolist() == [1, -1, 0, 2, 0, 0, 0, 0, 0, 0]


def test_small_tensors_may_be_sent_whole() -> None:
    delta = update(SHAPES, "normal", 0)
    config = CodecConfig(keep=0.01, whole_below=100)
    arrived = dict(tensors(decode(encode(delta, SHAPES, config, 0), SHAPES, config), SHAPES))
    for name, values in tensors(delta, SHAPES):
        sent = len(values) if len(values) < 100 else round(len(values) / 100)
        assert np.count_nonzero(arrived[name]) == sent


@pytest.mark.parametrize(("bits", "step"), [(2, None), (4, None), (8, None), (8, 4.0), (3, 1.0)])
def test_rounding_by_chance_gives_the_true_value_on_average(bits: int, step: float | None) -> None:
    shapes, draws = {"t": (50,)}, 600
    delta = update(shapes, "heavy", 1)
    # The largest is not one of bfloat16, so that its scale has to be larger than it is.
    delta[np.abs(delta).argmax()] = 1.0035 * 2 ** np.ceil(np.log2(np.abs(delta).max()))
    config = CodecConfig(levels="uniform", bits=bits, step=step, entropy="none")
    mean = np.mean(
        [decode(encode(delta, shapes, config, s), shapes, config) for s in range(draws)], 0
    )
    # A level's distance is the most that one draw is off; its mean of many is off much less.
    off = worst_error(delta, shapes, config)["t"] / math.sqrt(draws)
    assert np.abs(mean - delta).max() < 3 * off


def test_rounding_by_chance_never_rounds_beyond_the_last_level() -> None:
    delta = np.ones(2_000_000, np.float32)
    config = CodecConfig(levels="uniform", bits=8, entropy="none")
    shapes = {"t": delta.shape}
    assert (decode(encode(delta, shapes, config, 0), shapes, config) == 1).all()


def test_levels_of_all_tensors_lie_as_far_apart_as_asked_or_reach_the_largest() -> None:
    delta = update(SHAPES, "normal", 0)
    delta[-240:] *= 10  # the head
    typical = math.sqrt(float(np.mean(delta.astype(np.float64) ** 2)))
    for bits, most in ((8, 127), (2, 1)):
        config = CodecConfig(levels="uniform", bits=bits, step=0.5)
        arrived = dict(tensors(decode(encode(delta, SHAPES, config, 0), SHAPES, config), SHAPES))
        for name, values in tensors(delta, SHAPES):
            apart = max(0.5 * typical, float(np.abs(values).max()) / most)
            steps = np.unique(np.abs(arrived[name])) / apart
            # A scale is rounded up, to 8 bits.
            assert (np.abs(steps - np.rint(steps)) <= 0.01 * np.rint(steps)).all(), name


def test_to_the_nearest_something_is_sent_of_values_that_are_alike() -> None:
    delta = np.full(500, 0.3, np.float32)
    config = CodecConfig(levels="uniform", bits=8, step=NEAREST_STEP_MOST, rounding="nearest")
    for seed in range(3):
        assert decode(encode(delta, {"t": (500,)}, config, seed), {"t": (500,)}, config).all()


def test_of_wide_steps_only_what_is_no_zero_takes_room() -> None:
    delta = update(FASHION_SHAPES, "normal", 0)
    sizes = [
        len(encode(delta, FASHION_SHAPES, CodecConfig(levels="uniform", bits=8, step=step), 0))
        for step in (1.0, 4.0, 16.0)
    ]
    # Of normal values a share of 0.8 / step is no zero; a position among so few takes more bits.
    for step, size in zip((4.0, 16.0), sizes[1:], strict=True):
        share = math.sqrt(2 / math.pi) / step
        entropy = share - share * math.log2(share) - (1 - share) * math.log2(1 - share)
        assert size < 1.06 * entropy * len(delta) / 8 + 400
    assert sizes[0] > 2 * sizes[1]


def test_the_seed_decides_and_nothing_else() -> None:
    delta, config = update(SHAPES, "normal", 0), PRESETS["int4"]
    one, again, other = (encode(delta, SHAPES, config, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_a_sign_is_worth_the_mean_magnitude_of_what_is_sent() -> None:
    delta = np.array([0.1, -3, 0, 5, -4, 0.2, 0.1, 0], np.float32)
    config = CodecConfig(keep=3 / 8, levels="sign")
    arrived = decode(encode(delta, {"t": (8,)}, config, 0), {"t": (8,)}, config)
    assert arrived.tolist() == [0, -4, 0, 4, -4, 0, 0, 0]


def test_clusters_find_groups_of_magnitudes_and_keep_zero_a_level() -> None:
    random = np.random.default_rng(0)
    levels = np.array([0, 0.001, 1.0, 4.0, 9.0])
    drawn = random.choice(levels, 5000) * random.choice((-1, 1), 5000)
    delta = (drawn * random.uniform(0.97, 1.03, 5000)).astype(np.float32)
    config = CodecConfig(levels="clusters", bits=3)
    arrived = decode(encode(delta, {"t": (5000,)}, config, 0), {"t": (5000,)}, config)
    # Three magnitudes: what is next to nothing becomes nothing.
    assert len(np.unique(arrived)) == 7
    assert np.abs(arrived - np.where(np.abs(drawn) < 0.01, 0, drawn)).max() < 0.1


def test_clusters_are_no_worse_than_even_levels() -> None:
    delta = update(SHAPES, "heavy", 0)

    def lost(**fields: object) -> float:
        config = CodecConfig.model_validate({"bits": 4, **fields})
        return float(
            np.linalg.norm(decode(encode(delta, SHAPES, config, 0), SHAPES, config) - delta)
        )

    assert lost(levels="clusters") < lost(levels="uniform", rounding="nearest")


@given(some_update, some_config)
def test_but_for_rounding_by_chance_less_is_lost_than_was_there(
    case: tuple[dict[str, tuple[int, ...]], Flat], config: CodecConfig
) -> None:
    """Which is what keeps an error memory bounded."""
    shapes, delta = case
    if config.levels == "uniform":
        config = config.model_copy(update={"rounding": "nearest"})
    arrived = decode(encode(delta, shapes, config, 0), shapes, config).astype(np.float64)
    lost = np.linalg.norm(arrived - delta)
    # Half a unit of a bfloat16, and what is smaller than any.
    assert lost <= np.linalg.norm(delta.astype(np.float64)) * (1 + 2**-8) + 1e-38


@pytest.mark.parametrize("name", ["sparse", "sparsest"])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_a_sparse_update_is_a_hundred_times_smaller(name: str, kind: str) -> None:
    delta = update(FASHION_SHAPES, kind, 0)
    data = encode(delta, FASHION_SHAPES, PRESETS[name], 0)
    assert len(data) * 100 < delta.nbytes


def test_the_format_is_what_it_was() -> None:
    delta = np.zeros(64, np.float32)
    delta[:2] = 0.001
    delta[[3, 10, 11, 60]] = 0.5, -0.25, 0.75, -0.5
    config = CodecConfig(keep=4 / 62, whole_below=3, levels="sign")
    fields = {
        "version": "01",
        "sent": "04000000",
        "scales": "003f 833a",
        "streams": "00 00 00",
        "words": "00000000",
        # Gaps 2, 7, 1 and 49: classes 1, 2, 0 and 5, the lowest bit of all of them first.
        "classes": "290800",
        "signs": "0a",
        "codes": "03",
        "low bits": "8e",
    }
    data = encode(delta, {"whole": (2,), "kernel": (62,)}, config, 0)
    assert data == bytes.fromhex("".join(fields.values()))


def decoded_by_hand(data: bytes, words: int, size: int, parts: Sequence[int]) -> list[int]:
    """One stream, by the definition of the coder, with whole numbers only."""
    lanes = lanes_of(size)
    states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
    rest = [int.from_bytes(data[4 * lanes + 2 * i :][:2], "little") for i in range(words)]
    firsts = [sum(parts[:symbol]) for symbol in range(len(parts) + 1)]
    found = []
    for place in range(size):
        x = states[place % lanes]
        found.append(next(s for s, (a, b) in enumerate(pairwise(firsts)) if a <= x % PARTS < b))
        x = parts[found[-1]] * (x // PARTS) + x % PARTS - firsts[found[-1]]
        if x < 2**16:
            x = x * 2**16 + rest.pop(0)
        states[place % lanes] = x
    assert not rest
    assert all(2**16 <= x < 2**17 for x in states)
    return found


def skewed(size: int, symbols: int, seed: int) -> np.ndarray:
    """Symbols of which the lower ones are more frequent."""
    random = np.random.default_rng(seed)
    return np.minimum(random.geometric(0.3, size) - 1, symbols - 1).astype(np.uint8)


def parts_of(symbols: np.ndarray) -> np.ndarray:
    table = write_table(np.bincount(symbols, minlength=SYMBOLS))
    return read_table(Reader(memoryview(table)), SYMBOLS)


@given(st.integers(1, 800), st.sampled_from((1, 2, 5, 200)), seeds)
def test_coded_symbols_are_those_of_the_definition(size: int, count: int, seed: int) -> None:
    symbols = skewed(size, count, seed)
    parts = parts_of(symbols)
    data, words = encode_symbols([Coded(symbols, parts)], b"")
    assert decoded_by_hand(data, words, size, parts.tolist()) == symbols.tolist()
    assert 16 * words <= bound_bits(np.bincount(symbols, minlength=SYMBOLS), parts)


@given(st.lists(st.integers(0, 900), max_size=4), st.binary(max_size=40), seeds)
def test_streams_and_what_is_carried_come_back(sizes: list[int], carried: bytes, seed: int) -> None:
    streams = [skewed(size, place + 1, seed + place) for place, size in enumerate(sizes)]
    streams = [stream for stream in streams if len(stream)]
    tables = [parts_of(stream) for stream in streams]
    coded = [Coded(stream, parts) for stream, parts in zip(streams, tables, strict=True)]
    data, words = encode_symbols(coded, carried)
    reader, lengths = Reader(memoryview(data)), [len(stream) for stream in streams]
    found, came = decode_symbols(reader, words, lengths, tables)
    reader.end()
    assert [f.tolist() for f in found] == [s.tolist() for s in streams]
    assert came[: len(carried)] == carried[: len(came)]
    assert not any(came[len(carried) :])


def test_coded_symbols_take_little_more_than_their_entropy() -> None:
    symbols = skewed(200_000, 30, 0)
    counts = np.unique(symbols, return_counts=True)[1]
    entropy_bytes = -counts @ np.log2(counts / len(symbols)) / 8
    data, _ = encode_symbols([Coded(symbols, parts_of(symbols))], b"")
    assert entropy_bytes < len(data) < 1.01 * entropy_bytes + 4 * lanes_of(len(symbols))


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=SYMBOLS).filter(any))
def test_every_symbol_that_occurs_has_a_part_and_parts_add_up(counts: list[int]) -> None:
    table = write_table(np.array(counts))
    parts = read_table(Reader(memoryview(table)), SYMBOLS)
    assert parts.sum() == PARTS
    assert (parts[: len(counts)] > 0).tolist() == [count > 0 for count in counts]
    assert not parts[len(counts) :].any()


def test_large_gaps_are_split_rightly() -> None:
    classes, gaps = split_gaps(np.array([0, 1, 2**31 - 2, 2**31 + 2**30]))
    assert classes.tolist() == [0, 0, 30, 30]
    assert gaps.tolist() == [1, 1, 2**31 - 3, 2**30 + 2]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"keep": 0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"keep": math.nan}, "keep"),
        ({"whole_below": -1}, "whole_below"),
        ({"whole_below": 5}, "whole_below = 5 is not used with keep = 1"),
        ({"levels": "huffman"}, "levels"),
        ({"levels": "uniform"}, "bits is missing"),
        ({"levels": "clusters", "bits": 1}, "bits"),
        ({"levels": "uniform", "bits": 9}, "bits"),
        ({"levels": "sign", "bits": 2}, "bits = 2 is not used with levels = sign"),
        ({"bits": 8}, "bits = 8 is not used with levels = float32"),
        ({"levels": "sign", "rounding": "nearest"}, "rounding = nearest is not used"),
        ({"entropy": "zip"}, "entropy"),
        ({"top": 3}, "top"),
    ],
)
def test_a_codec_that_cannot_be_names_the_field(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        CodecConfig.model_validate(fields)


def test_a_preset_has_the_name_that_it_is_found_by() -> None:
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@pytest.mark.parametrize("name", ["exact", "int8", "sparse"])
def test_an_update_that_is_no_number_is_not_encoded(value: float, name: str) -> None:
    delta = np.zeros(size_of(SHAPES), np.float32)
    delta[100] = value
    with pytest.raises(CodecError, match="no number or beyond"):
        encode(delta, SHAPES, PRESETS[name], 0)


@pytest.mark.parametrize("delta", [np.zeros(3, np.float32), np.zeros(size_of(SHAPES))])
def test_an_array_of_other_tensors_is_not_encoded(delta: Flat) -> None:
    with pytest.raises(ValueError, match="these tensors have"):
        encode(delta, SHAPES, PRESETS["exact"], 0)
