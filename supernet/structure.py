"""Axes that are made of other axes, and channels that move only together.

Most axes stand for themselves, and any order of their channels is as good as another. Not so the
features after flattening maps (each channel becomes height × width neighbours), the channels after
a concatenation (those of one tensor, then those of the next), or the channels of one group of a
group normalization. Groups are read off a space's layers; a family that has other such axes says
so by a method `structure`. Whoever selects or sorts channels follows both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import lcm
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from .space import Space


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring positions: `repeat` of them for each of an axis's channels, in order.

    `channels` is the axis's full size. Without an axis they are fixed: always all of them.
    """

    axis: str | None
    channels: int
    repeat: int = 1

    @property
    def positions(self) -> int:
        """How many positions there are."""
        return self.channels * self.repeat


@dataclass(frozen=True, slots=True)
class Structure:
    """Composed axis → its stretches; and axis → how many channels move together.

    `ordered` axes keep their order: other axes begin with their channels.
    """

    composed: Mapping[str, tuple[Stretch, ...]] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    ordered: frozenset[str] = frozenset()


@runtime_checkable
class Structured(Protocol):
    """A space whose axes are not all independent."""

    def structure(self) -> Structure:
        """What its composed axes are made of."""


@lru_cache(maxsize=64)
def structure_of(space: Space) -> Structure:
    """What a space states and the groups of its norm layers; else every axis stands for itself."""
    stated = space.structure() if isinstance(space, Structured) else Structure()
    units = dict(stated.units)
    for layer in _layers(space):
        if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
            (axis,) = _axes(layer, "weight") or (None,)
            for part in stated.composed.get(axis or "", (Stretch(axis, layer.num_channels),)):
                if part.axis is not None:
                    size = layer.num_channels // layer.num_groups
                    units[part.axis] = lcm(size, units.get(part.axis, 1))
    return replace(stated, units=units)


def positions_of(
    stretches: Sequence[Stretch], chosen: Mapping[str, Sequence[int]], full: Mapping[str, int]
) -> list[int]:
    """The positions on a composed axis of the channels chosen on its parts (of `full` size)."""
    found: list[int] = []
    start = 0
    for stretch in stretches:
        size, of = stretch.channels, range(stretch.channels)
        if stretch.axis is not None:
            size = full[stretch.axis]
        channels = of if stretch.axis is None else chosen[stretch.axis]
        found += [
            start + channel * stretch.repeat + k
            for channel in channels
            for k in range(stretch.repeat)
        ]
        start += size * stretch.repeat
    return found


@lru_cache(maxsize=64)
def kernel_axes(space: Space) -> frozenset[str]:
    """The axes that are positions in a kernel: they have a centre, and no order to choose."""
    return frozenset(
        axis
        for layer in _layers(space)
        if isinstance(layer, nn.Conv1d | nn.Conv2d)
        for axis in _axes(layer, "weight")[2:]
        if axis is not None
    )


def _layers(space: Space) -> list[nn.Module]:
    with torch.device("meta"):
        return list(space.build(space.largest()).modules())


def _axes(layer: nn.Module, tensor: str) -> tuple[str | None, ...]:
    return tuple(getattr(layer, "axes", {}).get(tensor, ()))
