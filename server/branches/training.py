"""Rounds of a run with branches: each branch is a `Training` of its own, and they end rounds together.

The run's own checkpoint has no weights: it says which branches there are and how work is divided, and is
written when every branch's is. A run that is resumed takes each branch as it was in that round. A branch
that gets no work, or too few good updates, keeps its weights for a round.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ...protos.messages import TrainReply
from ...supernet.errors import ArtifactError, RunError
from ...supernet.space import Space
from ...supernet.weights import initial
from ..checkpoint import CHECKPOINTS, Checkpoint, CheckpointStore
from ..config import RunConfig
from ..events import EventLog
from ..exchange import Answer, Request, in_order
from ..fleet import Fleet
from ..ledger import Ledger
from ..open_round import Assignments
from ..training import RoundReport, Training
from .catalogue import router_of
from .config import BranchesConfig
from .places import branch_config, branch_folder, branch_store

NOTES = "branches"


class BranchedTraining:
    """Several supernets, one fleet; `round` is the last one that is done.

    Speaks to a strategy as one `Training` does. Which branches there are follows from the first fleet.
    """

    def __init__(
        self,
        config: RunConfig,
        branches: BranchesConfig,
        space: Space,
        folder: Path,
        log: EventLog,
    ) -> None:
        self.config, self.space, self.log = config, space, log
        self.round = 0
        self.router = router_of(config, branches, space)
        self.parts: dict[str, Training] = {}
        self._folder, self._branches = folder, branches
        self._store = CheckpointStore(folder / CHECKPOINTS, config.round.keep_checkpoints)

    def begin(self) -> None:
        """Nothing yet: branches begin when the fleet is there."""

    def resume(self) -> bool:
        """Go on from the newest round that is whole in all branches; False when there is none."""
        damage = ""
        for number in reversed(self._store.rounds()):
            try:
                self._restore(self._store.read(number))
            except ArtifactError as error:
                damage = str(error)
            else:
                return True
        if damage:
            raise ArtifactError(f"no whole checkpoint in {self._folder}: {damage}; start a new run")
        return False

    def _restore(self, found: Checkpoint) -> None:
        notes = found.noted(NOTES)
        if notes.get("table") != self._table:
            raise RunError(
                f"checkpoint of round {found.round} in {self._store.folder} belongs to another "
                "[branches] table; start a new run or restore the configuration"
            )
        stores = {name: branch_store(self._folder, name, self.config) for name in notes["names"]}
        states = {name: store.read(found.round) for name, store in stores.items()}
        self.router.restore(notes["router"])
        self.round, self.parts = found.round, {name: self._part(name) for name in states}
        for name, state in states.items():
            self.parts[name].restore(state)

    @property
    def _table(self) -> dict[str, Any]:
        return self._branches.model_dump(mode="json")

    @property
    def over(self) -> bool:
        """Whether no round is left."""
        return self.round >= self.config.round.rounds

    def assignments(
        self, fleet: Fleet, busy: frozenset[int] = frozenset(), most: int | None = None
    ) -> Assignments:
        """Node → (member, subnet) for the coming round, in all branches."""
        for name in self.router.settle(fleet, self.log):
            if name not in self.parts:
                self.parts[name] = self._part(name)
                self.parts[name].begin()
        return self.router.assignments(self.parts, fleet, busy, most)

    def _part(self, name: str) -> Training:
        config = branch_config(self.config, name)
        part = Training(
            config,
            self.space,
            branch_store(self._folder, name, config),
            self.log.tagged(branch=name),
            Ledger.open(branch_folder(self._folder, name), config.name),
            self.router.selection(),
        )
        part.weights = initial(self.space, self.router.seed(name, config.seed))
        return part

    def requests(self, assignments: Assignments) -> Iterator[Request]:
        """One message at a time: each device's values are its branch's."""
        for name, mine in self._parted(assignments).items():
            yield from self.parts[name].requests(mine)

    def finish_round(
        self, assignments: Assignments, fleet: Fleet, answers: Iterable[Answer[TrainReply]]
    ) -> RoundReport | None:
        """Let each branch close its round with its devices' answers, and write the checkpoints.

        None when no branch had enough good updates: then nothing has changed.
        """
        begin, parted = time.perf_counter(), self._parted(assignments)
        told = self.router.told(self.round + 1)
        reports = self._reports(parted, fleet, answers)
        if not reports:
            return None
        for name, part in self.parts.items():
            if name not in reports:
                part.rest()
        self.round += 1
        self._checkpoint()
        if told is not None:
            self.log("divided", round=self.round, **told)
        return self._merged(reports, len(assignments), time.perf_counter() - begin)

    def _reports(
        self,
        parted: Mapping[str, Assignments],
        fleet: Fleet,
        answers: Iterable[Answer[TrainReply]],
    ) -> dict[str, RoundReport]:
        """Of the branches that had enough good updates, one after the other."""
        owner = {node: name for name, mine in parted.items() for node in mine}
        found, outcomes = {}, {}
        groups = groupby(in_order(answers, list(owner)), key=lambda answer: owner[answer.node])
        for name, mine in groups:
            part = self.parts[name]
            report = part.finish_round(parted[name], fleet, mine)
            if report is not None:
                found[name], outcomes[name] = report, part.selection.outcomes
        for name, what in outcomes.items():
            self.router.learn(name, what)
        return found

    def _parted(self, assignments: Assignments) -> dict[str, Assignments]:
        """Each branch's own, in the order of the branches."""
        found: dict[str, Assignments] = {name: {} for name in self.parts}
        for node, (member, assigned) in assignments.items():
            name = self.router.branch(member, assigned, self.round + 1)
            found[name][node] = member, assigned
        return {name: mine for name, mine in found.items() if mine}

    def _merged(
        self, reports: Mapping[str, RoundReport], asked: int, seconds: float
    ) -> RoundReport:
        """All branches' figures together; a branch that rested covered nothing."""
        found = list(reports.values())
        accepted, refused = (sum(getattr(r, n) for r in found) for n in ("accepted", "refused"))
        return RoundReport(
            round=self.round,
            accepted=accepted,
            refused=refused,
            missing=asked - accepted - refused,
            loss=sum(report.loss * report.accepted for report in found) / accepted,
            coverage=sum(report.coverage for report in found) / len(self.parts),
            oldest=max(part.coverage.oldest() for part in self.parts.values()),
            train_macs=sum(report.train_macs for report in found),
            bytes_sent=sum(report.bytes_sent for report in found),
            bytes_received=sum(report.bytes_received for report in found),
            seconds=seconds,
        )

    def _checkpoint(self) -> None:
        notes = {
            "table": self._table, "names": list(self.parts), "router": self.router.memory,
        }  # fmt: skip
        self._store.write(Checkpoint(self.round, {}, {}, {}, {NOTES: notes}))

    def told(self) -> dict[str, Any]:
        """What a finished run says of its branches."""
        return {NOTES: {name: part.told() for name, part in self.parts.items()}}
