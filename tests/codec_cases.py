"""Updates, tensors and codecs for the tests of the codec."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from fedofa.protos.codec.config import CodecConfig
from fedofa.supernet.weights import Flat
from hypothesis import strategies as st

Shapes = Mapping[str, tuple[int, ...]]

TENSORS = (
    st.sampled_from(((), (1,), (0,), (3,), (2, 3, 3), (40,), (16, 9), (300,)))
    | st.tuples(st.integers(1, 70))
    | st.tuples(st.integers(1, 20), st.integers(1, 20))
)
some_shapes: st.SearchStrategy[Shapes] = st.lists(TENSORS, min_size=1, max_size=6).map(
    lambda tensors: {f"t{place}": shape for place, shape in enumerate(tensors)}
)
_keeps = st.sampled_from((1.0, 0.5, 0.2, 0.02, 1e-9))
_wholes = st.sampled_from((0, 10, 1000))


def _config(keep: float, whole_below: int, **fields: object) -> CodecConfig:
    return CodecConfig.model_validate(
        {"keep": keep, "whole_below": whole_below if keep < 1 else 0, **fields}
    )


_entropy = st.sampled_from(("rans", "none"))
_bits = st.sampled_from((2, 3, 4, 8))
roundings = st.sampled_from(("chance", "nearest"))


def _uniform(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[CodecConfig]:
    levels = st.just("uniform")
    return st.builds(
        _config, _keeps, _wholes, entropy=_entropy, levels=levels, bits=_bits, **fields
    )


some_config: st.SearchStrategy[CodecConfig] = st.one_of(
    st.builds(
        _config, _keeps, _wholes, entropy=_entropy, levels=st.sampled_from(("float32", "sign"))
    ),
    st.builds(_config, _keeps, _wholes, entropy=_entropy, levels=st.just("clusters"), bits=_bits),
    _uniform(step=st.none() | st.sampled_from((0.01, 1.0, 1.5)), rounding=roundings),
    _uniform(step=st.sampled_from((4.0, 64.0)), rounding=st.just("chance")),
)


def update(shapes: Shapes, kind: str, seed: int) -> Flat:
    """Values of these tensors: bell-shaped, heavy-tailed, of few values, mostly zero, tiny, huge."""
    random, size = np.random.default_rng(seed), size_of(shapes)
    normal = random.standard_normal(size)
    values = {
        "normal": 0.01 * normal,
        "heavy": random.standard_t(2, size),
        "ties": np.rint(normal),
        "zeros": normal * (random.random(size) < 0.1),
        "tiny": normal * 1e-44,
        "huge": np.clip(normal * 1e38, -2e38, 2e38),
    }
    return values[kind].astype(np.float32)


KINDS = ("normal", "heavy", "ties", "zeros", "tiny", "huge")
seeds = st.integers(0, 2**32 - 1)
some_update = st.builds(
    lambda shapes, kind, seed: (shapes, update(shapes, kind, seed)),
    some_shapes,
    st.sampled_from(KINDS),
    seeds,
)


def size_of(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def tensors(flat: Flat, shapes: Shapes) -> Iterator[tuple[str, Flat]]:
    """Each tensor's values."""
    begin = 0
    for name, shape in shapes.items():
        yield name, flat[begin : begin + math.prod(shape)]
        begin += math.prod(shape)
