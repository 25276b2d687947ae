"""`fedofa bench groups`: from the last arrival to the merged change, eagerly in groups and after all.

Updates of ten random subnets of a 5 M-parameter supernet are in memory and arrive one after the
other, without a pause. `barrier` checks and folds them, in this process, when all are there. Wall
seconds: what else runs on the machine is in them.
"""

import random
import time
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from fedofa.protos.manifest import Normalization
from fedofa.protos.messages import DeviceProfile, TrainReply, tensor_shapes
from fedofa.server.aggregation.overlap_mean import OverlapMean, Partial
from fedofa.server.aggregation.update import Update
from fedofa.server.config import RunConfig, parse_config
from fedofa.server.fleet import Member
from fedofa.server.groups.letters import Arrived
from fedofa.server.groups.pool import Groups
from fedofa.server.intake import Asked, vetted
from fedofa.server.limits import Limits
from fedofa.server.samplers.assigned import Assigned
from fedofa.server.sharing import Kept
from fedofa.supernet.cost import Budget
from fedofa.supernet.space import plain
from fedofa.supernet.weights import Flat, gather, initial, shapes_of

from .merging import SPACE, whole

UPDATES, SUBNETS = 100, 10
COUNTS = (1, 2)


def config(groups: int) -> RunConfig:
    """A run of this many groups."""
    limits = {"groups": groups}
    space = plain(SPACE.to_dict())
    return parse_config({"space": space, "round": limits, "classes": {"phone": {}}})


class Fed:
    """Groups, and updates to feed them with."""

    def __init__(self, groups: int) -> None:
        self.config, self.weights = config(groups), initial(SPACE, 0)
        self.groups = Groups(self.config, SPACE, groups, keeps_digests=False)
        self.asked = [_asked(place) for place in range(SUBNETS)]
        self.sent = [gather(self.weights, one.assigned.regions(SPACE)) for one in self.asked]
        self.values = [sent + np.float32(1e-3) for sent in self.sent]
        self.groups.begin(self.weights)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.groups.close()

    def arrivals(self, count: int) -> Iterator[tuple[Arrived, Flat]]:
        """So many updates."""
        for node in range(count):
            asked, values = self.asked[node % SUBNETS], self.values[node % SUBNETS]
            yield Arrived(node, 0, "float32", values.size, asked, _reply(asked), 1.0), values

    def feed(self, count: int) -> None:
        """Hand over so many updates; returns when the last one is handed over."""
        for told, values in self.arrivals(count):
            self.groups.submit(told, values)

    def end(self) -> list[Partial]:
        """The groups' sums; a new round begins."""
        while self.groups.waiting:
            self.groups.collect(block=True)
        partials, lost = self.groups.finish()
        if lost:
            raise AssertionError(f"updates were lost: {lost}")
        merged = OverlapMean(shapes_of(whole()))
        for partial in partials:
            merged.add_partial(partial)
        merged.result()
        self.groups.begin(self.weights)
        return partials

    def barrier(self, count: int) -> None:
        """Check and fold so many updates here, one after the other."""
        mean = OverlapMean(shapes_of(whole()))
        for told, values in self.arrivals(count):
            asked = told.asked
            sent = gather(self.weights, asked.assigned.regions(SPACE))
            delta = vetted(self.config, SPACE, asked, sent, told.reply, values)
            mean.add(Update("d", delta, asked.assigned.regions(SPACE), told.weight))
        mean.result()


def bench_groups() -> list[dict[str, Any]]:
    """Wall seconds of merging 100 updates, in all and after the last one has arrived."""
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        with Fed(count) as fed:
            fed.feed(2 * count)  # the processes have started when these are folded
            fed.end()
            fed.barrier(2)
            begin = time.perf_counter()
            fed.feed(UPDATES)
            arrived = time.perf_counter()
            fed.end()
            ended = time.perf_counter()
            fed.barrier(UPDATES)
            barrier_s = time.perf_counter() - ended
        row = {
            "groups": count,
            "K": UPDATES,
            "seconds": ended - begin,
            "after_the_last": ended - arrived,
            "barrier": barrier_s,
            "ratio": (ended - arrived) / barrier_s,
        }
        rows.append(row)
    return rows


def _asked(place: int) -> Asked:
    arch = SPACE.sample(random.Random(place))
    profile = DeviceProfile(
        device=f"d{place}",
        device_class="phone",
        cores=1,
        memory_bytes=1,
        train_macs_per_s=1.0,
        infer_macs_per_s=1.0,
        budget={},
        runtimes=(),
        examples=1,
        validation_examples=1,
        input_shape=(3, 32, 32),
        classes=("a", "b"),
        normalization=Normalization(mean=(0.0,), std=(1.0,)),
    )
    member = Member(place, profile, Limits(Budget(), 1), Budget())
    return Asked(member, Assigned(arch), 1, 0.1, Kept(), None)


def _reply(asked: Asked) -> TrainReply:
    arch = asked.assigned.arch
    return TrainReply(
        run="run",
        round=1,
        device=asked.member.name,
        arch=dict(arch),
        examples=1,
        steps=1,
        loss=1.0,
        train_macs=1,
        seconds=1.0,
        tensors=tensor_shapes(shapes_of(asked.assigned.regions(SPACE))),
    )
