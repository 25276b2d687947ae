"""Whether a search found anything: against random and the largest subnet, in the same protocol.

"NAS evaluation is frustratingly hard" (Yang et al., ICLR 2020): relative improvement

    RI = 100·(accuracy of the search − mean accuracy of random)/mean accuracy of random,

both within the same budget and measured alike; "Evaluating the search phase" (Yu et al., ICLR 2020):
how often the search beats a random subnet. A subnet is called searched only where the 95 % interval
of the improvement is above 0.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...supernet.errors import UsageError
from .contract import Scored

# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
Z95 = 1.960


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % interval; an infinite one says that nothing can be said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What stands beside a search's result.

    `improvement` over random in per cent; `over_largest` of the accuracy over that of the largest
    subnet that fits, None where that is what the search chose; `beats_random` the share of random
    ones that the choice beats (ties count half). `seeds` searches, `random` subnets.
    """

    improvement: Interval
    over_largest: Interval | None
    beats_random: Interval
    seeds: int
    random: int

    @property
    def searched(self) -> bool:
        """Whether the improvement's interval is above 0."""
        return self.improvement.low > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an end that is infinite is None."""
        found = {**asdict(self), "searched": self.searched}
        for part in (found["improvement"], found["over_largest"], found["beats_random"]):
            for end in part or ():
                part[end] = part[end] if math.isfinite(part[end]) else None
        return found


def audit_one(
    chosen: Scored, random: Sequence[Scored], largest: Scored | None, chosen_from: int = 1
) -> Audit:
    """One search's choice, by the errors of its measurements and the spread of random ones.

    `chosen_from` is how many subnets the choice was the best of by this very measurement: the best
    of m errors lies about √(2·ln m) of them too high, by which the interval's low end is lowered.
    UsageError with no random subnet.
    """
    mean, error = _mean(random)
    low, high = _difference(chosen, mean, error, len(random))
    low -= chosen.error * math.sqrt(2 * math.log(max(1, chosen_from)))
    over = None
    if largest is not None:
        gap = chosen.score - largest.score
        wide = Z95 * math.hypot(chosen.error, largest.error)
        over = Interval(gap, gap - wide, gap + wide)
    percent = 100 / mean
    improvement = Interval((chosen.score - mean) * percent, low * percent, high * percent)
    beaten = [_beats(chosen.score, one.score) for one in random]
    return Audit(improvement, over, wilson(sum(beaten), len(beaten)), 1, len(random))


@dataclass(frozen=True, slots=True)
class Arm:
    """Accuracies by seed, and a digest of how they were measured."""

    protocol: str
    accuracies: Sequence[float]


def audit_over_seeds(searched: Arm, random: Arm, largest: Arm | None = None) -> Audit:
    """Several searches paired by seed, each with the mean of its random subnets.

    UsageError where the arms were measured by different protocols, or not on the same seeds.
    """
    for name, arm in (("random", random), ("largest", largest)):
        if arm is not None and arm.protocol != searched.protocol:
            raise UsageError(
                f"audit: the {name} subnets were measured by another protocol than the searched "
                f"ones ({arm.protocol} and {searched.protocol}); measure them alike"
            )
        if arm is not None and len(arm.accuracies) != len(searched.accuracies):
            raise UsageError(
                f"audit: {len(arm.accuracies)} seeds of {name} subnets and "
                f"{len(searched.accuracies)} of searched ones; one of each expected"
            )
    if not searched.accuracies or min(random.accuracies) <= 0:
        raise UsageError("audit: accuracies above 0 of at least one seed expected")
    gains = [
        100 * (mine - other) / other
        for mine, other in zip(searched.accuracies, random.accuracies, strict=True)
    ]
    beaten = list(map(_beats, searched.accuracies, random.accuracies))
    over = None
    if largest is not None:
        pairs = zip(searched.accuracies, largest.accuracies, strict=True)
        over = mean_interval([mine - other for mine, other in pairs])
    count = len(gains)
    return Audit(mean_interval(gains), over, wilson(sum(beaten), count), count, count)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's interval; infinite for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    wide = t95(len(values) - 1) * spread / math.sqrt(len(values))
    return Interval(mean, mean - wide, mean + wide)


def wilson(successes: float, trials: int) -> Interval:
    """A share with Wilson's interval (Wilson 1927)."""
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def t95(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t, from a table; rounded to fewer degrees."""
    if freedom < 1:
        return math.inf
    return T95[int(freedom) - 1] if freedom < len(T95) + 1 else Z95 + 2.5 / freedom


def _mean(random: Sequence[Scored]) -> tuple[float, float]:
    """Mean of the random subnets and its standard error, from how much they differ."""
    if not random:
        raise UsageError("audit: at least one random subnet is needed to compare with")
    mean = sum(one.score for one in random) / len(random)
    if mean <= 0:
        raise UsageError("audit: the random subnets' mean accuracy is not above 0")
    if len(random) < 2:
        return mean, math.inf
    spread = sum((one.score - mean) ** 2 for one in random) / (len(random) - 1)
    errors = sum(one.error**2 for one in random) / len(random)
    return mean, math.sqrt(max(spread, errors) / len(random))


def _difference(chosen: Scored, mean: float, error: float, count: int) -> tuple[float, float]:
    """95 % interval of the difference, with Welch's degrees of freedom."""
    if not math.isfinite(error):
        return -math.inf, math.inf
    total = chosen.error**2 + error**2
    freedom = (count - 1) * (total / error**2) ** 2 if error else math.inf
    wide = (t95(freedom) if math.isfinite(freedom) else Z95) * math.sqrt(total)
    return chosen.score - mean - wide, chosen.score - mean + wide


def _beats(mine: float, other: float) -> float:
    return 1.0 if mine > other else 0.5 if mine == other else 0.0
