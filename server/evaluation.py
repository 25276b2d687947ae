"""Measuring subnets on the devices: norm statistics, accuracy, activation ranges, exported files.

The server needs no data. What devices return adds up: sums and counts, minima and maxima.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch

from ..protos.flower import Values
from ..protos.inference import Ranges
from ..protos.manifest import FileEntry, FileKind
from ..protos.messages import (
    Body,
    EvaluateReply,
    EvaluateRequest,
    MessageError,
    MomentsReply,
    MomentsRequest,
    RangesReply,
    RangesRequest,
    Verdict,
    VerifyItem,
    VerifyReply,
    VerifyRequest,
)
from ..protos.subnets import Statistics, flat_statistics, grouped, pack
from ..supernet.axes import Weights, regions
from ..supernet.batchnorm import Moments, merge
from ..supernet.cost import Budget
from ..supernet.errors import RunError
from ..supernet.space import Arch, Space, plain
from ..supernet.subnet import batch_norms
from ..supernet.weights import gather
from .events import EventLog
from .exchange import Exchange, Request, in_order
from .fleet import Fleet, Member

B = TypeVar("B", bound=Body)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class GoodAnswer(Generic[B]):
    """A reply that came."""

    body: B
    values: Values | None


@dataclass(frozen=True, slots=True)
class Measured:
    """Right answers of so many validation examples, summed over devices."""

    correct: int
    examples: int

    @property
    def accuracy(self) -> float:
        """Fraction of right answers."""
        return self.correct / self.examples

    @property
    def error(self) -> float:
        """Standard error of the accuracy as a binomial proportion."""
        p = self.accuracy
        return float(np.sqrt(max(p * (1 - p), 1e-12) / self.examples))

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(self.correct + other.correct, self.examples + other.examples)


@dataclass(frozen=True, slots=True)
class FileMeasured:
    """One exported file against its subnet in PyTorch, on the same validation examples."""

    file: Measured
    reference: Measured
    agree: int
    max_difference: float


@dataclass(frozen=True, slots=True)
class Target:
    """A subnet to measure, and the budget it was made for.

    Targets of one budget go to the same devices, so that their figures compare.
    """

    arch: Arch
    budget: Budget


@dataclass(frozen=True, slots=True)
class FloatFile:
    """An exported float file to observe; `input_shape` without the batch."""

    kind: FileKind
    input_shape: tuple[int, ...]
    content: bytes
    budget: Budget


@dataclass(frozen=True, slots=True)
class Exported:
    """A subnet, its norm statistics, the budget it was made for, and its exported files."""

    arch: Arch
    statistics: Statistics
    budget: Budget
    files: Sequence[tuple[FileEntry, bytes]]


Plan = dict[str, list[int]]
"""Device name → which of the targets this device is asked about."""


def can_hold(member: Member, budget: Budget) -> bool:
    """Whether the device may be asked about any subnet of this budget: its own bounds are no lower.

    Memory for training does not matter here.
    """
    mine = member.class_budget.tightened(Budget.from_dict(member.profile.budget))
    bounds = ("macs", "params", "peak_activation_bytes")
    pairs = [(getattr(mine, name), getattr(budget, name)) for name in bounds]
    return all(own is None or (asked is not None and asked <= own) for own, asked in pairs)


class FederatedEvaluator:
    """Asks the fleet about subnets of given shared weights.

    Results are in the order of the targets. RunError when nobody answered for one of them.
    """

    def __init__(
        self, exchange: Exchange, fleet: Fleet, space: Space, weights: Weights, log: EventLog
    ) -> None:
        self._exchange, self._fleet, self._space = exchange, fleet, space
        self._weights, self._log = weights, log
        self._plain = plain(space.to_dict())
        self.deadline_s = 120.0
        self.batch_size = 64

    def statistics(self, targets: Sequence[Target]) -> list[Statistics]:
        """Each subnet's norm statistics, merged over the devices' training examples."""
        plan = self._able([target.budget for target in targets])
        found: dict[int, Statistics] = {}

        def read(name: str, answer: GoodAnswer[MomentsReply]) -> list[dict[str, Moments]]:
            return _moments(self._space, [targets[at].arch for at in plan[name]], answer)

        for name, moments in self._ask(self._moments_requests(targets, plan), MomentsReply, read):
            for place, mine in zip(plan[name], moments, strict=True):
                found[place] = merge([found[place], mine]) if place in found else mine
        return _all(targets, found)

    def accuracy(
        self, targets: Sequence[Target], statistics: Sequence[Statistics]
    ) -> list[Measured]:
        """Each subnet's right answers on the devices' validation examples."""
        plan = self._able([target.budget for target in targets])
        found: dict[int, Measured] = {}

        def read(name: str, answer: GoodAnswer[EvaluateReply]) -> list[Measured]:
            return _measured(answer.body, len(plan[name]))

        requests = self._evaluate_requests(targets, plan, statistics)
        for name, measured in self._ask(requests, EvaluateReply, read):
            for place, mine in zip(plan[name], measured, strict=True):
                found[place] = found[place] + mine if place in found else mine
        return _all(targets, {place: m for place, m in found.items() if m.examples})

    def ranges(self, files: Sequence[FloatFile], most: int) -> list[list[Ranges]]:
        """Per file the activation ranges that each device observed on up to `most` examples."""
        plan = self._able([file.budget for file in files])

        def requests() -> Iterator[Request]:
            for name, places in plan.items():
                mine = [files[place] for place in places]
                body = RangesRequest(
                    max_examples=most,
                    files=tuple((f.kind, f.input_shape, len(f.content)) for f in mine),
                )
                yield Request(self._node(name), body, _blob([f.content for f in mine]))

        def read(name: str, answer: GoodAnswer[RangesReply]) -> tuple[Ranges, ...]:
            if len(answer.body.ranges) != len(plan[name]):
                raise MessageError(f"ranges of {len(plan[name])} files expected")
            for ranges in answer.body.ranges:
                if not all(-math.inf < low <= high < math.inf for low, high in ranges.values()):
                    raise MessageError("ranges: one is not finite, or its ends are swapped")
            return answer.body.ranges

        found: dict[int, list[Ranges]] = {}
        for name, ranges in self._ask(requests(), RangesReply, read):
            for place, mine in zip(plan[name], ranges, strict=True):
                found.setdefault(place, []).append(mine)
        return _all(files, found)

    def verify(self, exports: Sequence[Exported]) -> list[list[FileMeasured]]:
        """Each export's files against its subnet in PyTorch, on the validation examples."""
        plan = self._able([export.budget for export in exports])

        def requests() -> Iterator[Request]:
            for name, places in plan.items():
                packed = [self._verify_item(exports[place]) for place in places]
                items = tuple(item for item, _ in packed)
                body = VerifyRequest(space=self._plain, items=items)
                yield Request(self._node(name), body, _blob([blob for _, blob in packed]))

        def read(name: str, answer: GoodAnswer[VerifyReply]) -> VerifyReply:
            counts = [len(exports[place].files) for place in plan[name]]
            return _checked_verdicts(answer.body, counts)

        found: dict[int, list[tuple[int, Verdict]]] = {}
        for name, reply in self._ask(requests(), VerifyReply, read):
            for place, verdict in zip(plan[name], reply.verdicts, strict=True):
                if reply.examples:
                    found.setdefault(place, []).append((reply.examples, verdict))
        return [_file_figures(verdicts) for verdicts in _all(exports, found)]

    def _verify_item(self, export: Exported) -> tuple[VerifyItem, bytes]:
        weights = gather(self._weights, regions(self._space, export.arch))
        values = np.concatenate([weights, flat_statistics(export.statistics)])
        entries = tuple(entry for entry, _ in export.files)
        item = VerifyItem(arch=dict(export.arch), values=len(values), files=entries)
        return item, values.tobytes() + b"".join(content for _, content in export.files)

    def _able(self, budgets: Sequence[Budget]) -> Plan:
        plan = {
            name: [at for at, budget in enumerate(budgets) if can_hold(member, budget)]
            for name, member in self._fleet.members.items()
        }
        return {name: places for name, places in plan.items() if places}

    def _node(self, name: str) -> int:
        return self._fleet.members[name].node

    def _grouped(self, member: Member, archs: Sequence[Arch]) -> list[list[Arch]]:
        own = member.class_budget.tightened(Budget.from_dict(member.profile.budget))
        return grouped(self._space, archs, own.params)

    def _moments_requests(self, targets: Sequence[Target], plan: Plan) -> Iterator[Request]:
        for name, places in plan.items():
            member = self._fleet.members[name]
            mine = self._grouped(member, [targets[place].arch for place in places])
            groups, values = pack(self._space, self._weights, mine)
            body = MomentsRequest(space=self._plain, batch_size=self.batch_size, groups=groups)
            yield Request(member.node, body, values)

    def _evaluate_requests(
        self, targets: Sequence[Target], plan: Plan, statistics: Sequence[Statistics]
    ) -> Iterator[Request]:
        for name, places in plan.items():
            member = self._fleet.members[name]
            mine = self._grouped(member, [targets[place].arch for place in places])
            theirs = [statistics[place] for place in places]
            groups, values = pack(self._space, self._weights, mine, theirs)
            body = EvaluateRequest(space=self._plain, batch_size=self.batch_size, groups=groups)
            yield Request(member.node, body, values)

    def _ask(
        self,
        requests: Iterable[Request],
        kind: type[B],
        read: Callable[[str, GoodAnswer[B]], V],
    ) -> Iterator[tuple[str, V]]:
        """(device, what was read of its answer) in the order of the fleet: sums are repeatable.

        An answer that does not come or cannot be read is logged, and the others go on.
        """
        by_node = self._fleet.by_node()
        for answer in in_order(self._exchange.ask(requests, kind, self.deadline_s), list(by_node)):
            name, reason = by_node[answer.node].name, answer.failure
            if answer.body is not None:
                try:
                    yield name, read(name, GoodAnswer(answer.body, answer.values))
                    continue
                except MessageError as error:
                    reason = str(error)
            self._log("no_answer", device=name, about=kind.action, reason=reason)


