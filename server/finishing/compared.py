"""Whether a finished subnet is better than it was."""

import math
from dataclasses import dataclass
from typing import Any

from ..paired import Paired

CHANCE = 0.16
"""A gain counts as one where chance alone would bring as many gained examples at most this often: where
nothing was learned, at most one finishing in six is published all the same."""


def tail(gained: int, changed: int) -> float:
    """P(X >= gained), X of `changed` throws of a fair coin: the exact one-sided sign (McNemar) test."""
    if gained <= 0:
        return 1.0
    whole = math.lgamma(changed + 1) - changed * math.log(2)
    terms = (
        math.exp(whole - math.lgamma(heads + 1) - math.lgamma(changed - heads + 1))
        for heads in range(gained, changed + 1)
    )
    return min(1.0, math.fsum(terms))


@dataclass(frozen=True, slots=True)
class Compared:
    """A subnet before (`paired.first`) and after, on the same validation examples."""

    paired: Paired

    @property
    def p(self) -> float:
        """How often chance alone would gain as many of the examples that changed."""
        return tail(self.paired.gained, self.paired.gained + self.paired.lost)

    @property
    def better(self) -> bool:
        """Whether chance alone would seldom gain as much."""
        return self.p <= CHANCE

    @property
    def verdict(self) -> str:
        """The same in words, with the figures, in points of accuracy."""
        gain, error = 100 * self.paired.gain, 100 * self.paired.error
        figures = (
            f"{100 * self.paired.first.accuracy:.2f} % before, "
            f"{100 * self.paired.second.accuracy:.2f} % after: {gain:+.2f} ± {error:.2f} points on "
            f"{self.paired.examples} examples ({self.paired.gained} gained, {self.paired.lost} lost: "
            f"p = {self.p:.2g})"
        )
        if self.better:
            return f"better: {figures}"
        return f"not better than chance may be (p above {CHANCE}): {figures}; nothing was published"

    def to_row(self) -> dict[str, Any]:
        """Accuracies, gain and standard error as fractions of 1, for reports."""
        return {
            "better": self.better,
            "verdict": self.verdict,
            "before": self.paired.first.accuracy,
            "after": self.paired.second.accuracy,
            "gain": self.paired.gain,
            "standard_error": self.paired.error,
            "gained": self.paired.gained,
            "lost": self.paired.lost,
            "p": self.p,
            "examples": self.paired.examples,
        }
