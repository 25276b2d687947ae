"""Ridge regression on one-hot genes: the strong, cheap baseline for so few samples.

Subnets that were measured on different examples are compared only among themselves: each group has
its own intercept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...supernet.space import Arch, Space
from .contract import Prediction, Sample, Vector, centred_accuracies, group_rows
from .features import encode

RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Linear:
    """Features times coefficients; the spread is that of the residuals, each left out once."""

    space: Space
    coefficients: Vector
    residual: float

    def predict(self, archs: Sequence[Arch]) -> Prediction:
        """Higher is better."""
        score = encode(self.space, archs) @ self.coefficients
        return Prediction(score, np.full(len(archs), self.residual))


def fit(space: Space, samples: Sequence[Sample]) -> Linear:
    """Least squares with a ridge, accuracies and features centred within each group."""
    y = centred_accuracies(samples)
    x = encode(space, [sample.arch for sample in samples])
    for rows in group_rows(samples):
        x[rows] -= x[rows].mean(axis=0)
    gram = x.T @ x + RIDGE * np.eye(x.shape[1])
    coefficients: Vector = np.linalg.solve(gram, x.T @ y).astype(np.float64)
    leverage = np.einsum("ij,ji->i", x, np.linalg.solve(gram, x.T))
    left_out = (y - x @ coefficients) / (1 - leverage)
    return Linear(space, coefficients, float(np.sqrt(np.mean(left_out**2))))