@lru_cache(maxsize=4096)
def norm_sizes(space: Space, arch: Arch) -> Mapping[str, int]:
    """Norm layer → channels, in the module's order."""
    with torch.device("meta"):
        return {name: layer.num_features for name, layer in batch_norms(space.build(arch)).items()}


def _moments(
    space: Space, archs: Sequence[Arch], answer: GoodAnswer[MomentsReply]
) -> list[dict[str, Moments]]:
    """One device's moments per subnet; MessageError when they have another form or are not finite."""
    values, counts = answer.values, answer.body.counts
    sizes = [norm_sizes(space, arch) for arch in archs]
    needed = 2 * sum(sum(layers.values()) for layers in sizes)
    if values is None or values.dtype != np.float64 or len(values) != needed:
        raise MessageError(f"moments: {needed} float64 values expected")
    if not np.isfinite(values).all() or len(counts) != len(archs):
        raise MessageError("moments: a value is not finite, or a subnet is missing")
    wide = values.astype(np.float64, copy=False)
    found, at = [], 0
    for layers, mine in zip(sizes, counts, strict=True):
        if mine.keys() != layers.keys() or min(mine.values(), default=1) < 1:
            raise MessageError("moments: wrong norm layers or an empty count")
        moments = {}
        for name, size in layers.items():
            total, squares = wide[at : at + size], wide[at + size : at + 2 * size]
            moments[name] = Moments(mine[name], total.copy(), squares.copy())
            at += 2 * size
        found.append(moments)
    return found


