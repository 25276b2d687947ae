"""Boosted trees on one-hot genes: what a linear sum misses, where there are samples enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...supernet.space import Arch, Space
from .contract import Prediction, Sample, centred_accuracies
from .features import encode
from .folds import arch_folds

TREES, DEPTH, RATE, SHARE = 100, 2, 0.1, 0.7
FOLDS = 5
FEWEST = 5
"""Of fewer samples every tree gets all."""


@dataclass(frozen=True, slots=True)
class Trees:
    """scikit-learn's gradient boosting; the spread is that of held-out residuals."""

    space: Space
    model: Any
    residual: float

    def predict(self, archs: Sequence[Arch]) -> Prediction:
        """Higher is better."""
        if not archs:
            return Prediction(np.empty(0), np.empty(0))
        score = np.asarray(self.model.predict(encode(self.space, archs)), dtype=np.float64)
        return Prediction(score, np.full(len(archs), self.residual))


def fit(space: Space, samples: Sequence[Sample]) -> Trees:
    """Gradient boosting of shallow trees, each on a part of the samples; fixed seed."""
    # When it is used: importing the library takes over a second.
    from sklearn.ensemble import GradientBoostingRegressor

    def grown(rows: Any) -> Any:
        model = GradientBoostingRegressor(
            n_estimators=TREES,
            max_depth=DEPTH,
            learning_rate=RATE,
            subsample=SHARE if len(rows) >= FEWEST else 1.0,
            random_state=0,
        )
        return model.fit(x[rows], y[rows])

    y = centred_accuracies(samples)
    archs = [sample.arch for sample in samples]
    x = encode(space, archs)
    held = np.zeros(len(y))
    for fold in arch_folds(archs, FOLDS):
        rest = np.setdiff1d(np.arange(len(y)), fold)
        held[fold] = grown(rest).predict(x[fold]) if len(rest) else 0.0
    residual = float(np.sqrt(np.mean((y - held) ** 2)))
    return Trees(space, grown(np.arange(len(y))), residual)
