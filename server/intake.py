"""Answers as they come in: each is checked against what its device was asked, and written down."""

import math
from dataclasses import dataclass

import numpy as np

from ..protos.flower import Values
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
    """An update that passed its checks: the change of what was sent, and what is noted of it.

    `delta` is None where a group has added it to its sum. `change` is its root mean square; `sha256`
    and `size_bytes` are of the array as it came.
    """

    asked: Asked
    reply: TrainReply
    delta: Flat | None
    change: float
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Missing:
    """No update came, or it was lost."""

    reason: str


Judged = Good | RefusedUpdate | Missing


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
        return self.note(asked, self.judge(asked, sent, answer))

    def judge(self, asked: Asked, sent: Flat, answer: Answer[TrainReply]) -> Judged:
        """What an answer is; nothing is noted of it yet."""
        if answer.body is None:
            return Missing(answer.failure)
        values = answer.values
        try:
            self._check_age(asked)
            delta = vetted(self._config, self._space, asked, sent, answer.body, values)
        except RefusedUpdate as refusal:
            return refusal
        if values is None:  # vetted never lets it pass
            raise TypeError("an update without values was accepted")
        digest = self.books.digest(values)
        return Good(asked, answer.body, delta, root_mean_square(delta), digest, values.nbytes)

    def note(self, asked: Asked, found: Judged) -> Good | None:
        """Tell the books of an update that does not count; one that does is given back."""
        name = asked.member.name
        if isinstance(found, Missing):
            self.books.missing(name, found.reason)
            return None
        if isinstance(found, RefusedUpdate):
            self.refuse(name, found, overtaken=self.age(asked) > 0)
            return None
        return found

    def refuse(self, name: str, refusal: RefusedUpdate, overtaken: bool = False) -> None:
        """Count an answer that was refused; that its weights were `overtaken` is no fault."""
        self.refused += 1
        self.books.refused(name, refusal, overtaken)

    def age(self, asked: Asked) -> int:
        """How many versions old the weights are that a device was sent."""
        return self.books.number - asked.number

    def _check_age(self, asked: Asked) -> None:
        most, age = self._config.round.max_staleness, self.age(asked)
        if most is not None and age > most:
            raise RefusedUpdate(
                STALE, f"the weights it was sent are {age} versions old; at most {most} count"
            )


def vetted(
    config: RunConfig,
    space: Space,
    asked: Asked,
    sent: Flat,
    reply: TrainReply,
    values: Values | None,
) -> Flat:
    """The update's change of what was `sent`; RefusedUpdate says why it does not count."""
    return checked(_expected(config, space, asked, sent), reply, values)


def root_mean_square(delta: Flat) -> float:
    """Of an update's changes; at least one value."""
    return math.sqrt(float(np.dot(delta, delta)) / len(delta))


def _expected(config: RunConfig, space: Space, asked: Asked, sent: Flat) -> Expected:
    codec, assigned = config.codec, asked.assigned
    where = asked.kept.leaving(space, assigned)
    return Expected(
        run=config.name,
        round=asked.number,
        device=asked.member.name,
        arch=assigned.arch,
        tensors=tensor_shapes(shapes_of(where)),
        sent=asked.kept.part(space, assigned, sent),
        examples=asked.member.profile.examples,
        max_update_ratio=config.round.max_update_ratio,
        codec=codec and codec.codec(),
        noise=asked.noise,
    )
