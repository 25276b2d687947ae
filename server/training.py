"""Rounds of supernet training: assign, send, check, fold, step, checkpoint. No Flower in here."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..protos.messages import OwnNoise, TrainReply
from ..supernet.axes import layout
from ..supernet.errors import RunError
from ..supernet.space import Space
from ..supernet.weights import Flat, digest, gather, initial, size_of
from .aggregation.fedlaw import Lesson
from .aggregation.update import Fold, Merged
from .answers import all_good, first_good
from .books import Books
from .checkpoint import Checkpoint, CheckpointStore
from .config import RunConfig
from .coverage import Coverage
from .events import EventLog
from .exchange import Answer, Request
from .fingerprint import fingerprint
from .fleet import Fleet, Member
from .groups.gathering import Gathering
from .groups.pool import Groups
from .intake import Asked, Good, Intake
from .ledger import Ledger
from .open_round import Assignments, OpenRound, Tally, Terms
from .optimizer import ServerOptimizer
from .outbox import Outbox
from .privacy.rounds import PrivateRounds
from .privacy.statement import statement
from .proxy import Proxy
from .samplers.assigned import Assigned
from .selection import Selection
from .shelf import Buffer, Shelf


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round came to. `coverage` is the fraction trained in it, of the shared weights that are
    merged.

    `staleness` is how many versions old the weights were that an accepted update started from, in
    the mean; 0 in synchronous training.
    """

    round: int
    accepted: int
    refused: int
    missing: int
    loss: float
    coverage: float
    oldest: int
    train_macs: int
    bytes_sent: int
    bytes_received: int
    seconds: float
    staleness: float = 0.0


