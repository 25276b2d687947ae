"""Whether a predictor earns its place (Yu et al. 2021, "Deeper insights into weight sharing").

Every measured subnet is predicted by a predictor that did not see it, nor another measurement of it. The
report sets the rank correlation (Kendall's τ) of these predictions beside that of MACs alone, which cost
nothing, and beside the ceiling: what measuring the same subnets once more would reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...supernet.cost import cost
from ...supernet.randomness import array_stream
from ...supernet.space import Space
from .contract import Fit, Sample, Vector, centred_accuracies, group_rows
from .folds import arch_folds
from .ranks import kendall_tau

FOLDS = 5
FEWEST = 10
"""Below this many measured subnets nothing can be said."""
RESAMPLES = 200
TOPS = (1, 3, 5)

Verdict = Literal["earns its place", "no better than MACs alone", "too few to say"]


@dataclass(frozen=True, slots=True)
class RankReport:
    """Correlations over `subnets` different measured ones, within each group.

    `ceiling` is None where no standard errors are known. `gain` is τ less that of MACs alone, with
    its 90 % interval over resampled subnets. `rmse` is that of held-out predictions, `rmse_of_mean`
    of predicting every subnet alike. `regret` is by N: how far the best of the N that are predicted
    to be best falls behind the best measured one.
    """

    subnets: int
    tau: float
    tau_macs: float
    ceiling: float | None
    gain: tuple[float, float]
    rmse: float
    rmse_of_mean: float
    regret: Mapping[int, float]

    @property
    def verdict(self) -> Verdict:
        """Earned only where it is better than the mean, and surely better than MACs alone."""
        if self.subnets < FEWEST:
            return "too few to say"
        better = self.rmse < self.rmse_of_mean and self.gain[0] > 0
        return "earns its place" if better else "no better than MACs alone"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the verdict."""
        return {
            **asdict(self),
            "gain": list(self.gain),
            "regret": {str(count): value for count, value in self.regret.items()},
            "verdict": self.verdict,
        }


def rank_report(space: Space, samples: Sequence[Sample], fit: Fit) -> RankReport:
    """Cross-validate a way to predict; the result depends on the arguments only.

    UsageError without samples.
    """
    y = centred_accuracies(samples)
    held = _held_out(space, samples, fit)
    macs = np.array([float(cost(space, sample.arch).macs) for sample in samples])
    groups = group_rows(samples)
    rng = array_stream("rank report", len(samples))
    return RankReport(
        subnets=len({sample.arch for sample in samples}),
        tau=_within(held, y, groups),
        tau_macs=_within(macs, y, groups),
        ceiling=_ceiling(samples, y, groups, rng),
        gain=_gain(held, macs, y, groups, rng),
        rmse=float(np.sqrt(np.mean((y - _centred(held, groups)) ** 2))),
        rmse_of_mean=float(np.sqrt(np.mean(y**2))),
        regret={count: _regret(held, y, groups, count) for count in TOPS},
    )


def _held_out(space: Space, samples: Sequence[Sample], fit: Fit) -> Vector:
    held = np.zeros(len(samples))
    for fold in arch_folds([sample.arch for sample in samples], FOLDS):
        rest = [sample for place, sample in enumerate(samples) if place not in set(fold.tolist())]
        if rest:
            held[fold] = fit(space, rest).predict([samples[at].arch for at in fold]).score
    return held


def _within(a: Vector, b: Vector, groups: Sequence[NDArray[np.bool_]]) -> float:
    """τ within each group, by their numbers of pairs: between groups nothing compares."""
    pairs = [rows.sum() * (rows.sum() - 1) / 2 for rows in groups]
    if not sum(pairs):
        return 0.0
    taus = [kendall_tau(a[rows], b[rows]) for rows in groups]
    return float(np.average(taus, weights=pairs))


def _ceiling(
    samples: Sequence[Sample],
    y: Vector,
    groups: Sequence[NDArray[np.bool_]],
    rng: np.random.Generator,
) -> float | None:
    """τ expected between two measurements, from their standard errors.

    True accuracies are taken to be the measured ones, drawn together until their spread is what is
    left after the errors. Subnets measured on the same examples err alike, which ranks better than
    these independent errors do: so this is a low estimate.
    """
    errors = np.array([sample.error for sample in samples])
    if not (errors > 0).all():
        return None
    true = y.copy()
    for rows in groups:
        seen, noise = float(np.mean(y[rows] ** 2)), float(np.mean(errors[rows] ** 2))
        true[rows] *= np.sqrt(max(seen - noise, 0.0) / seen) if seen else 0.0
    draws = [rng.normal(true, errors) for _ in range(2 * 30)]
    return float(np.mean([_within(draws[i], draws[i + 1], groups) for i in range(0, 60, 2)]))


def _gain(
    held: Vector,
    macs: Vector,
    y: Vector,
    groups: Sequence[NDArray[np.bool_]],
    rng: np.random.Generator,
) -> tuple[float, float]:
    gains = []
    for _ in range(RESAMPLES):
        drawn = [rng.choice(np.flatnonzero(rows), int(rows.sum())) for rows in groups]
        at = np.concatenate(drawn)
        owner = np.repeat(np.arange(len(groups)), [len(part) for part in drawn])
        masks = [owner == place for place in range(len(groups))]
        gains.append(_within(held[at], y[at], masks) - _within(macs[at], y[at], masks))
    low, high = np.quantile(gains, (0.05, 0.95))
    return float(low), float(high)


def _centred(values: Vector, groups: Sequence[NDArray[np.bool_]]) -> Vector:
    found = values.copy()
    for rows in groups:
        found[rows] -= found[rows].mean()
    return found


def _regret(held: Vector, y: Vector, groups: Sequence[NDArray[np.bool_]], count: int) -> float:
    """Mean over the groups."""
    parts = []
    for rows in groups:
        first = np.argsort(-held[rows], kind="stable")[:count]
        parts.append(float(y[rows].max() - y[rows][first].max()))
    return float(np.mean(parts))
