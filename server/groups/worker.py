"""A group's process: checks each update that it is told of and adds it to the group's sum.

It ends when the other end of its pipe closes, however that happens.
"""

import contextlib
import signal
import sys
from multiprocessing.connection import Connection

import torch

from ...supernet.axes import layout
from ...supernet.errors import RefusedUpdate
from ...supernet.weights import gather, split
from ..aggregation.overlap_mean import OverlapMean
from ..aggregation.update import Update
from ..intake import root_mean_square, vetted
from ..ledger import update_digest
from .letters import Arrived, Begin, Folded, Order, Refused, SetUp, Summed, Verdict
from .memory import Shared


class Group:
    """One group's sum, in shared memory."""

    def __init__(self, given: SetUp, shared: Shared) -> None:
        self._given, self._shared = given, shared
        self._space = given.config.build_space()
        self._shapes = {name: tensor.shape for name, tensor in layout(self._space).items()}
        self._weights = split(shared.weights(), self._shapes)
        self._mean = self._fresh()

    def begin(self) -> None:
        """Start a round's sum."""
        self._mean = self._fresh()

    def take(self, told: Arrived) -> Verdict:
        """Check an update, and add it to the sum if it is good."""
        asked, space = told.asked, self._space
        values = self._shared.slot(told.slot, told.dtype, told.size)
        sent = gather(self._weights, asked.assigned.regions(space))
        try:
            delta = vetted(self._given.config, space, asked, sent, told.reply, values)
        except RefusedUpdate as refusal:
            detail = str(refusal).removeprefix(f"{refusal.code}: ")
            return Refused(told.node, refusal.code, detail)
        digest = update_digest(values) if self._given.keeps_digests else ""
        if told.weight > 0:
            where = asked.kept.leaving(space, asked.assigned)
            self._mean.add(Update(asked.member.name, delta, where, told.weight))
        return Folded(told.node, root_mean_square(delta), digest)

    def end(self) -> Summed:
        """What the sum is made of."""
        found = self._mean.partial()
        return Summed(found.counted, found.updates, found.weight)

    def _fresh(self) -> OverlapMean:
        total = torch.from_numpy(self._shared.sum_of(self._given.group))
        return OverlapMean(self._shapes, total.dtype, total)


def serve(pipe: Connection, descriptor: int) -> None:
    """Take orders until the pipe closes."""
    given: SetUp = pipe.recv()
    group = Group(given, Shared(given.room, descriptor))
    while True:
        order: Order = pipe.recv()
        if isinstance(order, Begin):
            group.begin()
        elif isinstance(order, Arrived):
            pipe.send(group.take(order))
        else:
            pipe.send(group.end())


def main() -> None:
    """Serve the pipe and the memory whose descriptors are the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent decides what an interrupt ends
    torch.set_num_threads(1)
    # Closed: our parent has ended, or wants us to.
    with Connection(int(sys.argv[1])) as pipe, contextlib.suppress(EOFError, ConnectionError):
        serve(pipe, int(sys.argv[2]))


if __name__ == "__main__":
    main()
