"""How well latencies are predicted of subnets that the predictor did not see, and whether to trust it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import spearmanr

from ...supernet.space import Arch
from .features import Features
from .regression import Timed

Predict = Callable[[Arch], float]
MOST_ERROR, LEAST_RANK, MOST_NOISE = 0.08, 0.97, 0.10
"""What a predictor must reach to be trusted: mean absolute percentage error, Spearman's rank
correlation; and how much repeated measurements may differ."""
FOLDS = 5


@dataclass(frozen=True, slots=True)
class LatencyErrors:
    """On `held_out` subnets: mean and largest absolute error as fractions, and rank correlation."""

    held_out: int
    mape: float
    worst: float
    spearman: float
    noise: float

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the predictor should not be trusted; nothing where it may be."""
        found = []
        if not self.mape <= MOST_ERROR:
            found.append(f"mean error {self.mape:.1%} > {MOST_ERROR:.0%} on held-out subnets")
        if not self.spearman >= LEAST_RANK:
            found.append(f"rank correlation {self.spearman:.3f} < {LEAST_RANK}")
        if self.noise > MOST_NOISE:
            found.append(
                f"repeated measurements differ by {self.noise:.0%} > {MOST_NOISE:.0%}: measure "
                "again while the device does nothing else"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for reports; a rank correlation that is no number is None."""
        rank = None if math.isnan(self.spearman) else self.spearman
        plain = {**asdict(self), "spearman": rank}
        return {**plain, "trusted": not self.doubts, "doubts": list(self.doubts)}


def cross_validated(
    fit: Callable[[Sequence[Timed]], Predict], timed: Sequence[Timed], noise: float
) -> LatencyErrors:
    """Errors of each subnet as predicted by a fit to the other folds.

    ValueError where the fit has too few subnets.
    """
    predicted = np.empty(len(timed))
    for fold in range(FOLDS):
        held = range(fold, len(timed), FOLDS)
        if held:
            predict = fit([one for place, one in enumerate(timed) if place % FOLDS != fold])
            predicted[list(held)] = [predict(timed[place].arch) for place in held]
    return errors_of(predicted, np.array([one.seconds for one in timed]), noise)


def errors_of(predicted: Features, true: Features, noise: float) -> LatencyErrors:
    """Errors of predicted against true seconds."""
    apart = np.abs(predicted / true - 1)
    varied = len(true) > 2 and np.ptp(predicted) > 0 and np.ptp(true) > 0
    rank = float(spearmanr(predicted, true).statistic) if varied else math.nan
    return LatencyErrors(len(true), float(apart.mean()), float(apart.max()), rank, noise)
