"""Accuracy of a subnet predicted from a few that were measured: ridge regression on one-hot genes.

One-hot codes and a linear model are the strong, cheap baseline for so few samples (an integer code
ranks far worse); log-MACs is the one continuous feature. Subnets that were measured on different
examples are compared only among themselves: each group has its own intercept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..supernet.cost import cost
from ..supernet.space import Arch, Space

RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured subnet; those of one `group` were measured on the same examples."""

    arch: Arch
    group: str
    accuracy: float


@dataclass(frozen=True, slots=True)
class Predictor:
    """Scores an architecture; scores only rank, and best within one group's budget."""

    space: Space
    coefficients: NDArray[np.float64]

    def __call__(self, arch: Arch) -> float:
        """Higher is better."""
        return float(_features(self.space, arch) @ self.coefficients)


def fit(space: Space, samples: Sequence[Sample]) -> Predictor:
    """Least squares with a ridge, accuracies and features centred within each group."""
    x = np.stack([_features(space, sample.arch) for sample in samples])
    y = np.array([sample.accuracy for sample in samples])
    groups = np.array([sample.group for sample in samples])
    for group in set(groups):
        rows = groups == group
        x[rows] -= x[rows].mean(axis=0)
        y[rows] -= y[rows].mean()
    gram = x.T @ x + RIDGE * np.eye(x.shape[1])
    return Predictor(space, np.linalg.solve(gram, x.T @ y))


def _features(space: Space, arch: Arch) -> NDArray[np.float64]:
    found = [
        float(arch.get(gene.name) == option) for gene in space.genes for option in gene.options
    ]
    return np.array([*found, math.log(cost(space, arch).macs)])
