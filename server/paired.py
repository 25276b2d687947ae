"""Two subnets on the same examples: what the second gains over the first, and how sure that is.

Per example the difference d is 1 where only the second is right, -1 where only the first is, else 0.
The standard error of its mean over n examples is that of a paired comparison (McNemar 1947),

    sqrt(Σ d² / n - (Σ d / n)²) / sqrt(n),

which is smaller than that of two accuracies apart where both are right about the same examples.
"""

from dataclasses import dataclass

from ..protos.messages import EvaluateReply, MessageError
from .figures import Measured, read_measured


@dataclass(frozen=True, slots=True)
class Paired:
    """Of `examples`: both right, only the first (`lost`), only the second (`gained`)."""

    both: int
    lost: int
    gained: int
    examples: int

    @property
    def first(self) -> Measured:
        """The first subnet by itself."""
        return Measured(self.both + self.lost, self.examples)

    @property
    def second(self) -> Measured:
        """The second subnet by itself."""
        return Measured(self.both + self.gained, self.examples)

    @property
    def gain(self) -> float:
        """Accuracy of the second over that of the first, a fraction of 1."""
        return (self.gained - self.lost) / self.examples

    @property
    def error(self) -> float:
        """The gain's standard error."""
        square = (self.gained + self.lost) / self.examples
        return float((max(square - self.gain**2, 0.0) / self.examples) ** 0.5)

    def __add__(self, other: "Paired") -> "Paired":
        return Paired(
            self.both + other.both,
            self.lost + other.lost,
            self.gained + other.gained,
            self.examples + other.examples,
        )

    def lighter(self, weight: float) -> "Paired":
        """The same shares, cut to whole examples, counting less where `weight` is below 1."""
        if weight >= 1:
            return self
        examples = max(1, int(self.examples * weight))
        both, lost, gained = (int(n * weight) for n in (self.both, self.lost, self.gained))
        return Paired(both, lost, gained, examples)


def read_paired(reply: EvaluateReply, examples: int) -> Paired:
    """What a device says of two subnets; MessageError where its counts cannot be."""
    first, second = read_measured(reply, 2, examples)
    if len(reply.gained) != 2:
        raise MessageError("evaluation: what each of 2 subnets gains expected")
    gained = reply.gained[1]
    both = second.correct - gained
    lost = first.correct - both
    if both < 0 or lost < 0 or both + lost + gained > examples:
        raise MessageError(
            f"evaluation: {first.correct} and {second.correct} of {examples} right and {gained} "
            "gained do not go together"
        )
    return Paired(both, lost, gained, examples)
