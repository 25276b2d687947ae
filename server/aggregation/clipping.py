"""Norm clipping with a bound that follows the fleet; goes before any rule.

An update's size is the root mean square of its changes, so that subnets of unequal size compare. The
bound is `factor` times the median size of the updates of the last rounds, clipped ones counted at
their bound: less than half the fleet cannot move it far. In the first round, where nothing is known, the
updates wait on disk, and the bound is taken from them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from ...supernet.weights import Shapes
from .spool import Spool
from .update import Fold, Merged, Update

REMEMBERED_SIZES = 200
SUSPECT_SCALE = 1 / 3
"""A client whose update was cut to less than this is suspected."""


class Clipping:
    """Scales every update down to the bound and hands it on to a rule.

    `sizes` are those of former rounds' updates; what the next round must know is in the result's
    `memory`.
    """

    def __init__(self, rule: Fold, shapes: Shapes, factor: float, sizes: Sequence[float]) -> None:
        self._rule, self._factor, self._sizes = rule, factor, list(sizes)
        self._bound = factor * median(sizes) if sizes else None
        self._waiting = Spool(shapes)
        self._seen: list[float] = []
        self._suspects: dict[str, str] = {}

    def add(self, update: Update) -> None:
        """Count one client's update, or keep it while there is no bound."""
        size = size_of_change(update)
        if self._bound is None:
            self._seen.append(size)
            self._waiting.add(update)
        else:
            self._seen.append(min(size, self._bound))
            self._rule.add(self._clipped(update, size, self._bound))

    def result(self) -> Merged:
        """What the rule makes of the clipped updates."""
        if self._bound is None:
            bound = self._factor * median(self._seen)
            self._seen = [min(size, bound) for size in self._seen]
            for update in self._waiting.updates():
                self._rule.add(self._clipped(update, size_of_change(update), bound))
        self._waiting.close()
        found = self._rule.result()
        sizes = [*self._sizes, *self._seen][-REMEMBERED_SIZES:]
        memory: Mapping[str, Any] = {**found.memory, "sizes": sizes}
        return replace(found, suspects={**self._suspects, **found.suspects}, memory=memory)

    def _clipped(self, update: Update, size: float, bound: float) -> Update:
        if size <= bound:
            return update
        if bound < SUSPECT_SCALE * size:
            self._suspects[update.device] = "norm"
        return replace(update, scale=update.scale * bound / size)


def size_of_change(update: Update) -> float:
    """Root mean square of an update's changes."""
    flat = update.delta
    return update.scale * math.sqrt(float(np.dot(flat, flat)) / max(len(flat), 1))
