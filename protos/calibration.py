"""How far confidences may be trusted: sums that devices send and that add up. No torch in here.

A device sends per network how many of its examples fell into each bin of confidence (the largest
probability), the sum of their confidences, how many were right; and the sums of the negative
log-likelihood (nats) and of the Brier score. No example and no logit travels.

Expected calibration error (Naeini et al. 2015; Guo et al. 2017), bins of equal width:
ECE = Σ_b n_b / n · |right_b / n_b - confidence_b / n_b|. It is above 0 for a perfectly calibrated
network, too: `ece_by_chance` says by how much with so many examples. Without that an ECE says
nothing; nor does one whose bins are not stated (Linwei Tao et al. 2023, A Benchmark Study on
Calibration).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..supernet.errors import UsageError
from .inference import Floats

BINS = 15
TEMPERATURES: tuple[float, ...] = tuple(round(1.05**power, 6) for power in range(-40, 61))
"""0.14 to 18.7 in steps of 5 %. Around its minimum the likelihood hardly changes within one."""

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sums over examples; `bins` of equal width from confidence 0 to 1.

    Counts are whole where a device tells them, and need not be in one that was made to count less.
    """

    counts: tuple[float, ...]
    right: tuple[float, ...]
    confidence: tuple[float, ...]
    nll_sum: float
    brier_sum: float

    def __post_init__(self) -> None:
        if not len(self.counts) == len(self.right) == len(self.confidence) > 0:
            raise UsageError("calibration: counts, right answers and confidences of the same bins")
        for place in range(len(self.counts)):
            self._check_bin(place)
        most = 2.0 * self.examples * (1 + 1e-6)
        if not (0 <= self.nll_sum < math.inf and 0 <= self.brier_sum <= most):
            raise UsageError(
                f"calibration: {self.nll_sum} and {self.brier_sum} are no sums of a log-likelihood "
                f"and of a Brier score over {self.examples} examples"
            )

    def _check_bin(self, place: int) -> None:
        count, bins = self.counts[place], len(self.counts)
        low, high = (count * (place + side) / bins for side in (0, 1))
        slack = 1e-4 * count
        if not (
            0 <= self.right[place] <= count
            and low - slack <= self.confidence[place] <= high + slack
        ):
            raise UsageError(
                f"calibration: bin {place} of {bins} has {self.right[place]} right answers and "
                f"confidences of {self.confidence[place]} in all from {count} examples"
            )

    @classmethod
    def of(cls, logits_bc: Floats, labels_b: Labels, bins: int = BINS) -> Self:
        """Of a network's outputs, at least one."""
        log_p = log_probabilities(logits_bc)
        rows = np.arange(len(labels_b))
        p = np.exp(log_p)
        confidence = p.max(1)
        at = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        right = log_p.argmax(1) == labels_b
        brier = np.square(p).sum(1) - 2 * p[rows, labels_b] + 1
        return cls(
            counts=tuple(np.bincount(at, minlength=bins).tolist()),
            right=tuple(np.bincount(at[right], minlength=bins).tolist()),
            confidence=tuple(np.bincount(at, weights=confidence, minlength=bins).tolist()),
            nll_sum=float(-log_p[rows, labels_b].sum()),
            brier_sum=float(np.maximum(brier, 0).sum()),
        )

    def __add__(self, other: "Calibration") -> "Calibration":
        """Of both's examples."""
        if len(self.counts) != len(other.counts):
            raise UsageError(
                f"calibration: {len(self.counts)} and {len(other.counts)} bins do not add up"
            )

        def both(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
            return tuple(a + b for a, b in zip(mine, theirs, strict=True))

        confidence = zip(self.confidence, other.confidence, strict=True)
        return Calibration(
            both(self.counts, other.counts),
            both(self.right, other.right),
            tuple(a + b for a, b in confidence),
            self.nll_sum + other.nll_sum,
            self.brier_sum + other.brier_sum,
        )

    def lighter(self, weight: float) -> "Calibration":
        """The same measures of `weight` times as many examples, above 0."""

        def scaled(sums: Sequence[float]) -> tuple[float, ...]:
            return tuple(weight * one for one in sums)

        return Calibration(
            scaled(self.counts),
            scaled(self.right),
            scaled(self.confidence),
            weight * self.nll_sum,
            weight * self.brier_sum,
        )

    def sums(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], float, float]:
        """As they travel, the fields in order; counts that are not whole are rounded."""
        counts, right = (tuple(round(one) for one in part) for part in (self.counts, self.right))
        return counts, right, self.confidence, self.nll_sum, self.brier_sum

    def report(self) -> dict[str, float]:
        """What a report prints: each measure, and what an ECE is to be compared with."""
        names = ("ece", "ece_error", "ece_by_chance", "nll", "brier")
        measures = {name: float(getattr(self, name)) for name in names}
        return measures | {"examples": max(1, round(self.examples))}

    @property
    def examples(self) -> float:
        """How many."""
        return sum(self.counts)

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats."""
        return self.nll_sum / self.examples

    @property
    def brier(self) -> float:
        """Mean over the examples of Σ_c (p_c - [c is right])², 0 to 2."""
        return self.brier_sum / self.examples

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1."""
        gaps = (abs(r - c) for r, c in zip(self.right, self.confidence, strict=True))
        return sum(gaps) / self.examples

    @property
    def ece_error(self) -> float:
        """Standard error of the ECE: that of the right answers, bins being independent."""
        spread = (r * (n - r) / n for n, r in zip(self.counts, self.right, strict=True) if n)
        return math.sqrt(sum(spread)) / self.examples

    @property
    def ece_by_chance(self) -> float:
        """What the ECE of a perfectly calibrated network would be with these examples, in the mean.

        Σ_b √(2/π · n_b p_b (1 - p_b)) / n: the mean distance of a binomial count from its mean,
        normally approximated, p_b the bin's mean confidence.
        """
        spread = (
            math.sqrt(2 / math.pi * max(0.0, c * (1 - c / n)))
            for n, c in zip(self.counts, self.confidence, strict=True)
            if n
        )
        return sum(spread) / self.examples


