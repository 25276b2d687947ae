"""A learned blend of scores that need no evaluation (RoBoT, He et al., ICLR 2024).

Each score is scaled to 0…1 over the measured subnets, a missing (NaN) one counts 0; the blend is
their weighted sum, with weights in −1…1 chosen for the best rank correlation with what was measured.

Deviation: the paper chooses weights by Bayesian optimisation, whose every step measures the subnet
that the blend ranks first. Here the measured subnets are given, so weights are compared on all of
them: each score alone, with either sign, is among those compared, so that on the measured subnets
the blend ranks at least as well as the best single score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...supernet.errors import UsageError
from ...supernet.randomness import array_stream
from ...supernet.space import Arch, Space
from .contract import Fit, Matrix, Prediction, Sample, Vector, centred_accuracies, group_rows
from .ranks import kendall_tau

Scores = Mapping[str, Callable[[Arch], float]]
"""Name → a score of an architecture that needs no evaluation."""
DRAWS = 256


@dataclass(frozen=True, slots=True)
class Blend:
    """Weights (M,) of scores that are scaled by `low` and `span`; `slope` makes it an accuracy."""

    scores: tuple[Callable[[Arch], float], ...]
    low: Vector
    span: Vector
    weights: Vector
    slope: float
    residual: float

    def predict(self, archs: Sequence[Arch]) -> Prediction:
        """Higher is better."""
        blended = _scaled(_table(self.scores, archs), self.low, self.span) @ self.weights
        return Prediction(self.slope * blended, np.full(len(archs), self.residual))


def blend_of(scores: Scores) -> Fit:
    """A way to fit a blend of these scores."""
    if not scores:
        raise UsageError("predictor: a blend needs at least one score")
    functions = tuple(scores.values())

    def fit(space: Space, samples: Sequence[Sample]) -> Blend:
        y = centred_accuracies(samples)
        table = _table(functions, [sample.arch for sample in samples])
        low, span = _range(table)
        x = _scaled(table, low, span)
        weights = max(_candidates(len(functions)), key=lambda w: _agreement(x @ w, samples, y))
        blended = x @ weights
        for rows in group_rows(samples):
            blended[rows] -= blended[rows].mean()
        power = float(blended @ blended)
        # Never negative: a slope below 0 would turn the ranking round.
        slope = max(float(blended @ y) / power, 1e-12) if power else 1e-12
        residual = float(np.sqrt(np.mean((y - slope * blended) ** 2)))
        return Blend(functions, low, span, weights, slope, residual)

    return fit


def _candidates(count: int) -> list[Vector]:
    alone = [sign * row for row in np.eye(count) for sign in (1.0, -1.0)]
    return [*alone, *array_stream("blend", count).uniform(-1, 1, (DRAWS, count))]


def _agreement(blended: Vector, samples: Sequence[Sample], y: Vector) -> float:
    """Rank correlation within each group, by their numbers of subnets."""
    parts = [(kendall_tau(blended[rows], y[rows]), rows.sum()) for rows in group_rows(samples)]
    return float(sum(tau * count for tau, count in parts) / len(y))


def _table(scores: Sequence[Callable[[Arch], float]], archs: Sequence[Arch]) -> Matrix:
    return np.array(
        [[score(arch) for score in scores] for arch in archs], dtype=np.float64
    ).reshape(len(archs), len(scores))


def _range(table: Matrix) -> tuple[Vector, Vector]:
    finite = np.where(np.isfinite(table), table, np.nan)
    low = np.array([np.nanmin(c) if np.isfinite(c).any() else 0.0 for c in finite.T])
    high = np.array([np.nanmax(c) if np.isfinite(c).any() else 0.0 for c in finite.T])
    return low, np.where(high > low, high - low, 1.0)


def _scaled(table: Matrix, low: Vector, span: Vector) -> Matrix:
    scaled = (table - low) / span
    return np.where(np.isfinite(scaled), scaled, 0.0)
