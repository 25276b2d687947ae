"""The steps up by which the models of a gateway come to what they get of its budget (`shares.py`).

Whichever step brings most accuracy for what it spends more is taken, again and again, until none fits.
A model's best step is worked out when the model has moved, when the step no longer fits, and when less is
spent of some bound than before, so that a better one may have come to fit. Otherwise it is the same: what
fits only becomes less, and the best of more that still fits is the best of less.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .table import Mask, Vector

ROUNDING = 1e-9
"""A step that spends no more than before counts as spending so much, as a part of the budget."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A model's best step: what it brings for what it spends, and which candidate it leads to."""

    worth: float
    place: int


@dataclass(slots=True)
class Climb:
    """Of each model its weight, (C,) accuracies, (C, K) parts of each bound spent, and (C,) what fits it."""

    weights: Sequence[float]
    accuracy: Sequence[Vector]
    spent: Sequence[Vector]
    fits: Sequence[Mask]
    _steps: list[_Step | None] = field(default_factory=list)

    def up(self, chosen: list[int]) -> None:
        """Take steps as long as one fits, in place; `chosen` are the models' candidates."""
        total = self._total(chosen)
        self._steps = [self._best(number, at, total) for number, at in enumerate(chosen)]
        while (moved := self._most()) is not None:
            number, step = moved
            chosen[number] = step.place
            before, total = total, self._total(chosen)
            freed = bool((total < before).any())
            for other, at in enumerate(chosen):
                if freed or other == number or not self._still(other, at, total):
                    self._steps[other] = self._best(other, at, total)

    def _total(self, chosen: Sequence[int]) -> Vector:
        """(K,) what the chosen candidates spend together."""
        rows = [mine[place] for mine, place in zip(self.spent, chosen, strict=True)]
        return np.asarray(np.sum(rows, axis=0), dtype=np.float64)

    def _most(self) -> tuple[int, _Step] | None:
        """The best step of all models, of equal ones the first; None where none brings anything."""
        found: tuple[int, _Step] | None = None
        for number, step in enumerate(self._steps):
            if step is not None and step.worth > (0.0 if found is None else found[1].worth):
                found = number, step
        return found

    def _still(self, number: int, at: int, total: Vector) -> bool:
        """Whether the model's best step fits as it did; where there was none, there is none."""
        step = self._steps[number]
        if step is None:
            return True
        more = self.spent[number][step.place] - self.spent[number][at]
        return bool((total + more <= 1).all())

    def _best(self, number: int, at: int, total: Vector) -> _Step | None:
        gain = self.weights[number] * (self.accuracy[number] - self.accuracy[number][at])
        more = self.spent[number] - self.spent[number][at]
        fits = (gain > 0) & (total + more <= 1).all(axis=1) & self.fits[number]
        if not fits.any():
            return None
        worth = np.where(fits, gain / np.maximum(more.sum(axis=1), ROUNDING), 0.0)
        place = int(worth.argmax())
        return _Step(float(worth[place]), place)
