"""One round's good updates: weighed, folded one after the other, and counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..supernet.space import Space
from ..supernet.weights import Shapes, size_of
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
        self.tally = Tally()
        limits = terms.config.round
        weighed = terms.config.aggregation.weigh([self._holder(one.member) for one in asked])
        weighed = capped(weighed, limits.max_weight_share)
        self._weights = weighed.weights
        if weighed.note:
            books.remark(weighed.note)

    def add(self, good: Good) -> None:
        """Fold an update."""
        member, assigned, delta, tally = (
            good.asked.member,
            good.asked.assigned,
            good.delta,
            self.tally,
        )
        staleness = self._books.number - good.asked.number
        weight = self._weights[member.name] * assigned.weight * self._size_factor(good)
        weight *= self._terms.config.round.staleness_factor(staleness)
        self._books.accepted(member.name, good.sha256, weight)
        if weight > 0:
            where = good.asked.kept.leaving(self._terms.space, assigned)
            bits = member.profile.train_bits
            tally.folded += 1
            self._fold.add(Update(member.name, delta, where, weight, bits=bits))
        # Rates fall and devices take unequal numbers of steps: neither says what is under-trained.
        moved = good.asked.lr * max(good.reply.steps, 1)
        change = math.sqrt(float(np.dot(delta, delta)) / len(delta)) / moved
        tally.outcomes.append(Outcome(assigned, good.reply.loss, change))
        tally.accepted += 1
        tally.staleness += staleness
        tally.loss += good.reply.loss * good.reply.examples
        tally.examples += good.reply.examples
        tally.train_macs += good.reply.train_macs
        tally.bytes_received += good.size_bytes

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

    def _size_factor(self, good: Good) -> float:
        """What larger subnets count more."""
        power, kept = self._terms.config.aggregation.size_power, good.asked.kept.names
        if not power:
            return 1.0
        leaving = {name: s for name, s in self._terms.shapes.items() if name not in kept}
        return float((len(good.delta) / size_of(leaving)) ** power)