def log_probabilities(logits_bc: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-softmax in double precision."""
    wide = np.asarray(logits_bc, np.float64)
    wide = wide - wide.max(1, keepdims=True)
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    return found


def nll_by_temperature(
    logits_bc: Floats, labels_b: Labels, temperatures: Sequence[float]
) -> tuple[float, ...]:
    """Summed negative log-likelihood (nats) with the logits divided by each temperature."""
    rows = np.arange(len(labels_b))
    wide = np.asarray(logits_bc, np.float64)
    return tuple(
        float(-log_probabilities(wide / each)[rows, labels_b].sum()) for each in temperatures
    )


def best_temperature(nll: Sequence[float], temperatures: Sequence[float]) -> float:
    """That of the least sum; UsageError for sums that are no numbers or not one a temperature."""
    if len(nll) != len(temperatures) or not np.isfinite(nll).all():
        raise UsageError("temperature: a finite log-likelihood for each temperature is expected")
    return temperatures[int(np.argmin(nll))]


def prior_shift(
    counts: Sequence[int], target: Sequence[float] | None = None, *, smoothing: float = 1.0
) -> tuple[float, ...]:
    """What to add to the logits of a network trained on these label counts to serve other shares.

    log π_target - log π_train with mean 0 (Menon et al. 2021, Long-tail Learning via Logit
    Adjustment, τ = 1; None is equal shares). `smoothing` is added to every count, so that a class
    that nobody has is not raised without bound. UsageError names what is wrong with the shares.
    """
    if len(counts) < 2 or min(counts) < 0 or sum(counts) < 1:
        raise UsageError(
            f"prior: label counts {list(counts)[:20]}; two classes and one label needed"
        )
    shares = [1.0 / len(counts)] * len(counts) if target is None else list(target)
    if len(shares) != len(counts):
        raise UsageError(f"prior: {len(shares)} shares; the network has {len(counts)} classes")
    if not all(math.isfinite(share) and share > 0 for share in shares):
        raise UsageError(f"prior = {shares}; each class's share must be above 0")
    if abs(sum(shares) - 1) > 1e-3:
        raise UsageError(f"prior = {shares}; the shares must add up to 1, these to {sum(shares):g}")
    held = np.asarray(counts, np.float64) + smoothing
    shift = np.log(np.asarray(shares)) - np.log(held / held.sum())
    return tuple((shift - shift.mean()).tolist())
