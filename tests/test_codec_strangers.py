"""Bytes from a stranger are an update or a CodecError, and cost no more memory than one may."""

import random
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from codec_cases import size_of, update
from fedofa.protos.codec.bits import Reader
from fedofa.protos.codec.config import PRESETS, CodecConfig
from fedofa.protos.codec.errors import CodecError
from fedofa.protos.codec.gaps import join_gaps, split_gaps
from fedofa.protos.codec.rans import decode_symbols
from fedofa.protos.codec.wire import decode, encode, largest_bytes
from fedofa.protos.messages import MessageError
from fedofa.supernet.weights import Flat
from hypothesis import given
from hypothesis import strategies as st

SHAPES = {"kernel": (24, 8, 3, 3), "scale": (24,), "bias": (24,), "head": (10, 24)}
CONFIGS = (
    *PRESETS.values(),
    CodecConfig(name="mixed", keep=0.1, whole_below=30, levels="uniform", bits=8),
    CodecConfig(name="plain", keep=0.3, entropy="none"),
)
DELTA = update(SHAPES, "heavy", 0)
MESSAGES = {config: encode(DELTA, SHAPES, config, 0) for config in CONFIGS}


def check(data: bytes, config: CodecConfig, shapes: dict[str, tuple[int, ...]] = SHAPES) -> bool:
    """Whether it decodes; anything but a finite array or a CodecError fails the test."""
    try:
        arrived = decode(data, shapes, config)
    except CodecError:
        return False
    assert arrived.dtype == np.float32
    assert arrived.shape == (size_of(shapes),)
    assert np.isfinite(arrived).all()
    return True


def test_its_error_is_one_of_a_message() -> None:
    assert issubclass(CodecError, MessageError)