def _file_figures(verdicts: Sequence[tuple[int, Verdict]]) -> list[FileMeasured]:
    examples = sum(count for count, _ in verdicts)
    reference = Measured(sum(verdict.reference_correct for _, verdict in verdicts), examples)
    return [
        FileMeasured(
            file=Measured(sum(verdict.correct[place] for _, verdict in verdicts), examples),
            reference=reference,
            agree=sum(verdict.agree[place] for _, verdict in verdicts),
            max_difference=_worst([verdict.max_difference[place] for _, verdict in verdicts]),
        )
        for place in range(len(verdicts[0][1].correct))
    ]


def _worst(differences: Sequence[float]) -> float:
    # Python's max passes over a NaN or keeps it, as the order has it; no bound holds for one.
    return max(math.inf if math.isnan(gap) else gap for gap in differences)


def _blob(parts: Sequence[bytes]) -> Values:
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def _measured(reply: EvaluateReply, targets: int) -> list[Measured]:
    right = reply.correct
    if len(right) != targets or any(not 0 <= count <= reply.examples for count in right):
        raise MessageError(f"evaluation: {targets} counts from 0 to {reply.examples} expected")
    return [Measured(count, reply.examples) for count in right]


def _checked_verdicts(reply: VerifyReply, files: Sequence[int]) -> VerifyReply:
    if len(reply.verdicts) != len(files):
        raise MessageError(f"verification: {len(files)} verdicts expected")
    for verdict, count in zip(reply.verdicts, files, strict=True):
        figures = (verdict.correct, verdict.agree, verdict.max_difference)
        if {len(figure) for figure in figures} != {count}:
            raise MessageError(f"verification: figures of {count} files expected")
        counts = (*verdict.correct, *verdict.agree, verdict.reference_correct)
        if any(not 0 <= right <= reply.examples for right in counts):
            raise MessageError(f"verification: counts from 0 to {reply.examples} expected")
    return reply


def _all(targets: Sequence[object], found: Mapping[int, V]) -> list[V]:
    if len(found) < len(targets):
        raise RunError(
            f"no device answered for {len(targets) - len(found)} of {len(targets)} subnets; see "
            "the event log. Start a device whose class may hold them"
        )
    return [found[place] for place in range(len(targets))]
