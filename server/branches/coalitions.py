"""Branches by coalitions of devices: planned once, from the first fleet; later devices join the nearest.

Who is planned: devices that tell their label counts, or stand in the file of distances. Others go to the
coalition with most examples. Each device stays where it is, so a branch's rounds are those of an ordinary
run whose fleet is the coalition.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...supernet.errors import UsageError
from ...supernet.randomness import stream
from ...supernet.space import Space
from ..config import RunConfig
from ..events import EventLog
from ..fleet import Fleet, Member
from ..open_round import Assignments
from ..samplers.assigned import Assigned, Outcome
from ..sharing import shown
from . import distances
from .config import RESTARTS, BranchesConfig, C
from .planner import Floats, Plan, plan
from .reach import untrained
from .router import Parts


@dataclass(slots=True)
class Coalition:
    """Members with their examples; `labels` are the planned ones' counts together, where told."""

    members: dict[str, int]
    labels: list[int] | None
    explained: dict[str, Any]

    @property
    def examples(self) -> int:
        """Of all members."""
        return sum(self.members.values())


class Coalitions:
    """Routes each device to its coalition's branch."""

    def __init__(self, config: RunConfig, branches: BranchesConfig, space: Space) -> None:
        self._config, self._branches, self._space = config, branches, space
        self._coalitions: dict[str, Coalition] = {}
        path = branches.distances
        self._table = None if path is None else distances.read_table(path)

    def settle(self, fleet: Fleet, log: EventLog) -> Sequence[str]:
        """Plan, or place devices that are new."""
        if not self._coalitions:
            self._plan(fleet)
            log("coalitions", coalitions=self.explained(1))
        known = {name for found in self._coalitions.values() for name in found.members}
        for name, member in fleet.members.items():
            if name not in known:
                branch, why = self._nearest(member)
                self._coalitions[branch].members[name] = member.profile.examples
                log("device_placed", device=name, branch=branch, reason=why)
        return list(self._coalitions)

    def selection(self) -> None:
        """Each coalition has its own."""
        return

    def seed(self, branch: str, seed: int) -> int:
        """All begin with the same weights."""
        return seed

    def assignments(
        self, parts: Parts, fleet: Fleet, busy: frozenset[int], most: int | None
    ) -> Assignments:
        """Each branch's own choice for its devices.

        Where only some devices are asked, as many of each coalition as a draw among all free ones
        gives it.
        """
        shares = self._shares(parts, fleet, busy, most)
        found: Assignments = {}
        for name, part in parts.items():
            share = None if shares is None else shares[name]
            if share != 0:
                found |= part.assignments(self.serves(name, fleet), busy, share)
        return found

    def _shares(
        self, parts: Parts, fleet: Fleet, busy: frozenset[int], most: int | None
    ) -> Counter[str] | None:
        most = self._config.round.clients if most is None else most
        if most is None:
            return None
        number = 1 + next(iter(parts.values())).round
        free = [name for name, member in fleet.members.items() if member.node not in busy]
        drawn = sorted(
            free, key=lambda name: stream(self._config.seed, number, "shares", name).random()
        )
        return Counter(self._of(name) for name in drawn[:most])

    def branch(self, member: Member, assigned: Assigned, number: int) -> str:
        """The device's coalition."""
        return self._of(member.name)

    def serves(self, branch: str, fleet: Fleet) -> Fleet:
        """The coalition."""
        members = self._coalitions[branch].members
        return Fleet({name: m for name, m in fleet.members.items() if name in members})

    def learn(self, branch: str, outcomes: Sequence[Outcome]) -> None:
        """Nothing: the map stands."""

    def told(self, number: int) -> None:
        """Nothing new."""
        return

    def explained(self, number: int) -> list[dict[str, Any]]:
        """One row a coalition."""
        return [
            {
                "branch": name,
                "devices": list(found.members),
                "examples": found.examples,
                **found.explained,
            }
            for name, found in self._coalitions.items()
        ]

    @property
    def memory(self) -> dict[str, Any]:
        """The map."""
        return {
            name: {"members": c.members, "labels": c.labels, "explained": c.explained}
            for name, c in self._coalitions.items()
        }

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Take the map as it was."""
        self._coalitions = {name: Coalition(**fields) for name, fields in memory.items()}

    def _of(self, device: str) -> str:
        for name, found in self._coalitions.items():
            if device in found.members:
                return name
        raise LookupError(f"device {device} has no coalition: settle() comes first")

    def _plan(self, fleet: Fleet) -> None:
        told = [member for member in fleet.members.values() if self._tells(member)]
        if not told:
            raise UsageError(
                "branches.by = coalitions: no device tells its label counts; set share_labels = true "
                "in the devices' profile files, or give branches.distances"
            )
        found = plan(
            [member.profile.examples for member in told],
            self._distances(told),
            C if self._branches.c is None else self._branches.c,
            RESTARTS if self._branches.restarts is None else self._branches.restarts,
            self._config.seed,
            [self._able(member) for member in told] if self._branches.whole else None,
        )
        for place, members in enumerate(found.coalitions, start=1):
            mine = [told[i] for i in members]
            self._check(mine)
            self._coalitions[f"coalition-{place}"] = Coalition(
                {member.name: member.profile.examples for member in mine},
                _pooled(mine),
                self._explain(found, members, mine),
            )

    def _check(self, members: Sequence[Member]) -> None:
        least = self._config.round.min_replies
        if len(members) < least:
            raise UsageError(
                f"round.min_replies = {least}: the coalition of {shown(m.name for m in members)} has "
                f"{len(members)}, and every round of it would be abandoned; lower it, or raise "
                "branches.c for larger coalitions"
            )

    def _tells(self, member: Member) -> bool:
        if self._table is not None:
            return member.name in distances.named(self._table)
        return member.profile.labels is not None

    def _distances(self, told: Sequence[Member]) -> Floats:
        if self._table is not None:
            return distances.of_table(self._table, [member.name for member in told])
        return distances.of_labels([member.profile.labels or () for member in told])

    def _able(self, member: Member) -> bool:
        return member.limits.fits(self._space, self._space.largest())

    def _explain(
        self, found: Plan, places: Sequence[int], members: Sequence[Member]
    ) -> dict[str, Any]:
        few = [found.errors[i].few_examples for i in places]
        unlike = [found.errors[i].unlike_data for i in places]
        share, tensors = untrained(self._space, [m.limits for m in members], self._config.seed)
        return {
            "error_of_few_examples": float(np.mean(few)),
            "error_of_unlike_data": float(np.mean(unlike)),
            "mean_error": {
                "planned": found.mean, "each_alone": found.alone, "all_together": found.together,
            },
            "untrained": {"share": share, "tensors": tensors},
        }  # fmt: skip

    def _nearest(self, member: Member) -> tuple[str, str]:
        """A device's coalition, and why it is that one."""
        largest = max(self._coalitions, key=lambda name: self._coalitions[name].examples)
        if not self._tells(member):
            what = "is not in branches.distances" if self._table is not None else "tells no labels"
            return largest, f"it {what}: the coalition with most examples"
        apart = {name: self._apart(member, c) for name, c in self._coalitions.items()}
        known = {name: value for name, value in apart.items() if value is not None}
        nearest = min(known, key=lambda name: known[name])
        return nearest, f"the nearest coalition, at {known[nearest]:.3f}"

    def _apart(self, member: Member, coalition: Coalition) -> float | None:
        """A device's distance from a coalition: in the mean over its examples, or from its labels."""
        if self._table is None:
            if coalition.labels is None:
                return None
            return float(distances.of_labels([member.profile.labels or (), coalition.labels])[0, 1])
        known = distances.named(self._table)
        sizes = {name: n for name, n in coalition.members.items() if name in known}
        total = sum(sizes.values())
        return sum(
            n * distances.between(self._table, member.name, name) for name, n in sizes.items()
        ) / max(total, 1)


def _pooled(members: Sequence[Member]) -> list[int] | None:
    counts = [member.profile.labels for member in members]
    told = [mine for mine in counts if mine is not None]
    if len(told) < len(members):  # distances from a file, not from labels
        return None
    return [sum(column) for column in zip(*told, strict=True)]
