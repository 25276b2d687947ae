"""Answers as they come in: each is checked against what its device was asked, and written down."""

from dataclasses import dataclass

from ..protos.messages import OwnNoise, TrainReply, tensor_shapes
from ..supernet.cost import cost
from ..supernet.errors import RefusedUpdate
from ..supernet.space import Space
from ..supernet.weights import Flat, shapes_of
from .books import Books
from .config import RunConfig
from .exchange import Answer
from .fleet import Member
from .ledger_entries import STALE
from .samplers.assigned import Assigned
from .sharing import Kept
from .validation import Expected, checked


@dataclass(frozen=True, slots=True)
class Asked:
    """What one device was asked: to train which subnet, in which round, at which learning rate.

    Of `kept` tensors nothing may come back; `noise` is what the device does to its change.
    """

    member: Member
    assigned: Assigned
    number: int
    lr: float
    kept: Kept
    noise: OwnNoise | None


@dataclass(frozen=True, slots=True)
class Good:
    """An update that passed its checks: the change of what was sent, and the array as it came."""

    asked: Asked
    reply: TrainReply
    delta: Flat
    sha256: str
    size_bytes: int


class Intake:
    """Checks the answers of one round, counts the refused ones and tells the books."""

    def __init__(self, config: RunConfig, space: Space, books: Books) -> None:
        self._config, self._space, self.books = config, space, books
        self.refused = 0

    def asked(self, asked: Asked) -> None:
        """Note what a device was asked."""
        macs = cost(self._space, asked.assigned.arch).macs
        version = asked.number - 1 if self._config.round.mode == "async" else None
        self.books.assigned(asked.member.name, asked.assigned, macs, version)

    def admit(self, asked: Asked, sent: Flat, answer: Answer[TrainReply]) -> Good | None:
        """The update, or None where there is none that counts; `sent` are the values it got."""
        name, values, staleness = asked.member.name, answer.values, self.books.number - asked.number
        if answer.body is None:
            self.books.missing(name, answer.failure)
            return None
        try:
            self._check_age(staleness)
            delta = checked(self._expected(asked, sent), answer.body, values)
        except RefusedUpdate as refusal:
            self.refused += 1
            self.books.refused(name, refusal, overtaken=staleness > 0)
            return None
        if values is None:  # checked never lets it pass
            raise TypeError("an update without values was accepted")
        return Good(asked, answer.body, delta, self.books.digest(values), values.nbytes)

    def _check_age(self, staleness: int) -> None:
        most = self._config.round.max_staleness
        if most is not None and staleness > most:
            raise RefusedUpdate(
                STALE, f"the weights it was sent are {staleness} versions old; at most {most} count"
            )

    def _expected(self, asked: Asked, sent: Flat) -> Expected:
        codec, assigned = self._config.codec, asked.assigned
        where = asked.kept.leaving(self._space, assigned)
        return Expected(
            run=self._config.name,
            round=asked.number,
            device=asked.member.name,
            arch=assigned.arch,
            tensors=tensor_shapes(shapes_of(where)),
            sent=asked.kept.part(self._space, assigned, sent),
            examples=asked.member.profile.examples,
            max_update_ratio=self._config.round.max_update_ratio,
            codec=codec and codec.codec(),
            noise=asked.noise,
        )
