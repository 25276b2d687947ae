"""A round whose updates the server sees the sum of: four letters to each device and back.

The protocol is `privacy/secure_server.py`; this is how its letters reach devices, and what becomes of
the sums. A device that does not answer a letter in time, or whose answer is refused, is left out from
there on. As long as `secure.threshold` of them are left the round goes on, else it is abandoned with
the weights as they were, and nothing was revealed. The sums do not depend on the order of arrival
(they are exact modulo 2^32), so a network and one process give equal bits.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch

from ..protos.places import PlacesOfDevices
from ..protos.secure_figures import COUNT, Figures
from ..protos.secure_messages import SecrecyError
from ..protos.secure_requests import LetterReply, LetterRequest, MaskedReply, MaskedRequest, Step
from ..supernet.axes import Regions
from ..supernet.errors import RefusedUpdate
from .aggregation.placement import Frame
from .aggregation.update import Merged
from .exchange import Answer, Exchange, Request, printable
from .open_round import Assignments, Tally
from .privacy.config import BOUND, SecureConfig
from .privacy.secure_server import SecureServer
from .privacy.terms import SecureSums
from .train_request import train_body
from .training import RoundReport, Training
from .validation import check_arch, check_sender

R = TypeVar("R", LetterReply, MaskedReply)
Take = Callable[[str, R, bytes], None]
"""Takes a device's name, what it says, and its letter; SecrecyError or RefusedUpdate where it is wrong."""


def secure_round(
    training: Training, secure: SecureConfig, exchange: Exchange, assignments: Assignments
) -> RoundReport | None:
    """One round; None when it was abandoned for too few devices."""
    return _SecureRound(training, secure, exchange, assignments).run()


