"""Measuring subnets on the devices: norm statistics, accuracy, activation ranges, exported files.

The server needs no data. What devices return adds up: sums and counts, minima and maxima.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from operator import add
from typing import Any, TypeVar

import numpy as np

from ..protos.flower import Values
from ..protos.histograms import Histogram
from ..protos.inference import Ranges, runtimes_of
from ..protos.manifest import FileEntry, FileKind
from ..protos.messages import (
    Body,
    DeviceProfile,
    EvaluateReply,
    EvaluateRequest,
    InputsReply,
    InputsRequest,
    MomentsReply,
    MomentsRequest,
    Personal,
    RangesReply,
    RangesRequest,
    SubnetGroup,
    VerifyItem,
    VerifyReply,
    VerifyRequest,
)
from ..protos.subnets import Statistics, flat_statistics, grouped, pack
from ..specialize.adjust import AS_TRAINED, Adjustment
from ..supernet import kernel_inputs
from ..supernet.axes import Weights, regions
from ..supernet.batchnorm import Moments, merge
from ..supernet.cost import Budget, cost
from ..supernet.kernel_inputs import Matrix, SecondMoments
from ..supernet.space import Arch, Space, plain
from ..supernet.weights import Flat, gather
from . import figures
from .config import RunConfig
from .events import EventLog
from .exchange import Exchange, Request
from .figures import FileMeasured, Measured
from .fleet import Fleet, Member
from .paired import Paired, read_paired
from .second_moments import asked, lighter, read_inputs
from .survey import Survey, Work, own_budget

S = TypeVar("S")
Sums = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A subnet to measure, and the budget it was made for.

    Targets of one budget go to the same devices, so that their figures compare. `weights` are other
    shared weights than the evaluator's; kernels in `widths` are rounded to so many bits before anything
    is measured.
    """

    arch: Arch
    budget: Budget
    weights: Weights | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FloatFile:
    """An exported float file to observe; `input_shape` without the batch, `macs` of one example."""

    kind: FileKind
    input_shape: tuple[int, ...]
    content: bytes
    budget: Budget
    macs: int


@dataclass(frozen=True, slots=True)
class Exported:
    """A subnet, its norm statistics, the budget it was made for, and its exported files.

    Devices in `timed_by` are asked for the files' latencies too.
    """

    arch: Arch
    statistics: Statistics
    budget: Budget
    files: Sequence[tuple[FileEntry, bytes]]
    adjustment: Adjustment = AS_TRAINED
    timed_by: Collection[str] = ()


def _training(profile: DeviceProfile) -> int:
    return profile.examples


def _validation(profile: DeviceProfile) -> int:
    return profile.validation_examples


