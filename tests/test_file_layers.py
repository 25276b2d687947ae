"""Layers read from and written into files: exact floats, integers within half a step, no other byte."""

from dataclasses import dataclass

import numpy as np
import pytest
from fedofa.protos.file_layers import Layer, Placed, Steps, check, read, written
from fedofa.specialize.placing import in_floats
from fedofa.supernet.errors import ArtifactError
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

INPUT_SCALE = 0.03


@dataclass(frozen=True)
class Case:
    content: bytes
    placed: dict[str, Placed]
    layers: dict[str, Layer]
    mine: NDArray[np.bool_]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: layer.kernel.shape for name, layer in self.layers.items()}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A file of random bytes in which layers have places, and values to put there."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    at, placed, layers, spans = draw(st.integers(0, 9)), {}, {}, []

    def place(size: int) -> int:
        nonlocal at
        start = at + draw(st.integers(0, 7))
        at = start + size
        spans.append((start, at))
        return start

    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
        order = tuple(draw(st.permutations(range(len(shape)))))
        integers, biased = draw(st.booleans()), draw(st.booleans())
        outputs, count = shape[0], int(np.prod(shape))
        kernel = place(count if integers else 4 * count)
        bias = place(4 * outputs) if biased else None
        steps = None
        if integers:
            scale = place(4 * outputs)
            steps = Steps(
                levels=draw(st.sampled_from([63, 127])),
                scale=scale,
                bias_scale=place(4 * outputs) if biased else None,
                input_scale=INPUT_SCALE if biased else None,
            )
        placed[f"l{number}"] = Placed(kernel=kernel, order=order, bias=bias, steps=steps)
        values = rng.normal(size=shape) * 10.0 ** rng.integers(-50, 3)
        layers[f"l{number}"] = Layer(
            values.astype(np.float32),
            rng.normal(size=outputs).astype(np.float32) if biased else None,
        )
    content = rng.bytes(at + draw(st.integers(0, 9)))
    mine = np.zeros(len(content), bool)
    for start, end in spans:
        mine[start:end] = True
    return Case(content, placed, layers, mine)


@given(cases())
def test_what_is_written_is_read_and_no_other_byte_moves(case: Case) -> None:
    file = written(case.content, case.placed, case.layers)
    before, after = (np.frombuffer(data, np.uint8) for data in (case.content, file))
    assert len(before) == len(after)
    assert (before == after)[~case.mine].all()
    for name, layer in read(file, case.placed, case.shapes).items():
        wanted, steps = case.layers[name], case.placed[name].steps
        if steps is None:
            assert (layer.kernel == wanted.kernel).all()
        else:
            scale = np.frombuffer(file, "<f4", len(wanted.kernel), steps.scale)
            assert (scale > 0).all()
            step = scale.reshape(-1, *(1,) * (wanted.kernel.ndim - 1))
            assert (np.abs(layer.kernel - wanted.kernel) <= 0.5001 * step).all()
            largest = np.abs(wanted.kernel).reshape(len(wanted.kernel), -1).max(1)
            needed = 0 if wanted.bias is None else np.abs(wanted.bias) / (INPUT_SCALE * 2**31)
            assert (scale <= 1.002 * np.maximum(largest / steps.levels, needed) + 1e-37).all()
        if wanted.bias is None or layer.bias is None:
            assert wanted.bias is layer.bias
        elif steps is None:
            assert (layer.bias == wanted.bias).all()
        else:
            unit = scale * INPUT_SCALE
            gap = np.abs(layer.bias - wanted.bias)
            assert (gap <= 0.5001 * unit + 1e-6 * np.abs(wanted.bias)).all()


@given(cases())
def test_what_was_read_is_written_back_to_the_same_reals(case: Case) -> None:
    file = written(case.content, case.placed, case.layers)
    found = read(file, case.placed, case.shapes)
    again = read(written(file, case.placed, found), case.placed, case.shapes)
    for name, layer in found.items():
        np.testing.assert_allclose(again[name].kernel, layer.kernel, rtol=1e-6)


def test_a_channel_without_weights_keeps_its_step() -> None:
    steps = Steps(levels=127, scale=4)
    placed = {"l": Placed(kernel=0, order=(0, 1), steps=steps)}
    scale = np.array([0.5, 0.25], "<f4").tobytes()
    layer = Layer(np.array([[0.0, 0.0], [1.27, 0.0]], np.float32), None)
    file = written(b"\7\7\7\7" + scale, placed, {"l": layer})
    assert np.frombuffer(file, "<f4", 2, 4).tolist() == [0.5, np.float32(1.27) / np.float32(127)]
    assert file[:4] == bytes([0, 0, 127, 0])


@pytest.mark.parametrize(
    ("places", "size", "said"),
    [
        ({"a": (0, (0, 1), 16), "b": (20, (0, 1), 36)}, 44, "layers a and b lie over each other"),
        (
            {"a": (0, (0, 1), 16), "b": (24, (0, 1), 40)},
            47,
            "layer b ends at byte 48 of a file of 47",
        ),
        ({"a": (0, (0, 2, 1), 16), "b": (24, (0, 1), 40)}, 99, "layer a: 3 dimensions in the file"),
        ({"a": (0, (0, 1), 16)}, 99, "layer b: the manifest does not say where"),
        ({"a": (0, (0, 1), None), "b": (24, (0, 1), 40)}, 99, "layer a: a bias on one side only"),
    ],
)
def test_places_that_cannot_be_are_refused(
    places: dict[str, tuple[int, tuple[int, ...], int | None]], size: int, said: str
) -> None:
    placed = {n: Placed(kernel=k, order=o, bias=b) for n, (k, o, b) in places.items()}
    layer = Layer(np.ones((2, 2), np.float32), np.ones(2, np.float32))
    with pytest.raises(ArtifactError, match=said):
        written(bytes(size), placed, {"a": layer, "b": layer})


def test_values_that_are_not_finite_are_refused() -> None:
    placed = {"a": Placed(kernel=0, order=(0, 1))}
    layer = Layer(np.array([[np.inf]], np.float32), None)
    with pytest.raises(ArtifactError, match="layer a: its values are not finite"):
        written(bytes(4), placed, {"a": layer})


@pytest.mark.parametrize("order", [(0, 0), (1, 2), (0, 1, 3)])
def test_an_order_names_each_dimension_once(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="each dimension once"):
        Placed(kernel=0, order=order)


@given(st.integers(0, 2**32 - 1), st.permutations(range(3)), st.integers(0, 5))
def test_a_layer_is_found_where_it_stands_once_and_nowhere_else(
    seed: int, order: list[int], gap: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 2, 4)).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    stored = np.ascontiguousarray(kernel.transpose(order)).tobytes()
    content = rng.bytes(gap) + stored + rng.bytes(gap) + bias.tobytes()
    found = in_floats(content, {"l": Layer(kernel, bias), "other": Layer(kernel + 1, None)})
    assert found.keys() == {"l"}
    check(found, {"l": kernel.shape}, len(content))
    held = read(content, found, {"l": kernel.shape})["l"]
    assert (held.kernel == kernel).all()
    assert held.bias is not None
    assert (held.bias == bias).all()
    # Where two layers share a constant, writing one would change the other.
    assert in_floats(content + stored, {"l": Layer(kernel, bias)}) == {}
