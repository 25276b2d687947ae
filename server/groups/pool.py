"""A run's groups: processes that fold updates as they arrive, and what the run knows of them.

After LIFL: an update is written once into shared memory, in a ring of few slots; a group is told its
place, checks it and adds it to a sum of its own, also in shared memory. At the end of a round the
sums, which are partial ones, are added up. No LIFL here: one host, a fixed number of groups.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch

from ...protos.codec.wire import largest_bytes
from ...protos.flower import Values
from ...specialize.fork_server import ONE_THREAD
from ...supernet.axes import Weights, layout
from ...supernet.errors import RunError
from ...supernet.space import Space
from ...supernet.weights import size_of, split
from ..aggregation.overlap_mean import Partial
from ..config import RunConfig
from .letters import Arrived, Begin, End, SetUp, Summed, Verdict
from .memory import Room, Shared

SLOTS_PER_GROUP = 2
"""One that is being folded, and one that waits."""
PATIENCE_S = 300.0
"""A group that says nothing for so long, with work to do, is ended."""
REVIVALS = 3
"""A round starts so many new processes for groups that ended, and no more."""


@dataclass(frozen=True, slots=True)
class Lost:
    """An update that was in a group whose process ended."""

    node: int
    reason: str


@dataclass(slots=True)
class _Group:
    """One process; `told` are the nodes whose updates it got, `waiting` those without a verdict."""

    process: "subprocess.Popen[bytes]"
    pipe: Connection
    told: list[int] = field(default_factory=list)
    waiting: dict[int, int] = field(default_factory=dict)

    def end(self) -> str:
        """End the process now, and say how it ended."""
        self.pipe.close()
        self.process.kill()
        code = self.process.wait()
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


class Groups:
    """`count` groups; use as a context manager, which ends them all. Started by the first round."""

    def __init__(self, config: RunConfig, space: Space, count: int, keeps_digests: bool) -> None:
        self._config, self._keeps_digests = config, keeps_digests
        self._shapes = {name: tensor.shape for name, tensor in layout(space).items()}
        values, codec = size_of(self._shapes), config.codec
        coded = 0 if codec is None else largest_bytes(self._shapes, codec.codec())
        self._room = Room(
            values=values,
            groups=count,
            sums=config.aggregation.accumulate,
            slots=SLOTS_PER_GROUP * count,
            slot_bytes=max(4 * values, coded),
        )
        self._shared: Shared | None = None
        self._groups: dict[int, _Group] = {}
        self._free: list[int] = []
        self._revivals = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def processes(self) -> list[int]:
        """Process ids."""
        return [group.process.pid for group in self._groups.values()]

    @property
    def waiting(self) -> int:
        """How many updates have no verdict yet."""
        return sum(len(group.waiting) for group in self._groups.values())

    def begin(self, weights: Weights) -> None:
        """Start a round, from these weights."""
        if self.waiting:  # the last round was left in the middle
            self.close()
        if self._shared is None:
            self._shared = Shared.new(self._room)
        for name, place in split(self._shared.weights(), self._shapes).items():
            place.copy_(weights[name])
        self._revivals = REVIVALS + self._room.groups
        self._free = list(range(self._room.slots))
        for group in self._groups.values():
            group.told.clear()
        self._begin_each([*self._groups])
        self._revive()

    def takes(self, values: Values) -> bool:
        """Whether an array fits into a slot."""
        return values.nbytes <= self._room.slot_bytes

    def submit(self, told: Arrived, values: Values) -> list[Verdict | Lost]:
        """Hand an update to the group with the least to do; `told.slot` is set here.

        Waits for a free slot. Returns what has become known meanwhile.
        """
        found = self.collect(block=False)
        self._revive()
        while self._groups and not self._free:
            found += self.collect(block=True)
            self._revive()
        if not self._groups:
            return [*found, Lost(told.node, "no group's process is left to check it")]
        group = min(self._groups, key=lambda g: len(self._groups[g].waiting))
        slot = self._free.pop()
        self._memory.slot(slot, told.dtype, told.size)[:] = values
        found += self._tell(group, told, slot)
        return found

    def collect(self, block: bool) -> list[Verdict | Lost]:
        """Verdicts that are there; with `block`, at least one if any is awaited."""
        pipes: dict[Any, int] = {g.pipe: at for at, g in self._groups.items()}
        if block and not self.waiting:
            return []
        ready = wait(list(pipes), PATIENCE_S if block else 0)
        if block and not ready:
            late = [at for at, group in self._groups.items() if group.waiting]
            return self._bury(late, f"; it had said nothing for {PATIENCE_S:g} s")
        found: list[Verdict | Lost] = []
        for pipe in ready:
            found += self._heard(pipes[pipe])
        return found

    def finish(self) -> tuple[list[Partial], list[Lost]]:
        """The groups' sums, and the updates of groups that ended before they could give theirs.

        Every update must have its verdict. The sums are in shared memory until the next round.
        """
        partials, lost = list[Partial](), list[Lost]()
        for at, group in [*self._groups.items()]:
            try:
                group.pipe.send(End())
                if not group.pipe.poll(PATIENCE_S):
                    raise EOFError
                summed: Summed = group.pipe.recv()
            except (EOFError, OSError):
                lost += self._bury([at])
                continue
            if summed.updates:
                total = torch.from_numpy(self._memory.sum_of(at))
                partials.append(Partial(total, summed.counted, summed.updates, summed.weight))
        return partials, lost

    def close(self) -> None:
        """End all processes and give the memory back."""
        while self._groups:
            self._groups.popitem()[1].end()
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    @property
    def _memory(self) -> Shared:
        if self._shared is None:
            raise RuntimeError("no round has begun")
        return self._shared

    def _revive(self) -> None:
        """Start the groups that have no process, each from an empty sum."""
        missing = [at for at in range(self._room.groups) if at not in self._groups]
        for at in missing:
            if not self._revivals:
                return
            self._revivals -= 1
            self._groups[at] = self._started(at)
            self._begin_each([at])

    def _started(self, at: int) -> _Group:
        here, there = Pipe()
        memory = self._memory.descriptor
        try:
            with there:
                process = subprocess.Popen(
                    # -P: the current folder's files must not stand in for modules.
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        f"{__package__}.worker",
                        str(there.fileno()),
                        str(memory),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[there.fileno(), memory],
                    env={**os.environ, **ONE_THREAD},
                )
        except OSError as error:
            here.close()
            raise RunError(f"round.groups: a process cannot start: {error.strerror}") from None
        group = _Group(process, here)
        self._groups[at] = group
        self._send(at, SetUp(self._config, self._room, at, self._keeps_digests))
        return group

    def _begin_each(self, which: Iterable[int]) -> None:
        for at in which:
            self._send(at, Begin())

    def _send(self, at: int, letter: object) -> bool:
        try:
            self._groups[at].pipe.send(letter)
        except OSError:
            return False  # it has ended: `collect` will say so
        return True

    def _tell(self, at: int, told: Arrived, slot: int) -> list[Verdict | Lost]:
        group = self._groups[at]
        group.told.append(told.node)
        group.waiting[told.node] = slot
        letter = Arrived(
            told.node, slot, told.dtype, told.size, told.asked, told.reply, told.weight
        )
        return [] if self._send(at, letter) else self._bury([at])

    def _heard(self, at: int) -> list[Verdict | Lost]:
        group = self._groups[at]
        try:
            verdict: Verdict = group.pipe.recv()
        except (EOFError, OSError):
            return self._bury([at])
        self._free.append(group.waiting.pop(verdict.node))
        return [verdict]

    def _bury(self, which: Iterable[int], more: str = "") -> list[Any]:
        """Take groups out whose processes ended: what was in their sums is lost."""
        lost = []
        for at in which:
            group = self._groups.pop(at)
            self._free += group.waiting.values()
            reason = f"lost: the process of its group {group.end()}{more}"
            lost += [Lost(node, reason) for node in group.told]
        return lost