class FederatedEvaluator:
    """Asks the fleet about subnets of given shared weights; `survey` says whom, and for how long.

    Results are by the place of the target. One for which no device gave an answer that can be used
    is absent. With `personal`, accuracies are those of the devices' own models.
    """

    def __init__(
        self, exchange: Exchange, fleet: Fleet, space: Space, weights: Weights, log: EventLog
    ) -> None:
        self._fleet, self._space, self._weights = fleet, space, weights
        self._plain = plain(space.to_dict())
        self.survey = Survey(exchange, fleet, log)
        self.batch_size = 64
        self.personal: Personal | None = None

    def configure(self, config: RunConfig) -> None:
        """Measure as a configuration says."""
        self.batch_size = config.search.batch_size
        self.survey.deadline_s = config.round.deadline_s
        self.survey.max_examples_ratio = config.round.max_examples_ratio

    @property
    def space(self) -> Space:
        """The search space of the subnets."""
        return self._space

    @property
    def weights(self) -> Weights:
        """The shared weights that are asked about."""
        return self._weights

    def statistics(self, targets: Sequence[Target]) -> dict[int, Statistics]:
        """Each subnet's norm statistics, merged over the devices' training examples.

        A subnet without batch normalization has none, and nobody is asked.
        """
        normed = {
            place: target.budget
            for place, target in enumerate(targets)
            if figures.norm_layers(self._space, target.arch)
        }
        found: dict[int, Statistics] = {at: {} for at in range(len(targets)) if at not in normed}
        if not normed:
            return found
        plan = self.survey.plan(normed, _training)
        weights = self.survey.weights(_training)

        def requests() -> Iterator[Request]:
            for name, places in plan.items():
                groups, values = self._packed(name, [targets[place] for place in places])
                body = MomentsRequest(space=self._plain, batch_size=self.batch_size, groups=groups)
                yield self._request(name, body, values)

        def read(
            member: Member, body: MomentsReply, values: Values | None
        ) -> list[dict[str, Moments]]:
            archs = [targets[place].arch for place in plan[member.name]]
            used = member.profile.examples
            if used % self.batch_size == 1:  # one example alone has no variance
                used -= 1
            found = figures.read_moments(self._space, archs, used, body, values)
            return [figures.lighter_moments(part, weights[member.name]) for part in found]

        work = Work(self._macs([target.arch for target in targets]), _training)
        for place, mine in self.survey.ask(plan, requests(), MomentsReply, read, work):
            found[place] = merge([found[place], mine]) if place in found else mine
        return found

    def inputs(
        self, targets: Sequence[Target], statistics: Mapping[int, Statistics], most: int
    ) -> dict[int, SecondMoments]:
        """Second moments of what kernels multiply, over up to `most` training examples of each device.

        Of the kernels in `second_moments.asked`, in the subnets without their `widths`.
        """

        def seen(profile: DeviceProfile) -> int:
            return min(most, profile.examples)

        observed = [asked(self._space, target.arch, target.widths) for target in targets]
        targets = [replace(target, widths={}) for target in targets]
        plan = self.survey.plan({at: targets[at].budget for at in statistics}, _training)
        weights = self.survey.weights(seen)

        def requests() -> Iterator[Request]:
            for name, places in plan.items():
                known = [statistics[at] for at in places]
                groups, values = self._packed(name, [targets[at] for at in places], known)
                body = InputsRequest(
                    space=self._plain,
                    batch_size=self.batch_size,
                    max_examples=most,
                    groups=groups,
                    kernels=tuple(tuple(observed[at]) for at in places),
                )
                yield self._request(name, body, values)

        def read(
            member: Member, body: InputsReply, values: Values | None
        ) -> list[dict[str, tuple[Matrix, ...]]]:
            kernels = [observed[at] for at in plan[member.name]]
            found = read_inputs(kernels, seen(member.profile), body, values)
            return [lighter(part, weights[member.name]) for part in found]

        macs = self._macs([target.arch for target in targets])
        sums = [sum(kernel.macs for kernel in mine.values()) for mine in observed]
        work = Work({at: macs[at] + more for at, more in enumerate(sums)}, seen)
        found: dict[int, SecondMoments] = {}
        for place, mine in self.survey.ask(plan, requests(), InputsReply, read, work):
            found[place] = kernel_inputs.merge([found[place], mine]) if place in found else mine
        return found

    def accuracy(
        self, targets: Sequence[Target], statistics: Mapping[int, Statistics]
    ) -> dict[int, Measured]:
        """Right answers on the devices' validation examples, of each subnet with statistics."""

        def of(body: EvaluateReply, count: int, stated: int, weight: float) -> list[Measured]:
            parts = figures.read_measured(body, count, stated)
            return [figures.lighter(part, weight) for part in parts]

        return self._evaluated(targets, statistics, {}, of, add)

    def compared(
        self, first: Target, second: Target, statistics: Mapping[int, Statistics]
    ) -> Paired | None:
        """Two subnets on the same validation examples, example by example.

        `statistics` are those of the first at 0 and the second at 1. Each device is asked about both
        in one message. None where no device gave an answer that can be used.
        """

        def of(body: EvaluateReply, count: int, stated: int, weight: float) -> list[Paired | None]:
            found = read_paired(body, stated).lighter(weight)
            return [found, *[None] * (count - 1)]

        def both(mine: Paired | None, theirs: Paired | None) -> Paired | None:
            return mine + theirs if mine and theirs else None

        found = self._evaluated([first, second], statistics, {"paired": True}, of, both)
        return found.get(0)

    def likelihoods(
        self,
        targets: Sequence[Target],
        statistics: Mapping[int, Statistics],
        temperatures: Sequence[float],
    ) -> dict[int, tuple[float, ...]]:
        """Negative log-likelihood, summed, with the logits divided by each of the temperatures."""

        def of(body: EvaluateReply, count: int, stated: int, weight: float) -> list[Sums]:
            figures.read_measured(body, count, stated)
            parts = figures.read_nll(body, count, len(temperatures))
            return [tuple(weight * each for each in part) for part in parts]

        def both(mine: Sums, theirs: Sums) -> Sums:
            return tuple(a + b for a, b in zip(mine, theirs, strict=True))

        more = {"temperatures": tuple(temperatures)}
        return self._evaluated(targets, statistics, more, of, both)

    def _evaluated(
        self,
        targets: Sequence[Target],
        statistics: Mapping[int, Statistics],
        more: Mapping[str, Any],
        of: Callable[[EvaluateReply, int, int, float], list[S]],
        both: Callable[[S, S], S],
    ) -> dict[int, S]:
        budgets = {place: targets[place].budget for place in statistics}
        plan = self.survey.plan(budgets, _validation)
        weights = self.survey.weights(_validation)

        def requests() -> Iterator[Request]:
            for name, places in plan.items():
                mine, known = zip(*((targets[at], statistics[at]) for at in places), strict=True)
                groups, values = self._packed(name, mine, known)
                body = EvaluateRequest(
                    space=self._plain,
                    batch_size=self.batch_size,
                    groups=groups,
                    personal=self.personal,
                    **more,
                )
                yield self._request(name, body, values)

        def read(member: Member, body: EvaluateReply, _values: Values | None) -> list[S]:
            stated = member.profile.validation_examples
            return of(body, len(plan[member.name]), stated, weights[member.name])

        found: dict[int, S] = {}
        work = Work(self._macs([target.arch for target in targets]), _validation)
        for place, mine in self.survey.ask(plan, requests(), EvaluateReply, read, work):
            found[place] = both(found[place], mine) if place in found else mine
        return found

    def ranges(self, files: Sequence[FloatFile], most: int) -> dict[int, list[Ranges]]:
        """Per file the activation ranges that each device observed on up to `most` examples."""
        return self._observed(files, most, 0, figures.read_ranges)

    def histograms(
        self, files: Sequence[FloatFile], most: int, bins: int
    ) -> dict[int, list[Mapping[str, Histogram]]]:
        """The same with histograms of at most so many bins."""
        return self._observed(files, most, bins, partial(figures.read_histograms, bins=bins))

    def _observed(
        self,
        files: Sequence[FloatFile],
        most: int,
        bins: int,
        of: Callable[[RangesReply, int, int], Sequence[S]],
    ) -> dict[int, list[S]]:
        plan = self.survey.plan(_budgets(files), _training)

        def requests() -> Iterator[Request]:
            for name, places in plan.items():
                mine = [files[place] for place in places]
                body = RangesRequest(
                    max_examples=most,
                    files=tuple((f.kind, f.input_shape, len(f.content)) for f in mine),
                    bins=bins,
                )
                yield self._request(name, body, _blob([f.content for f in mine]))

        def read(member: Member, body: RangesReply, _values: Values | None) -> Sequence[S]:
            return of(body, len(plan[member.name]), min(most, member.profile.examples))

        def seen(profile: DeviceProfile) -> int:
            return min(most, profile.examples)

        found: dict[int, list[S]] = {}
        work = Work({place: file.macs for place, file in enumerate(files)}, seen)
        for place, mine in self.survey.ask(plan, requests(), RangesReply, read, work):
            found.setdefault(place, []).append(mine)
        return found

    def verify(
        self, exports: Sequence[Exported], *, calibration: bool = False
    ) -> dict[int, dict[FileKind, FileMeasured]]:
        """Each export's files against its subnet in PyTorch, on the validation examples.

        A device is asked about the files that it has a runtime for; one that nobody could run is absent.
        """
        whole = self.survey.plan(_budgets(exports), _validation)
        plan = {
            name: some
            for name, places in whole.items()
            if (some := [at for at in places if self._runnable(name, exports[at])])
        }
        weights = self.survey.weights(_validation)
        macs = self._macs([export.arch for export in exports])

        def requests() -> Iterator[Request]:
            for name, places in plan.items():
                packed = [self._verify_item(exports[place], name) for place in places]
                items = tuple(item for item, _ in packed)
                body = VerifyRequest(space=self._plain, items=items, calibration=calibration)
                yield self._request(name, body, _blob([blob for _, blob in packed]))

        def read(
            member: Member, body: VerifyReply, _values: Values | None
        ) -> list[dict[FileKind, FileMeasured]]:
            places = plan[member.name]
            kinds = [
                [entry.kind for entry, _ in self._runnable(member.name, exports[place])]
                for place in places
            ]
            counts = [len(mine) for mine in kinds]
            stated, weight = member.profile.validation_examples, weights[member.name]
            verdicts = figures.read_verdicts(body, counts, stated)
            found = [
                figures.timed_by(member.name, parts, verdict, macs[place])
                if member.name in exports[place].timed_by
                else parts
                for place, parts, verdict in zip(places, verdicts, body.verdicts, strict=True)
            ]
            lighter = [[figures.lighter_file(part, weight) for part in parts] for parts in found]
            return [
                dict(zip(mine, parts, strict=True))
                for mine, parts in zip(kinds, lighter, strict=True)
            ]

        found: dict[int, dict[FileKind, FileMeasured]] = {}
        # The subnet itself runs beside each of its files.
        each = {place: macs[place] * (1 + len(e.files)) for place, e in enumerate(exports)}
        work = Work(each, _validation)
        for place, mine in self.survey.ask(plan, requests(), VerifyReply, read, work):
            known = found.setdefault(place, {})
            for kind, part in mine.items():
                known[kind] = known[kind] + part if kind in known else part
        return found

    def _runnable(self, device: str, export: Exported) -> list[tuple[FileEntry, bytes]]:
        runtimes = set(self._fleet.members[device].profile.runtimes)
        return [one for one in export.files if runtimes & set(runtimes_of(one[0].kind))]

    def _verify_item(self, export: Exported, device: str) -> tuple[VerifyItem, bytes]:
        files = self._runnable(device, export)
        weights = gather(self._weights, regions(self._space, export.arch))
        values = np.concatenate([weights, flat_statistics(export.statistics)])
        item = VerifyItem(
            arch=dict(export.arch),
            values=len(values),
            files=tuple(entry for entry, _ in files),
            temperature=export.adjustment.temperature,
            shift=export.adjustment.shift,
            timed=device in export.timed_by,
        )
        return item, values.tobytes() + b"".join(content for _, content in files)

    def _packed(
        self, name: str, targets: Sequence[Target], statistics: Sequence[Statistics] | None = None
    ) -> tuple[tuple[SubnetGroup, ...], Flat]:
        """The targets, those of one set of weights that follow each other in groups of one hull."""
        most = own_budget(self._fleet.members[name]).params
        groups, parts, offset = list[SubnetGroup](), list[Flat](), 0
        for _, alike in groupby(targets, key=lambda target: id(target.weights)):
            mine = list(alike)
            weights = mine[0].weights or self._weights
            split = grouped(self._space, [target.arch for target in mine], most)
            found, values = pack(self._space, weights, split)
            widths = [dict(target.widths) for target in mine]
            for group in found:
                of_group, widths = widths[: len(group.archs)], widths[len(group.archs) :]
                more = {"widths": tuple(of_group)} if any(of_group) else {}
                groups.append(group.model_copy(update={"offset": group.offset + offset, **more}))
            parts.append(values)
            offset += values.size
        parts += [flat_statistics(mine) for mine in statistics or ()]
        return tuple(groups), np.concatenate(parts)

    def _macs(self, archs: Sequence[Arch]) -> dict[int, int]:
        return {place: cost(self._space, arch).macs for place, arch in enumerate(archs)}

    def _request(self, name: str, body: Body, values: Values) -> Request:
        return Request(self._fleet.members[name].node, body, values)


def _budgets(targets: Sequence[Target | FloatFile | Exported]) -> dict[int, Budget]:
    return {place: target.budget for place, target in enumerate(targets)}


def _blob(parts: Sequence[bytes]) -> Values:
    return np.frombuffer(b"".join(parts), dtype=np.uint8)
