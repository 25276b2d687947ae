"""Latency from whole subnets that were timed: a sum of costs per operator, none of them negative.

Relative errors are minimized, since a device runs both small and large subnets: each row is divided by
its latency. Costs ≥ 0 (non-negative least squares) keep the prediction growing with the network, and
let few subnets do: most of the costs that nobody can tell apart come out as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LinearRegression

from ...supernet.space import Arch, Space
from .features import NAMES, Features, features

LEAST_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Timed:
    """A subnet and the seconds that it took."""

    arch: Arch
    seconds: float


@dataclass(frozen=True, slots=True)
class Regression:
    """Predicted seconds of a subnet; `costs` are seconds per unit of each feature, ≥ 0."""

    space: Space
    costs: Features

    def __call__(self, arch: Arch) -> float:
        """Seconds."""
        return float(features(self.space.layers(arch)) @ self.costs)

    def explained(self) -> dict[str, float]:
        """What costs anything: feature → seconds per unit."""
        return {name: float(c) for name, c in zip(NAMES, self.costs, strict=True) if c > 0}


def fit_regression(space: Space, timed: Sequence[Timed]) -> Regression:
    """Costs that explain what was timed. ValueError for fewer than `LEAST_SAMPLES` subnets."""
    if len(timed) < LEAST_SAMPLES:
        raise ValueError(f"{len(timed)} subnets were timed; at least {LEAST_SAMPLES} are needed")
    x = np.stack([features(space.layers(one.arch)) for one in timed])
    y = np.array([one.seconds for one in timed])
    x = x / y[:, None]
    # Columns of equal size: what is solved for does not depend on the units.
    size = np.linalg.norm(x, axis=0)
    size[size == 0] = 1.0
    fitted = LinearRegression(fit_intercept=False, positive=True).fit(x / size, np.ones(len(y)))
    return Regression(space, fitted.coef_ / size)
