"""Rounds of supernet training: assign, send, check, fold, step, checkpoint. No Flower in here."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..protos.messages import TrainReply, TrainRequest, tensor_shapes
from ..supernet.axes import layout
from ..supernet.errors import RefusedUpdate, RunError
from ..supernet.space import Space, plain
from ..supernet.weights import digest, gather, initial, shapes_of, split
from .aggregation.overlap_mean import OverlapMean
from .assignment import assign, remember
from .checkpoint import Checkpoint, CheckpointStore
from .config import RunConfig
from .coverage import Coverage
from .events import EventLog
from .exchange import Answer, Request, in_order
from .fleet import Fleet, Member
from .optimizer import ServerOptimizer
from .samplers.assigned import Assigned, Client, Outcome, Round
from .validation import Expected, checked

FINGERPRINT = ("seed", "recipe", "sampler", "server", "classes")
UNTIL_THE_END = ("growing", "ramp", "maxnet", "delayed", "importance")
"""Sampling methods whose draws depend on how many rounds there will be."""
Assignments = dict[int, tuple[Member, Assigned]]


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round came to. `coverage` is the fraction of shared weights trained in it."""

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


@dataclass(slots=True)
class _Tally:
    """Running figures of one round; `examples` weighs the loss."""

    accepted: int = 0
    refused: int = 0
    loss: float = 0.0
    examples: int = 0
    train_macs: int = 0
    bytes_received: int = 0
    outcomes: list[Outcome] = field(default_factory=list)


