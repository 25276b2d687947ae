"""Whether a finished subnet is better than it was."""

from dataclasses import dataclass
from typing import Any

from ..paired import Paired

ERRORS = 1.0
"""A gain counts as one from so many of its standard errors on: where nothing was learned, one finishing
in six is published all the same."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A subnet before (`paired.first`) and after, on the same validation examples."""

    paired: Paired

    @property
    def better(self) -> bool:
        """Whether the gain is above zero by more than its standard error."""
        return self.paired.gain > ERRORS * self.paired.error

    @property
    def verdict(self) -> str:
        """The same in words, with the figures, in points of accuracy."""
        gain, error = 100 * self.paired.gain, 100 * self.paired.error
        figures = (
            f"{100 * self.paired.first.accuracy:.2f} % before, "
            f"{100 * self.paired.second.accuracy:.2f} % after: {gain:+.2f} ± {error:.2f} points on "
            f"{self.paired.examples} examples"
        )
        if self.better:
            return f"better: {figures}"
        return f"not better by more than the standard error: {figures}; nothing was published"

    def to_row(self) -> dict[str, Any]:
        """Accuracies, gain and standard error as fractions of 1, for reports."""
        return {
            "better": self.better,
            "verdict": self.verdict,
            "before": self.paired.first.accuracy,
            "after": self.paired.second.accuracy,
            "gain": self.paired.gain,
            "standard_error": self.paired.error,
            "examples": self.paired.examples,
        }