class Training:
    """The state of one supernet training run; `round` is the last one that is done.

    Without a ledger no record of contributions is kept. Several that share a `selection` also share
    the sampler's memory and the devices' strikes.
    """

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        store: CheckpointStore,
        log: EventLog,
        ledger: Ledger | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.config, self.space, self.store, self.log = config, space, store, log
        self.ledger = ledger
        self.selection = selection or Selection(config, space)
        self.round = 0
        self.weights = initial(space, config.seed)
        self.optimizer = ServerOptimizer(config.server, config.round.rounds)
        self.coverage = Coverage(layout(space))
        self.share = config.share.plan(space)
        self.groups = (
            None
            if config.round.groups is None
            else Groups(config, space, config.round.groups, ledger is not None)
        )
        self.private = (
            None
            if config.privacy is None
            else PrivateRounds(config.privacy, config.round.rounds, store.folder, config.secure)
        )
        self.proxy = Proxy.of(config, space)
        self._rule_memory: Mapping[str, Any] = {}
        self.shapes = {name: tensor.shape for name, tensor in layout(space).items()}
        self.outbox = Outbox(config, space, self.shelf(), store.folder)

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False when there is none."""
        found = self.store.latest()
        if found is not None:
            self.restore(found)
        return found is not None

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint; RunError where it belongs to another configuration."""
        # What shaped the weights must be the same; how many rounds there will be may change.
        if found.notes.get("fingerprint") != self.fingerprint():
            raise RunError(
                f"checkpoint of round {found.round} in {self.store.folder} belongs to another "
                "configuration (space, seed, recipe, classes, server or round differ); "
                "start a new run or restore the configuration"
            )
        self.round, self.weights = found.round, found.weights
        self.optimizer = ServerOptimizer(
            self.config.server, self.config.round.rounds, found.optimizer
        )
        self.coverage = Coverage(layout(self.space), found.ages)
        self.selection.restore(found)
        self._rule_memory = found.noted("aggregation")
        if self.private is not None:
            self.private.resume(found.noted("privacy"), self.config.round.rounds)
        self.log("resumed", round=self.round, weights=digest(self.weights))
        if self.ledger is not None:
            head = found.notes.get("ledger")
            self.ledger.resumed(self.round, self._digest(), str(head) if head else None)

    def begin(self) -> None:
        """Note that a fresh run begins."""
        if self.ledger is not None:
            self.ledger.started(self.round, self._digest())

    def fingerprint(self) -> dict[str, object]:
        """The parts of the configuration that decide the weights."""
        return fingerprint(self.config, self.space)

    @property
    def over(self) -> bool:
        """Whether no round is left, or no privacy budget for one."""
        if self.round >= self.config.round.rounds:
            return True
        return self.private is not None and self.private.exhausted

    def assignments(
        self, fleet: Fleet, busy: frozenset[int] = frozenset(), most: int | None = None
    ) -> Assignments:
        """Node → (member, subnet) for the coming round, without busy nodes and those in quarantine.

        All others, or `most` of them; None: as many as the configuration says. UsageError when the
        fleet has grown too large for the run's privacy.
        """
        if self.private is not None:
            self.private.config.check_clients(len(fleet.members))
        if self.proxy is not None:
            self.proxy.check_fleet(fleet)
        if released := self.selection.release(self.round + 1, fleet, busy):
            books = self.books()  # which works out the weights' digest
            for name in released:
                books.released(name)
        ages = self.coverage.ages
        return self.selection.assignments(self.round + 1, fleet, ages, busy, most)

    def requests(self, assignments: Assignments) -> Iterator[Request]:
        """One message at a time: only the selected values, and what they are."""
        if self.private is not None:
            self.private.asked()
        self.outbox.clear()
        for member, assigned in assignments.values():
            yield self.outbox.send(self.asked(member, assigned), self.weights)

    def asked(self, member: Member, assigned: Assigned) -> Asked:
        """What is asked of a device in the coming round."""
        kept = self.share.in_round(self.round + 1)
        rate, noise = self.learning_rate(), self._own_noise()
        return Asked(member, assigned, self.round + 1, rate, kept, noise)

    def admit(self, intake: Intake, asked: Asked, answer: Answer[TrainReply]) -> Good | None:
        """The update in an answer, checked; None where there is none that counts."""
        return intake.admit(asked, self.outbox.answered(asked, answer, self.weights), answer)

    def sent(self, assigned: Assigned) -> Flat:
        """A subnet's values as they are now."""
        return gather(self.weights, assigned.regions(self.space))

    def learning_rate(self) -> float:
        """This round's local learning rate; cosine falls to a twentieth at the end."""
        recipe, rounds = self.config.recipe, self.config.round.rounds
        if recipe.lr_schedule == "constant" or rounds == 1:
            return recipe.lr
        progress = min(self.round / (rounds - 1), 1.0)
        return recipe.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))

    def finish_round(
        self, assignments: Assignments, fleet: Fleet, answers: Iterable[Answer[TrainReply]]
    ) -> RoundReport | None:
        """Fold the answers to this round's requests, step, and write the checkpoint.

        None when the round is abandoned for too few good updates: then nothing has changed.
        """
        begin, intake = time.perf_counter(), self.intake()
        asked = {node: self.asked(*assignment) for node, assignment in assignments.items()}
        for one in asked.values():
            intake.asked(one)
        work = self.open(list(asked.values()), intake, fleet)
        enough, admit = self.config.round.enough(len(asked)), partial(self.admit, intake)
        if self.groups is not None:
            own, low_bits = Buffer(self.shelf()), self.config.aggregation.low_bits
            gathering = Gathering(self.groups, intake, work, own, low_bits)
            goods = gathering.goods(self.weights, asked, self.sent, answers, enough)
        elif enough is None:
            goods = all_good(admit, asked, answers)
        else:
            buffer = Buffer(self.shelf())
            goods = first_good(admit, asked, answers, buffer, enough, intake.books)
        return self.close(work, goods, intake, begin)

    def rest(self) -> None:
        """Let a round pass in which these weights are not changed: they have waited one more."""
        number, before = self.round + 1, self._digest()
        self.books().done(before, 0.0)
        self.round, self.selection.abandoned = number, 0
        untrained = dict.fromkeys(self.shapes, False)
        self.coverage.update(untrained, self.share.in_round(number).names)
        self.checkpoint()

    def shelf(self) -> Shelf:
        """A place on disk for updates, or for what was sent."""
        return Shelf(size_of(self.shapes))

    def intake(self) -> Intake:
        """What takes the answers of the coming round."""
        return Intake(self.config, self.space, self.books())

    def books(self) -> Books:
        """Where the coming round is written down."""
        reputation = self.selection.reputation
        return Books(self.round + 1, self._digest(), self.log, reputation, self.ledger)

    def open(self, asked: Sequence[Asked], intake: Intake, fleet: Fleet) -> OpenRound:
        """A round that takes updates; `asked` are all whose answers end in it."""
        terms = Terms(self.config, self.space, self.shapes, fleet)
        return OpenRound(terms, asked, self._fold(asked), intake.books)

    def close(
        self, work: OpenRound, goods: Iterable[Good], intake: Intake, begin: float
    ) -> RoundReport | None:
        """Fold good updates, step, and write the checkpoint.

        None when the round is abandoned for too few good updates: then nothing has changed.
        """
        for good in goods:
            work.add(good)
        tally = work.tally
        tally.bytes_sent = sum(self.outbox.sent_bytes(one) for one in work.asked)
        if self.too_few(tally.folded, intake.refused):
            self.abandon(intake, tally.accepted)
            return None
        return self.conclude(work.asked, tally, work.merged(), intake, begin)

    def abandon(self, intake: Intake, accepted: int) -> None:
        """Give the round up: nothing has changed, and it will be tried again."""
        self.selection.abandoned += 1
        if self.private is not None:
            self.private.abandoned()
        intake.books.abandoned(accepted, **self._spent())

    def conclude(
        self, asked: Sequence[Asked], tally: Tally, merged: Merged, intake: Intake, begin: float
    ) -> RoundReport | None:
        """Step by a round's merged change, and write the checkpoint.

        None when the change is not finite: then the round is given up.
        """
        books = intake.books
        if not all(bool(change.isfinite().all()) for change in merged.delta.values()):
            books.remark("the merged change is not finite: nothing of it is kept")
            self.abandon(intake, tally.accepted)
            return None
        if self.private is not None:
            self.private.published(tally.accepted, len(asked))
        members, ages = [one.member for one in asked], self.coverage.ages
        self.selection.learn(books.number, members, ages, tally.outcomes)
        self._rule_memory = merged.memory
        self.weights = self.optimizer.step(self.weights, merged)
        if self.proxy is not None:
            self.weights = self.proxy.tuned(self.weights, asked, books)
        self.round = books.number
        report = RoundReport(
            round=self.round,
            accepted=tally.accepted,
            refused=intake.refused,
            missing=len(asked) - tally.accepted - intake.refused,
            loss=tally.mean_loss,
            coverage=self.coverage.update(merged.trained, self.share.in_round(self.round).names),
            oldest=self.coverage.oldest(),
            train_macs=tally.train_macs,
            bytes_sent=tally.bytes_sent,
            bytes_received=tally.bytes_received,
            seconds=time.perf_counter() - begin,
            staleness=tally.staleness / max(tally.accepted, 1),
        )
        books.done(self._digest(), report.coverage)
        self.checkpoint()
        told = {name: getattr(report, name) for name in RoundReport.__match_args__}
        self.log("round", **told, **self._spent())
        return report

    def _fold(self, asked: Sequence[Asked]) -> Fold:
        if self.private is None:
            return self.config.aggregation.fold(self.shapes, self._rule_memory, self._lesson(asked))
        regions = [one.assigned.regions(self.space) for one in asked]
        return self.private.fold(self.shapes, regions)

    def _lesson(self, asked: Sequence[Asked]) -> Lesson | None:
        if self.proxy is None:
            return None
        return self.proxy.lesson(asked, self.round + 1, self.optimizer, self.weights)

    def _own_noise(self) -> OwnNoise | None:
        return None if self.private is None else self.private.own_noise()

    def too_few(self, accepted: int, refused: int) -> bool:
        """Whether the round is abandoned.

        In a private run a refused update counts as a reply: what is in it must not decide this.
        """
        replies = accepted + (refused if self.private is not None else 0)
        return replies < self.config.round.min_replies

    def _spent(self) -> dict[str, float]:
        """What a private run's events say of its budget."""
        return {} if self.private is None else {"epsilon": self.private.epsilon}

    def _digest(self) -> str:
        """The weights' digest for the ledger; not worked out where none is kept."""
        return digest(self.weights) if self.ledger is not None else ""

    def told(self) -> dict[str, Any]:
        """What a finished run says of itself."""
        found: dict[str, Any] = {"weights": digest(self.weights)}
        if self.ledger is not None:
            found["ledger"] = self.ledger.head
        if self.private is not None:
            found["privacy"] = statement(self.private)
        return found

    def checkpoint(self) -> None:
        """Write the state after the last round."""
        notes: dict[str, object] = {
            "fingerprint": self.fingerprint(),
            "digest": digest(self.weights),
            "aggregation": self._rule_memory,
            **self.selection.notes,
        }
        if self.private is not None:
            notes["privacy"] = self.private.memory
        if self.ledger is not None:
            notes["ledger"] = self.ledger.head
        state = Checkpoint(
            self.round, self.weights, self.optimizer.state, self.coverage.ages, notes
        )
        self.store.write(state)