class Training:
    """The state of one supernet training run; `round` is the last one that is done."""

    def __init__(
        self, config: RunConfig, space: Space, store: CheckpointStore, log: EventLog
    ) -> None:
        self.config, self.space, self.store, self.log = config, space, store, log
        self.round = 0
        self.weights = initial(space, config.seed)
        self.optimizer = ServerOptimizer(config.server, config.round.rounds)
        self.coverage = Coverage(layout(space))
        self.memory: Mapping[str, Any] = {}

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False when there is none."""
        found = self.store.latest()
        if found is None:
            return False
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
        memory = found.notes.get("sampler", {})
        self.memory = memory if isinstance(memory, dict) else {}
        self.log("resumed", round=self.round, weights=digest(self.weights))
        return True

    def fingerprint(self) -> dict[str, object]:
        """The parts of the configuration that decide the weights."""
        dump = self.config.model_dump(mode="json")
        parts = {key: dump[key] for key in FINGERPRINT}
        names = ["max_update_ratio", "max_weight_share"]
        # Where the end is part of what decides the weights, it is part of the fingerprint.
        server = self.config.server
        if (
            self.config.recipe.lr_schedule == "cosine"
            or self.config.sampler.kind in UNTIL_THE_END
            or (server.optimizer == "momentum" and server.momentum is None)
        ):
            names.append("rounds")
        rounds = {name: dump["round"][name] for name in names}
        return {**parts, "round": rounds, "space": plain(self.space.to_dict())}

    def assignments(self, fleet: Fleet, busy: frozenset[int] = frozenset()) -> Assignments:
        """Node → (member, subnet) for the coming round, leaving out nodes that are busy."""
        free = [m for m in fleet.members.values() if m.node not in busy]
        this = self._this_round(free, [m for m in fleet.members.values() if m.node in busy])
        chosen = assign(self.config.sampler, this, self.coverage.ages)
        return {m.node: (m, chosen[m.name]) for m in free if m.name in chosen}

    def _this_round(self, members: Iterable[Member], busy: Iterable[Member] = ()) -> Round:
        return Round(
            self.space,
            self._clients(members),
            self.round + 1,
            self.config.round.rounds,
            self.config.seed,
            self.memory,
            self._clients(busy),
        )

    def _clients(self, members: Iterable[Member]) -> list[Client]:
        return [
            Client(member.name, self.space, member.limits, member.profile.examples)
            for member in sorted(members, key=lambda member: member.name)
        ]

    def requests(self, assignments: Assignments) -> Iterator[Request]:
        """One message at a time: only the selected values, and what they are."""
        for node, (_, assigned) in assignments.items():
            where = assigned.regions(self.space)
            body = TrainRequest(
                run=self.config.name,
                round=self.round + 1,
                seed=self.config.seed,
                lr=self.learning_rate(),
                deadline_s=self.config.round.deadline_s,
                space=plain(self.space.to_dict()),
                arch=dict(assigned.arch),
                recipe=assigned.recipe(self.config.recipe),
                tensors=tensor_shapes(shapes_of(where)),
            )
            yield Request(node, body, gather(self.weights, where))

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
        begin = time.perf_counter()
        fold, tally = OverlapMean(self.weights), _Tally()
        # The same order whatever the order of arrival: equal bits on a network and in one process.
        for answer in in_order(answers, list(assignments)):
            self._take(answer, assignments, fleet, fold, tally)
        if tally.accepted < self.config.round.min_replies:
            self.log("round_abandoned", round=self.round + 1, accepted=tally.accepted)
            return None
        merged, trained = fold.result()
        this = self._this_round(member for member, _ in assignments.values())
        self.memory = remember(self.config.sampler, this, self.coverage.ages, tally.outcomes)
        self.weights = self.optimizer.step(self.weights, merged, trained)
        self.round += 1
        report = RoundReport(
            round=self.round,
            accepted=tally.accepted,
            refused=tally.refused,
            missing=len(assignments) - tally.accepted - tally.refused,
            loss=tally.loss / tally.examples,
            coverage=self.coverage.update(trained),
            oldest=self.coverage.oldest(),
            train_macs=tally.train_macs,
            bytes_sent=sum(sent_bytes(self.space, a) for _, a in assignments.values()),
            bytes_received=tally.bytes_received,
            seconds=time.perf_counter() - begin,
        )
        self.checkpoint()
        self.log("round", **{name: getattr(report, name) for name in RoundReport.__match_args__})
        return report

    def checkpoint(self) -> None:
        """Write the state after the last round."""
        notes: dict[str, object] = {
            "fingerprint": self.fingerprint(),
            "digest": digest(self.weights),
            "sampler": self.memory,
        }
        state = Checkpoint(
            self.round, self.weights, self.optimizer.state, self.coverage.ages, notes
        )
        self.store.write(state)

    def _take(
        self,
        answer: Answer[TrainReply],
        assignments: Assignments,
        fleet: Fleet,
        fold: OverlapMean,
        tally: _Tally,
    ) -> None:
        member, assigned = assignments[answer.node]
        if answer.body is None:
            self.log("no_update", round=self.round + 1, device=member.name, reason=answer.failure)
            return
        where = assigned.regions(self.space)
        expected = self._expected(member, assigned, fleet)
        try:
            flat, weight = checked(expected, answer.body, answer.values)
        except RefusedUpdate as refusal:
            tally.refused += 1
            self.log(
                "update_refused",
                round=self.round + 1,
                device=member.name,
                code=refusal.code,
                reason=str(refusal),
            )
            return
        fold.add(split(flat, shapes_of(where)), where, weight * assigned.weight)
        # Rates fall and devices take unequal numbers of steps: neither says what is under-trained.
        moved = self.learning_rate() * max(answer.body.steps, 1)
        change = float(np.sqrt(np.mean(np.square(flat - expected.sent)))) / moved
        tally.outcomes.append(Outcome(assigned, answer.body.loss, change))
        tally.accepted += 1
        tally.loss += answer.body.loss * answer.body.examples
        tally.examples += answer.body.examples
        tally.train_macs += answer.body.train_macs
        tally.bytes_received += flat.nbytes

    def _expected(self, member: Member, assigned: Assigned, fleet: Fleet) -> Expected:
        where = assigned.regions(self.space)
        return Expected(
            run=self.config.name,
            round=self.round + 1,
            device=member.name,
            arch=assigned.arch,
            tensors=tensor_shapes(shapes_of(where)),
            sent=gather(self.weights, where),
            examples=member.profile.examples,
            typical_examples=fleet.typical_examples,
            max_update_ratio=self.config.round.max_update_ratio,
            max_weight_share=self.config.round.max_weight_share,
        )


def sent_bytes(space: Space, assigned: Assigned) -> int:
    """Bytes of the values sent for one subnet."""
    return 4 * sum(math.prod(shape) for shape in shapes_of(assigned.regions(space)).values())