class _SecureRound:
    def __init__(
        self,
        training: Training,
        secure: SecureConfig,
        exchange: Exchange,
        assignments: Assignments,
    ) -> None:
        self._training, self._secure, self._exchange = training, secure, exchange
        self._asked = {m.name: training.asked(m, assigned) for m, assigned in assignments.values()}
        self._names = {one.member.node: name for name, one in self._asked.items()}
        self._intake, self._tally = training.intake(), Tally()
        self._number, self._group = self._intake.books.number, str(self._intake.books.number)
        self._summed: set[str] = set()

    def run(self) -> RoundReport | None:
        begin, training, tally = time.perf_counter(), self._training, self._tally
        for one in self._asked.values():
            self._intake.asked(one)
        try:
            merged = self._merged()
        except SecrecyError as error:
            self._intake.books.remark(str(error))
            merged = None
        if merged is None:
            training.abandon(self._intake, tally.accepted)
            return None
        asked = list(self._asked.values())
        return training.conclude(asked, tally, merged, self._intake, begin)

    def _merged(self) -> Merged | None:
        """The change that the devices make together; None, or SecrecyError, where there is none."""
        if len(self._asked) < self._secure.least_devices:
            least = self._secure.least_devices
            raise SecrecyError(
                "threshold", f"{len(self._asked)} devices are free; {least} are needed"
            )
        training, bound, where = self._training, self._bound(), self._where()
        places = PlacesOfDevices(training.shapes, where, COUNT)
        terms = self._secure.terms(len(where), bound)
        server = SecureServer(terms, places.size, places)
        self._letters("advertise", server.invitations(), server.advert)
        self._letters("share", server.rosters(), server.shares)
        self._train(server)
        if training.too_few(self._tally.accepted, self._intake.refused):
            return None
        self._letters("unmask", server.survivors(), server.reveal)
        return self._made_of(server.result(), bound, where)

    def _bound(self) -> float:
        private = self._training.private
        return private.value_range if private is not None else self._secure.bound or BOUND

    def _where(self) -> dict[str, Regions]:
        """Device → where the values lie that it sends back."""
        space = self._training.space
        return {name: one.kept.leaving(space, one.assigned) for name, one in self._asked.items()}

    def _letters(
        self, step: Step, letters: Mapping[str, bytes], take: Callable[[str, bytes], None]
    ) -> None:
        """Send each device its letter, and hand what comes back to the server's part of the sum."""
        body = LetterRequest(run=self._training.config.name, round=self._number, step=step)
        requests = (
            self._sent(
                Request(self._asked[name].member.node, body, np.frombuffer(letter, np.uint8))
            )
            for name, letter in letters.items()
        )
        limit_s = self._secure.letter_s
        for answer in self._exchange.ask(requests, LetterReply, limit_s, self._group):
            self._taken(answer, lambda name, _, letter: take(name, letter))

    def _train(self, server: SecureServer) -> None:
        """Let devices train, and add up what they send."""
        training, inboxes = self._training, server.inboxes()
        if training.private is not None:
            training.private.asked()
        limit_s = training.config.round.deadline_s
        requests = self._training_requests(inboxes)
        for answer in self._exchange.ask(requests, MaskedReply, limit_s, self._group):
            self._taken(answer, lambda name, body, letter: self._added(server, name, body, letter))

    def _training_requests(self, inboxes: Mapping[str, bytes]) -> Iterator[Request]:
        training = self._training
        for name, inbox in inboxes.items():
            asked = self._asked[name]
            train = train_body(training.config, training.space, asked)
            body = MaskedRequest(train=train, inbox_bytes=len(inbox))
            weights = training.sent(asked.assigned).astype("<f4", copy=False)
            values = np.frombuffer(inbox + weights.tobytes(), np.uint8)
            yield self._sent(Request(asked.member.node, body, values))

    def _added(self, server: SecureServer, name: str, body: MaskedReply, letter: bytes) -> None:
        check_arch(body, self._asked[name].assigned.arch)
        server.masked(name, letter)
        books, tally = self._intake.books, self._tally
        books.accepted(name, books.digest(np.frombuffer(letter, np.uint8)), 1.0)
        tally.accepted += 1
        tally.train_macs += body.train_macs
        self._summed.add(name)

    def _made_of(self, sums: SecureSums, bound: float, where: Mapping[str, Regions]) -> Merged:
        """The sums as the round's change, and what they say of the devices' training."""
        training, tally = self._training, self._tally
        figures = Figures.mean(sums.sums[-COUNT:], int(sums.counts[-1]), bound)
        tally.examples, tally.loss = tally.accepted, figures.loss * tally.accepted
        self._intake.books.summed(tally.accepted, sums.cells, sums.left_out, figures.cut)
        total = torch.from_numpy(sums.sums[:-COUNT])
        counts = torch.from_numpy(sums.counts[:-COUNT])
        if training.private is not None:
            return training.private.of_sums(training.shapes, where.values(), total, counts > 0)
        mean = (total / counts.clamp(min=1)).to(torch.float32)
        return Frame(training.shapes).merged(mean, counts > 0)

    def _sent(self, request: Request) -> Request:
        self._tally.bytes_sent += 0 if request.values is None else request.values.nbytes
        return request

    def _taken(self, answer: Answer[R], take: Take[R]) -> None:
        """Hand an answer on; whoever gave none, or a wrong one, is left out from here on."""
        name = self._names[answer.node]
        if answer.body is None:
            self._lost(name, answer.failure)
            return
        try:
            check_sender(answer.body, self._training.config.name, self._number, name)
            if answer.values is None or answer.values.dtype != np.uint8:
                raise RefusedUpdate("dtype", "a letter's bytes (uint8) are expected")
            take(name, answer.body, answer.values.tobytes())
            self._tally.bytes_received += answer.values.nbytes
        except SecrecyError as error:
            detail = str(error).removeprefix(f"{error.code}: ")
            self._refuse(name, RefusedUpdate(f"secure_{error.code}", printable(detail)))
        except RefusedUpdate as refusal:
            self._refuse(name, refusal)

    def _lost(self, name: str, reason: str) -> None:
        """No answer; where its update is in the sum already, it stays there."""
        books = self._intake.books
        (books.unopened if name in self._summed else books.missing)(name, reason)

    def _refuse(self, name: str, refusal: RefusedUpdate) -> None:
        if name in self._summed:
            self._lost(name, str(refusal))
            self._intake.books.suspected(name, refusal.code)
        else:
            self._intake.refuse(name, refusal)
