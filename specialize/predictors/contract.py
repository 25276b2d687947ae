"""What a predictor learns from and what it gives: numpy in, numpy out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...supernet.errors import UsageError
from ...supernet.space import Arch, Space

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured subnet; those of one `group` were measured on the same examples.

    `error` is the accuracy's standard error, 0 where it is exact or unknown.
    """

    arch: Arch
    group: str
    accuracy: float
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Per architecture (N,) a score that ranks, and how far it may be off (standard deviation)."""

    score: Vector
    spread: Vector


class Predictor(Protocol):
    """Scores architectures; scores only rank, and best within one group's budget."""

    def predict(self, archs: Sequence[Arch]) -> Prediction:
        """Higher is better."""


Fit = Callable[[Space, Sequence[Sample]], Predictor]
"""Makes a predictor; the result depends on the samples only. UsageError when there are none."""


def centred_accuracies(samples: Sequence[Sample]) -> Vector:
    """Accuracies (N,) less the mean of their group: other examples are easier or harder."""
    if not samples:
        raise UsageError("predictor: no measured subnet to learn from; at least one is needed")
    y = np.array([sample.accuracy for sample in samples])
    for rows in group_rows(samples):
        y[rows] -= y[rows].mean()
    return y


def group_rows(samples: Sequence[Sample]) -> list[NDArray[np.bool_]]:
    """One mask (N,) per group, in order of first appearance."""
    groups = np.array([sample.group for sample in samples])
    return [groups == group for group in dict.fromkeys(sample.group for sample in samples)]
