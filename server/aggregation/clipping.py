"""Norm clipping with a bound that follows the fleet; goes before any rule.

An update's size is the root mean square of its changes, so that subnets of unequal size compare. The
bound is `factor` times the median, over the last rounds, of each round's median size, clipped updates
counted at their bound: less than half of a round's devices cannot move that round's median beyond what
honest ones sent, and no round counts more than another. In the first round, where nothing is known, the
updates wait on disk, and the bound is taken from them. A round in which most changed nothing says
nothing of sizes, and is not remembered.
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

REMEMBERED_ROUNDS = 20
MEDIAN_SIZES = "median_sizes"
"""Under this name the next round is told of former ones."""
SUSPECT_SCALE = 1 / 3
"""A client whose update was cut to less than this is suspected."""


class Clipping:
    """Scales every update down to the bound and hands it on to a rule.

    `medians` are former rounds' median sizes; what the next round must know is in the result's
    `memory`.
    """

    def __init__(self, rule: Fold, shapes: Shapes, factor: float, medians: Sequence[float]) -> None:
        self._rule, self._factor, self._medians = rule, factor, list(medians)
        self._bound = factor * median(medians) if medians else None
        self._waiting = Spool(shapes)
        self._seen: list[float] = []
        self._suspects: dict[str, str] = {}
        self._counted: dict[str, float] = {}

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
            # Where most changed nothing there is no typical size: nobody is clipped.
            bound = self._factor * median(self._seen) or math.inf
            self._seen = [min(size, bound) for size in self._seen]
            for update in self._waiting.updates():
                self._rule.add(self._clipped(update, size_of_change(update), bound))
        self._waiting.close()
        found = self._rule.result()
        typical = median(self._seen)
        medians = [*self._medians, *([typical] if typical > 0 else [])][-REMEMBERED_ROUNDS:]
        memory: Mapping[str, Any] = {**found.memory, MEDIAN_SIZES: medians}
        counted = {
            device: self._counted.get(device, 1.0) * found.counted.get(device, 1.0)
            for device in {**self._counted, **found.counted}
        }
        suspects = {**self._suspects, **found.suspects}
        return replace(found, suspects=suspects, memory=memory, counted=counted)

    def _clipped(self, update: Update, size: float, bound: float) -> Update:
        if size <= bound:
            return update
        if bound < SUSPECT_SCALE * size:
            self._suspects[update.device] = "norm"
        self._counted[update.device] = bound / size
        return replace(update, scale=update.scale * bound / size)


def size_of_change(update: Update) -> float:
    """Root mean square of an update's changes."""
    flat = update.delta
    return update.scale * math.sqrt(float(np.dot(flat, flat)) / max(len(flat), 1))
