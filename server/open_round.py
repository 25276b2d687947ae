"""One round while its answers come in: each is checked, written down and folded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..protos.messages import TrainReply, tensor_shapes
from ..supernet.errors import RefusedUpdate
from ..supernet.space import Space
from ..supernet.weights import Shapes, gather, shapes_of, size_of
from .aggregation.update import Fold, Merged, Update
from .aggregation.weighing import Holder
from .books import Books
from .config import RunConfig
from .exchange import Answer
from .fleet import Fleet, Member
from .samplers.assigned import Assigned, Outcome
from .validation import Expected, capped_examples, checked

Assignments = dict[int, tuple[Member, Assigned]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked in a round: which values were sent, at which local learning rate, to whom."""

    config: RunConfig
    space: Space
    number: int
    lr: float
    weights: Mapping[str, Tensor]
    assignments: Assignments


@dataclass(slots=True)
class Tally:
    """Running figures of a round; `examples` weighs the loss."""

    accepted: int = 0
    refused: int = 0
    loss: float = 0.0
    examples: int = 0
    train_macs: int = 0
    bytes_received: int = 0
    outcomes: list[Outcome] = field(default_factory=list)


class OpenRound:
    """Takes answers, keeps count, and ends in the merged change."""

    def __init__(
        self, asked: Asked, fleet: Fleet, fold: Fold, shapes: Shapes, books: Books
    ) -> None:
        self._asked, self._fold, self._books = asked, fold, books
        self._largest = size_of(shapes)
        self.tally = Tally()
        config, typical = asked.config, fleet.typical_examples
        share = config.round.max_weight_share
        weighed = config.aggregation.weigh(
            [
                Holder(
                    m.name, capped_examples(m.profile.examples, typical, share), m.profile.labels
                )
                for m, _ in asked.assignments.values()
            ]
        )
        self._weights = weighed.weights
        if weighed.note:
            books.remark(weighed.note)

    def take(self, answer: Answer[TrainReply]) -> None:
        """Check one answer and fold it, or note why not."""
        member, assigned = self._asked.assignments[answer.node]
        if answer.body is None:
            self._books.missing(member.name, answer.failure)
            return
        try:
            values = answer.values
            delta = checked(self._expected(member, assigned), answer.body, answer.values)
        except RefusedUpdate as refusal:
            self.tally.refused += 1
            self._books.refused(member.name, refusal)
            return
        weight = self._weights[member.name] * assigned.weight * self._size_factor(len(delta))
        if values is not None:
            self._books.accepted(member.name, values, weight)
            self.tally.bytes_received += values.nbytes
        if weight > 0:
            where = assigned.regions(self._asked.space)
            bits = member.profile.train_bits
            self._fold.add(Update(member.name, delta, where, weight, bits=bits))
        # Rates fall and devices take unequal numbers of steps: neither says what is under-trained.
        moved = self._asked.lr * max(answer.body.steps, 1)
        change = math.sqrt(float(np.dot(delta, delta)) / len(delta)) / moved
        tally = self.tally
        tally.outcomes.append(Outcome(assigned, answer.body.loss, change))
        tally.accepted += 1
        tally.loss += answer.body.loss * answer.body.examples
        tally.examples += answer.body.examples
        tally.train_macs += answer.body.train_macs

    def merged(self) -> Merged:
        """End the round: what the rule makes of it, with its remarks and suspicions written down."""
        found = self._fold.result()
        for note in found.notes:
            self._books.remark(note)
        for device, code in found.suspects.items():
            self._books.suspected(device, code)
        return found

    def _size_factor(self, values: int) -> float:
        """What larger subnets count more."""
        power = self._asked.config.aggregation.size_power
        return (values / self._largest) ** power if power else 1.0

    def _expected(self, member: Member, assigned: Assigned) -> Expected:
        where = assigned.regions(self._asked.space)
        return Expected(
            run=self._asked.config.name,
            round=self._asked.number,
            device=member.name,
            arch=assigned.arch,
            tensors=tensor_shapes(shapes_of(where)),
            sent=gather(self._asked.weights, where),
            examples=member.profile.examples,
            max_update_ratio=self._asked.config.round.max_update_ratio,
            codec=self._asked.config.codec and self._asked.config.codec.codec(),
        )
