"""One round's good updates: weighed, folded one after the other, and counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..supernet.space import Space
from ..supernet.weights import Shapes, shapes_of, size_of
from .aggregation.overlap_mean import Partial, PartialFold
from .aggregation.update import Fold, Merged, Update
from .aggregation.weighing import Holder, capped
from .books import Books
from .config import RunConfig
from .fleet import Fleet, Member
from .intake import Asked, Good
from .samplers.assigned import Assigned, Outcome
from .validation import capped_examples

Assignments = dict[int, tuple[Member, Assigned]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all updates of a round."""

    config: RunConfig
    space: Space
    shapes: Shapes
    fleet: Fleet


@dataclass(slots=True)
class Tally:
    """Running figures of a round; `examples` weighs the loss, `staleness` adds up versions.

    `folded` counts the accepted updates of a weight above 0: the others change nothing.
    """

    accepted: int = 0
    folded: int = 0
    staleness: int = 0
    loss: float = 0.0
    examples: int = 0
    train_macs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def mean_loss(self) -> float:
        """The devices' mean loss; no number where nobody's update counts."""
        return self.loss / self.examples if self.examples else math.nan


class OpenRound:
    """Takes good updates, keeps count, and ends in the merged change.

    `asked` are all whose answers, good or not, belong to the round.
    """

    def __init__(self, terms: Terms, asked: Sequence[Asked], fold: Fold, books: Books) -> None:
        self._terms, self._fold, self._books = terms, fold, books
        self.asked = asked
        self.tally = Tally()
        limits = terms.config.round
        weighed = terms.config.aggregation.weigh([self._holder(one.member) for one in asked])
        weighed = capped(weighed, limits.max_weight_share)
        self._weights = weighed.weights
        if weighed.note:
            books.remark(weighed.note)

    def add(self, good: Good) -> None:
        """Fold an update."""
        member, assigned, tally = good.asked.member, good.asked.assigned, self.tally
        staleness, weight = self._books.number - good.asked.number, self.weight(good.asked)
        self._books.accepted(member.name, good.sha256, weight)
        tally.folded += weight > 0
        if weight > 0 and good.delta is not None:
            where = good.asked.kept.leaving(self._terms.space, assigned)
            bits = member.profile.train_bits
            self._fold.add(Update(member.name, good.delta, where, weight, bits=bits))
        # Rates fall and devices take unequal numbers of steps: neither says what is under-trained.
        moved = good.asked.lr * max(good.reply.steps, 1)
        tally.outcomes.append(Outcome(assigned, good.reply.loss, good.change / moved))
        tally.accepted += 1
        tally.staleness += staleness
        tally.loss += good.reply.loss * good.reply.examples
        tally.examples += good.reply.examples
        tally.train_macs += good.reply.train_macs
        tally.bytes_received += good.size_bytes

    def weight(self, asked: Asked) -> float:
        """How much a device's update counts, if it is good."""
        weight = self._weights[asked.member.name] * asked.assigned.weight
        weight *= self._size_factor(asked)
        staleness = self._books.number - asked.number
        return weight * self._terms.config.round.staleness_factor(staleness)

    def add_partial(self, partial: Partial) -> None:
        """Fold a sum of updates; each of them is counted by `add`, without its change."""
        if not isinstance(self._fold, PartialFold):
            raise TypeError(f"{type(self._fold).__name__} has no partial sums")
        self._fold.add_partial(partial)

    def merged(self) -> Merged:
        """End the round: what the rule makes of it, with its remarks and suspicions written down."""
        found = self._fold.result()
        for note in found.notes:
            self._books.remark(note)
        for device, share in found.counted.items():
            self._books.counted(device, share)
        for device, code in found.suspects.items():
            self._books.suspected(device, code)
        return found

    def _holder(self, member: Member) -> Holder:
        share, profile = self._terms.config.round.max_examples_ratio, member.profile
        examples = capped_examples(profile.examples, self._terms.fleet.typical_examples, share)
        return Holder(member.name, examples, profile.labels)

    def _size_factor(self, asked: Asked) -> float:
        """What larger subnets count more."""
        terms, kept = self._terms, asked.kept
        power = terms.config.aggregation.size_power
        if not power:
            return 1.0
        all_leaving = {name: s for name, s in terms.shapes.items() if name not in kept.names}
        leaving = shapes_of(kept.leaving(terms.space, asked.assigned))
        return float((size_of(leaving) / size_of(all_leaving)) ** power)