@given(st.sampled_from(CONFIGS), st.binary(max_size=400))
def test_random_bytes(config: CodecConfig, data: bytes) -> None:
    check(data, config)
    check(b"\1" + data, config)
    check(b"\1\0\0\0\0" + data, config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_message_cut_off_or_gone_on_is_refused(config: CodecConfig) -> None:
    data = MESSAGES[config]
    for end in range(0, len(data), max(1, len(data) // 80)):
        assert not check(data[:end], config)
    assert not check(data + b"\0", config)
    assert check(data, config)


def spoilt(data: bytes, draws: random.Random) -> bytes:
    """The message with a few bits or bytes changed."""
    wrong = bytearray(data)
    for _ in range(draws.choice((1, 1, 2, 8))):
        at = draws.choice((draws.randrange(len(wrong)), draws.randrange(min(len(wrong), 40))))
        wrong[at] = draws.choice((wrong[at] ^ 1 << draws.randrange(8), draws.randrange(256), 255))
    return bytes(wrong)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_spoilt_messages(config: CodecConfig) -> None:
    draws = random.Random(0)
    outcomes = {check(spoilt(MESSAGES[config], draws), config) for _ in range(150)}
    assert False in outcomes


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_messages_of_other_codecs_and_other_tensors(config: CodecConfig) -> None:
    other = {"kernel": (24, 8, 3, 3), "scale": (23,), "bias": (24,), "head": (10, 24)}
    for data in MESSAGES.values():
        check(data, config)
        check(data, config, other)
        check(data, config, {})


def test_a_message_that_is_too_long_is_not_even_looked_at() -> None:
    most = largest_bytes(SHAPES, PRESETS["sparse"])
    with pytest.raises(CodecError, match=f"{most + 1} bytes; these tensors take at most {most}"):
        decode(bytes(most + 1), SHAPES, PRESETS["sparse"])


def wrong(data: bytes, at: int, field: bytes) -> bytes:
    return data[:at] + field + data[at + len(field) :]


@pytest.mark.parametrize(
    ("levels", "at", "field", "named"),
    [
        ("sign", 0, b"\2", "version 2"),
        ("sign", 1, b"\x0b", "sent: 11 values; at most 10"),
        ("sign", 5, b"\x00\x80", "scales: one is negative"),
        ("sign", 5, b"\x80\x7f", "scales: one is negative or no finite number"),
        ("clusters", 7, b"\xc0\x7f", "codebook: one is negative or no finite number"),
        ("clusters", 7, b"\0\x7f", "codebook: its magnitudes do not ascend"),
        ("clusters", 5, b"\x7f\x7f\0\0\0\0\x7f\x7f", "no number or beyond"),
        ("float32", 5, b"\2", "stream: mode 2"),
        ("float32", 5, b"\1\3\2", "table: of symbols 3 to 2"),
        ("float32", 5, b"\1\0\x20", "table: of symbols 0 to 32; there are 32"),
        ("float32", 5, b"\1\0\0\0", "table: no symbol occurs"),
        ("float32", 10, b"\xff", "words: 510 bytes expected"),
        ("float32", -20, b"\xff" * 20, "no number or beyond"),
    ],
)
def test_what_is_wrong_is_named(levels: str, at: int, field: bytes, named: str) -> None:
    fields = {"keep": 0.1, "levels": levels, "bits": 3 if levels == "clusters" else None}
    config, shapes = CodecConfig.model_validate({**fields, "entropy": "none"}), {"t": (100,)}
    # Every tenth: each gap is ten, so that the low bits of none are the message's end but three.
    delta = np.where(np.arange(100) % 10 == 0, np.arange(1, 101), 0).astype(np.float32)
    data = encode(delta, shapes, config, 0)
    at = at if at >= 0 else len(data) - 4 - 20
    with pytest.raises(CodecError, match=named):
        decode(wrong(data, at, field), shapes, config)


@pytest.mark.parametrize(
    "config", [PRESETS["int4"], CodecConfig(keep=0.5, levels="uniform", bits=4)]
)
def test_a_level_that_there_is_not_is_refused(config: CodecConfig) -> None:
    config = config.model_copy(update={"entropy": "none"})
    shapes, delta = {"t": (8,)}, np.full(8, 1, np.float32)
    data = encode(delta, shapes, config, 0)
    # Whole: eight codes of four bits at the end. By position: four, and of gaps no low bits.
    codes = 4 if config.keep == 1 else 2
    assert decode(data, shapes, config).any()
    with pytest.raises(CodecError, match="codes: one is beyond the 14 that there are"):
        decode(data[:-codes] + b"\xff" * codes, shapes, config)


def test_a_position_just_after_the_last_value_is_refused() -> None:
    classes, gaps = split_gaps(np.array([2, 9]))
    assert join_gaps(classes, gaps, 10).tolist() == [2, 9]
    with pytest.raises(CodecError, match="one is 9, the tensors have 9 values"):
        join_gaps(classes, gaps, 9)


def test_symbols_that_do_not_end_where_an_encoder_begins_are_refused() -> None:
    halves = np.array([2048, 2048] + [0] * 254, np.uint32)
    for state, ends in ((2**17, True), (2**18 - 1, True), (2**18, False), (2**31, False)):
        reader = Reader(memoryview(state.to_bytes(4, "little")))
        if ends:
            decode_symbols(reader, 0, [1], [halves])
            continue
        with pytest.raises(CodecError, match="do not end where their encoder began"):
            decode_symbols(reader, 0, [1], [halves])


LARGE = {"a": (256, 256), "b": (256,), "c": (64, 256)}


def hostile(config: CodecConfig) -> Iterator[bytes]:
    """Messages that promise much: counts, sizes and words up to the largest, and streams of one."""
    good = encode(update(LARGE, "heavy", 0), LARGE, config, 0)
    most = largest_bytes(LARGE, config)
    for count in (0, 1, 2**16, 2**31, 2**32 - 1):
        yield good[:1] + count.to_bytes(4, "little") + good[5:]
        yield good[:1] + count.to_bytes(4, "little") + b"\xff" * 30
    for begin in range(5, 60, 3):
        yield good[:begin] + b"\xff" * 8 + good[begin + 8 :]
    scales = b"\0" * 2 * (3 + (config.magnitudes() if config.levels == "clusters" else 0))
    head = b"" if config.levels == "float32" else scales
    streams = 5 if config.levels == "float32" else 3
    for sent in (0, 500, 1200, 4000):
        for symbol in (0, 1, 31, 32, 255):
            # Every stream coded, of one symbol that costs nothing.
            one = bytes([1, symbol, symbol, 255]) * streams
            message = b"\1" + sent.to_bytes(4, "little") + head + one
            yield message + bytes(4) + b"\0\0\1\0" * ((most - len(message)) // 4 - 1)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_whatever_bytes_promise_no_more_memory_is_taken_than_allowed(config: CodecConfig) -> None:
    size = size_of(LARGE)
    allowed = 4 * size + 30 * largest_bytes(LARGE, config) + 2**18
    messages = list(hostile(config))
    tracemalloc.start()
    try:
        for data in messages:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            check(data, config, LARGE)
            assert tracemalloc.get_traced_memory()[1] - before < allowed
    finally:
        tracemalloc.stop()


def test_no_change_takes_few_bytes_and_arrives() -> None:
    nothing: Flat = np.zeros(size_of(LARGE), np.float32)
    for config in CONFIGS:
        data = encode(nothing, LARGE, config, 0)
        assert not decode(data, LARGE, config).any()
        assert len(data) < nothing.nbytes / 50 or config.levels == "float32"
