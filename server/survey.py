"""Whom to ask when subnets are measured, how much each device counts, and the asking itself."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import TypeVar

from ..protos.flower import Values
from ..protos.messages import Body, DeviceProfile, MessageError
from ..supernet.cost import Budget
from .events import EventLog
from .exchange import Exchange, Request, in_order, printable
from .fleet import Fleet, Member

B = TypeVar("B", bound=Body)
V = TypeVar("V")
Examples = Callable[[DeviceProfile], int]
Plan = dict[str, list[int]]
"""Device name → which of the targets this device is asked about."""


@dataclass(frozen=True, slots=True)
class Work:
    """What answering costs a device: `macs` of one example by target's place, and of how many."""

    macs: Mapping[int, int]
    examples: Examples


@dataclass(slots=True)
class _Spent:
    """What the answers to one question cost, as far as they came; `subnets` by their places."""

    subnets: set[int]
    devices: int = 0
    runs: int = 0
    examples: int = 0
    macs: int = 0

    def add(self, places: Sequence[int], work: Work, profile: DeviceProfile) -> None:
        examples = work.examples(profile)
        self.subnets.update(places)
        self.devices += 1
        self.runs += len(places)
        self.examples += len(places) * examples
        self.macs += examples * sum(work.macs[place] for place in places)

    def told(self) -> dict[str, int]:
        return {
            "subnets": len(self.subnets),
            "devices": self.devices,
            "runs": self.runs,
            "examples": self.examples,
            "macs": self.macs,
        }


def own_budget(member: Member) -> Budget:
    """What bounds a device: its class's budget and what it declared itself."""
    return member.class_budget.tightened(Budget.from_dict(member.profile.budget))


def can_hold(member: Member, budget: Budget) -> bool:
    """Whether the device may be asked about any subnet of this budget: its own bounds are no lower.

    Memory for training does not matter here.
    """
    mine = own_budget(member)
    bounds = ("macs", "params", "peak_activation_bytes")
    pairs = [(getattr(mine, name), getattr(budget, name)) for name in bounds]
    return all(own is None or (asked is not None and asked <= own) for own, asked in pairs)


class Survey:
    """Asks the fleet, a question at a time. What cannot be used is told in the event log."""

    def __init__(self, exchange: Exchange, fleet: Fleet, log: EventLog) -> None:
        self._exchange, self._fleet, self._log = exchange, fleet, log
        self.deadline_s = 120.0
        self.max_examples_ratio = 20.0

    def plan(self, budgets: Mapping[int, Budget], examples: Examples) -> Plan:
        """Who is asked about which target: whoever may hold it, has examples, is there and free.

        Targets of one budget go to the same devices. Where all have left they are asked all the
        same: one may come back. Where all owe a late reply they are waited for until one is free,
        up to the deadline.
        """
        end_s, online = time.monotonic() + self.deadline_s, frozenset(self._exchange.nodes())
        data = {n: m for n, m in self._fleet.members.items() if examples(m.profile)}
        asked = {
            budget: self._free([m for m in data.values() if can_hold(m, budget)], online, end_s)
            for budget in dict.fromkeys(budgets.values())
        }
        plan = {
            name: [place for place, budget in budgets.items() if name in asked[budget]]
            for name in data
        }
        return {name: places for name, places in plan.items() if places}

    def _free(self, able: Sequence[Member], online: frozenset[int], end_s: float) -> frozenset[str]:
        there = [member for member in able if member.node in online] or able
        nodes = [member.node for member in there]
        busy = self._exchange.busy(1, nodes, end_s - time.monotonic()) if nodes else frozenset()
        return frozenset(member.name for member in there if member.node not in busy)

    def weights(self, examples: Examples) -> dict[str, float]:
        """Device → what its figures count, 1 or less.

        No device counts for more than `max_examples_ratio` times the lower median of the fleet.
        """
        counts = {name: examples(m.profile) for name, m in self._fleet.members.items()}
        typical = median_low([count for count in counts.values() if count] or [1])
        return {
            name: min(1.0, self.max_examples_ratio * typical / max(count, 1))
            for name, count in counts.items()
        }

    def ask(
        self,
        plan: Plan,
        requests: Iterable[Request],
        kind: type[B],
        read: Callable[[Member, B, Values | None], Sequence[V]],
        work: Work,
    ) -> Iterator[tuple[int, V]]:
        """(target's place, what was read of it), device by device in the order of the fleet.

        So sums are repeatable. An answer that does not come or cannot be read is logged, and the
        others go on. What the used ones cost is logged when all are in, as `measured`: subnets (or
        files), devices, pairs of both that were run, examples and MACs over these runs, seconds.
        """
        begin, spent = time.perf_counter(), _Spent(set())
        members = {self._fleet.members[name].node: self._fleet.members[name] for name in plan}
        answers = self._exchange.ask(requests, kind, self.deadline_s)
        for answer in in_order(answers, list(members)):
            member, reason = members[answer.node], answer.failure
            if answer.body is not None:
                try:
                    found = read(member, answer.body, answer.values)
                except MessageError as error:
                    reason = printable(str(error))
                else:
                    spent.add(plan[member.name], work, member.profile)
                    yield from zip(plan[member.name], found, strict=True)
                    continue
            self._log("no_answer", device=member.name, about=kind.action, reason=reason)
        seconds = time.perf_counter() - begin
        self._log("measured", about=kind.action, **spent.told(), seconds=seconds)
