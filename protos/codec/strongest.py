"""Which values of an update are sent: of every tensor the largest ones (top-z of FedZip, 2021)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...supernet.weights import Flat, Shapes
from .config import CodecConfig
from .gaps import Positions


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor in the flat array: where it begins, and how many of its values may be sent."""

    name: str
    begin: int
    size: int
    most: int

    @property
    def end(self) -> int:
        """Where the next tensor begins."""
        return self.begin + self.size


@dataclass(frozen=True, slots=True)
class Plan:
    """The tensors in the order of the message: first those with positions, then the whole ones."""

    sparse: tuple[Part, ...]
    whole: tuple[Part, ...]
    size: int

    @property
    def line(self) -> int:
        """How many values positions count along."""
        return sum(part.size for part in self.sparse)

    @property
    def sent_most(self) -> int:
        """How many values are sent with their position at most."""
        return sum(part.most for part in self.sparse)

    @property
    def whole_size(self) -> int:
        """How many values are sent without position."""
        return sum(part.size for part in self.whole)


def plan_of(shapes: Shapes, config: CodecConfig) -> Plan:
    """Which tensors are sent how."""
    parts = tuple(_parts(shapes, config.keep))
    # Most values on levels a step apart are zero: the others' positions take less than the zeros.
    all_whole = config.keep == 1 and config.step is None
    whole = tuple(p for p in parts if all_whole or p.size < config.whole_below)
    sparse = tuple(p for p in parts if not (all_whole or p.size < config.whole_below))
    return Plan(sparse, whole, sum(part.size for part in parts))


def _parts(shapes: Shapes, keep: float) -> Iterator[Part]:
    begin = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        yield Part(name, begin, size, min(size, max(1, round(keep * size))))
        begin += size


def strongest(values: Flat, most: int) -> Positions:
    """Ascending positions of the `most` values of largest magnitude, zeros left out.

    Of several with the magnitude at the edge the first ones are taken. The error of leaving out the
    others is the largest magnitude among them.
    """
    if most >= len(values):
        return np.flatnonzero(values)
    magnitudes = np.abs(values)
    edge = np.partition(magnitudes, len(values) - most)[len(values) - most]
    if edge == 0:
        return np.flatnonzero(values)
    found = np.flatnonzero(magnitudes >= edge)
    if len(found) > most:
        above = magnitudes[found] > edge
        above[np.flatnonzero(~above)[: most - np.count_nonzero(above)]] = True
        found = found[above]
    return found
