"""Where the layers of a network lie in its exported files, and how values are written there.

An exported file is a graph and its constants. A device that knows where the constants are can put
others in their place: the same operators, at the same cost, and no converter needed. Pure numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..supernet.errors import ArtifactError

Floats = NDArray[np.float32]
FLOAT, INT8, UINT8, INT32 = (np.dtype(kind) for kind in ("<f4", "i1", "u1", "<i4"))
SMALLEST = np.finfo(np.float32).tiny
MARGIN, ROUNDED = 0.999, 0.501


class Steps(BaseModel):
    """How a layer's integers stand for real numbers.

    kernel = (integer - zero) · scale of its output channel, whose largest difference is `levels`; integers
    are signed bytes about 0 or unsigned ones about 128. The scales are float32 at byte `scale`. bias =
    integer · input_scale · scale, these products at byte `bias_scale`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    levels: int = Field(ge=1, le=127)
    zero: Literal[0, 128] = 0
    scale: int = Field(ge=0)
    bias_scale: int | None = Field(default=None, ge=0)
    input_scale: float | None = Field(default=None, gt=0)


class Placed(BaseModel):
    """Where one convolution or linear layer lies in a file, in bytes from its start.

    The kernel (float32, or bytes with `steps`) is at `kernel`, its dimensions in this `order`: the
    file's dimension d is the network's order[d], in which outputs come first. The bias (float32, or
    int32) is at `bias`; None: the layer has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kernel: int = Field(ge=0)
    order: tuple[int, ...] = Field(min_length=2, max_length=5)
    bias: int | None = Field(default=None, ge=0)
    steps: Steps | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order {self.order}: each dimension once")
        steps = None if self.bias is None else self.steps
        if steps is not None and None in (steps.bias_scale, steps.input_scale):
            raise ValueError("a bias of integers needs bias_scale and input_scale")
        return self


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's values: kernel (outputs, …), bias (outputs,) or None."""

    kernel: Floats
    bias: Floats | None


Layers = Mapping[str, Layer]
Shapes = Mapping[str, tuple[int, ...]]
"""Layer → its kernel's shape in the network."""


def read(content: bytes, placed: Mapping[str, Placed], shapes: Shapes) -> dict[str, Layer]:
    """The layers' values as the file holds them, integers as the real numbers they stand for.

    ArtifactError names a layer that is not placed within the file, or not as its shape asks.
    """
    check(placed, shapes, len(content))
    return {name: _read(content, placed[name], shape) for name, shape in shapes.items()}


def written(content: bytes, placed: Mapping[str, Placed], layers: Layers) -> bytes:
    """The file with these layers in place of its own; integers are rounded in steps of a channel.

    A channel whose weights are all zero keeps its step. ArtifactError as `read`, for values that are not
    finite, for a bias where the file has none, and where integers cannot stand for the values.
    """
    shapes = {name: layer.kernel.shape for name, layer in layers.items()}
    check(placed, shapes, len(content))
    file = bytearray(content)
    for name, layer in layers.items():
        place = placed[name]
        if (layer.bias is None) != (place.bias is None):
            raise ArtifactError(
                f"layer {name}: a bias on one side only, of the file and the network"
            )
        values = [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]
        if not all(np.isfinite(each).all() for each in values):
            raise ArtifactError(f"layer {name}: its values are not finite")
        if place.steps is None:
            _put(file, place.kernel, _ordered(layer.kernel, place).astype(FLOAT))
            if layer.bias is not None and place.bias is not None:
                _put(file, place.bias, layer.bias.astype(FLOAT))
        else:
            _put_integers(file, place, place.steps, layer)
            _compare(name, layer, bytes(file), place)
    return bytes(file)


def check(placed: Mapping[str, Placed], shapes: Shapes, size_bytes: int) -> None:
    """ArtifactError unless each of these layers lies in a file of this size, none over another."""
    spans: list[tuple[int, int, str]] = []
    for name, shape in shapes.items():
        place = placed.get(name)
        if place is None:
            raise ArtifactError(
                f"layer {name}: the manifest does not say where it lies in the file"
            )
        if len(place.order) != len(shape):
            raise ArtifactError(
                f"layer {name}: {len(place.order)} dimensions in the file, {len(shape)} in the network"
            )
        spans += [(at, at + size, name) for at, size in _spans(place, shape)]
    spans.sort()
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            raise ArtifactError(f"layers {one} and {other} lie over each other in the file")
    if spans and spans[-1][1] > size_bytes:
        raise ArtifactError(
            f"layer {spans[-1][2]} ends at byte {spans[-1][1]} of a file of {size_bytes}"
        )


def _spans(place: Placed, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Start and size of each of a layer's parts."""
    steps, outputs = place.steps, shape[0]
    found = [(place.kernel, int(np.prod(shape)) * (4 if steps is None else 1))]
    if place.bias is not None:
        found.append((place.bias, 4 * outputs))
    if steps is not None:
        found.append((steps.scale, 4 * outputs))
        if place.bias is not None and steps.bias_scale is not None:
            found.append((steps.bias_scale, 4 * outputs))
    return found


def _read(content: bytes, place: Placed, shape: tuple[int, ...]) -> Layer:
    dims = tuple(shape[dim] for dim in place.order)
    back = np.argsort(place.order)
    steps, outputs = place.steps, shape[0]
    kind = FLOAT if steps is None else _integers(steps)
    kernel = _get(content, place.kernel, kind, int(np.prod(shape))).reshape(dims).transpose(back)
    if steps is None:
        bias = None if place.bias is None else _get(content, place.bias, FLOAT, outputs)
        return Layer(np.ascontiguousarray(kernel, np.float32), bias)
    scale = _get(content, steps.scale, FLOAT, outputs)
    bias = None
    if place.bias is not None and steps.bias_scale is not None:
        bias_scale = _get(content, steps.bias_scale, FLOAT, outputs)
        bias = (_get(content, place.bias, INT32, outputs) * bias_scale).astype(np.float32)
    real = (kernel.astype(np.float32) - steps.zero) * along_outputs(scale, kernel.ndim)
    return Layer(np.ascontiguousarray(real), bias)


def _put_integers(file: bytearray, place: Placed, steps: Steps, layer: Layer) -> None:
    kernel, ndim = layer.kernel, layer.kernel.ndim
    scale = _scales(layer, steps, _get(bytes(file), steps.scale, FLOAT, len(kernel)))
    rounded = np.round(kernel / along_outputs(scale, ndim)).clip(-steps.levels, steps.levels)
    _put(file, place.kernel, _ordered(rounded + steps.zero, place).astype(_integers(steps)))
    _put(file, steps.scale, scale)
    if layer.bias is None or place.bias is None:
        return
    if steps.bias_scale is None or steps.input_scale is None:
        raise AssertionError("checked when the place was made")
    bias_scale = (scale * np.float32(steps.input_scale)).astype(FLOAT)
    limits = np.iinfo(np.int32)
    whole = np.round(layer.bias.astype(np.float64) / bias_scale.astype(np.float64))
    whole = whole.clip(limits.min, limits.max)
    _put(file, place.bias, whole.astype(INT32))
    _put(file, steps.bias_scale, bias_scale)


def _compare(name: str, wanted: Layer, file: bytes, place: Placed) -> None:
    """What was written must be half a step from what was wanted, bias and all."""
    got = _read(file, place, wanted.kernel.shape)
    if place.steps is None:
        raise AssertionError("of integers only")
    scale = _get(file, place.steps.scale, FLOAT, len(wanted.kernel))
    near = np.abs(got.kernel - wanted.kernel) <= ROUNDED * along_outputs(scale, got.kernel.ndim)
    fine = bool(near.all() and np.isfinite(scale).all())
    if got.bias is not None and wanted.bias is not None and place.steps.input_scale is not None:
        unit = scale * np.float32(place.steps.input_scale)
        gap = np.abs(got.bias - wanted.bias)
        fine = fine and bool((gap <= ROUNDED * unit + 1e-5 * np.abs(wanted.bias)).all())
    if not fine:
        raise ArtifactError(f"layer {name}: integers of the file's steps cannot hold its values")


def _scales(layer: Layer, steps: Steps, kept: Floats) -> Floats:
    """A step for each channel: so small as the kernel allows, and as large as its bias needs.

    A bias is counted in steps too, and must fit four bytes: a channel of nearly no weights gets steps
    larger than these. One without weights keeps what it had, if that is enough.
    """
    largest = np.abs(layer.kernel).reshape(len(layer.kernel), -1).max(1).astype(np.float64)
    scale = largest / steps.levels
    if layer.bias is not None and steps.input_scale is not None:
        most = float(np.iinfo(np.int32).max) * MARGIN
        needed = np.abs(layer.bias.astype(np.float64)) / (steps.input_scale * most)
        scale = np.maximum(scale, needed)
    found = np.where(largest > 0, scale, np.maximum(scale, kept)).astype(FLOAT)
    return np.where(found >= SMALLEST, found, SMALLEST).astype(FLOAT)


def along_outputs(values: Floats, ndim: int) -> Floats:
    """A value of each output channel, shaped to meet a kernel of so many dimensions."""
    return values.reshape(-1, *(1,) * (ndim - 1))


def _integers(steps: Steps) -> np.dtype[Any]:
    return UINT8 if steps.zero else INT8


def _ordered(kernel: Floats, place: Placed) -> Floats:
    return np.ascontiguousarray(kernel.transpose(place.order))


def _get(content: bytes, at: int, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    return np.frombuffer(content, kind, count, at).copy()


def _put(file: bytearray, at: int, values: NDArray[Any]) -> None:
    data = values.tobytes()
    file[at : at + len(data)] = data
