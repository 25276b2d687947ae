"""Asynchronous training: versions of the weights in place of rounds (FedBuff, Nguyen et al. 2022).

`concurrency` devices are at work at any time. When one answers, another one is sent the newest
weights. When `buffer` good updates are in, they are merged, the server's optimizer steps, and the next
version is there: it counts as a round. An update is the change of what its device was sent, s versions
ago, and its weight in the merge is that of synchronous rounds times (1 + s)^-p, p = 1/2.

Deviations. FedBuff adds up Δ_k / (1 + s_k)^p and divides by the buffer's size, so that stale updates
also move less; here the factor is part of the weights of the overlap-aware merge, so that a value
which only stale updates trained moves in full. A device counts once in a version, and is asked once
in it: after its answer it rests until the version is there. (Its draws depend on seed, round and name:
asked twice for one version, it would do the same work again.) So with all devices at work and a buffer
of their number the run is the synchronous one, bit for bit. Where nobody is at work and nobody is left
to ask, the version ends with fewer updates, or is abandoned as a round is.

What was sent waits on disk until the answer: the disk holds at most `concurrency` + `buffer` arrays.
Requests that are out are not part of a checkpoint; a run that is resumed asks anew.
"""

import time
from dataclasses import dataclass, field

from ..protos.messages import DeviceProfile, TrainReply
from ..supernet.randomness import stream
from .exchange import Answer, Exchange, Flight
from .fleet import Fleet, Member, Roll
from .intake import Asked, Intake
from .samplers.assigned import Assigned
from .shelf import Buffer
from .training import RoundReport, Training

ROLL_CALL_S = 10.0
"""How often nodes that are not known yet are asked who they are. (A device that came back is refused
while its former node counts as online, up to a minute, and has eight tries: see `fleet`.)"""


@dataclass(slots=True)
class _Version:
    """The version that is being made: what is in, who is asked next, who is not asked for it.

    It is `spent` when no other device is left to ask.
    """

    fleet: Fleet
    intake: Intake
    buffer: Buffer
    closed: set[int]
    spent: bool = False
    queue: list[tuple[Member, Assigned]] = field(default_factory=list)
    ended: list[Asked] = field(default_factory=list)


class Versions:
    """Makes one version after the other; close it to wait no longer for requests that are out."""

    def __init__(self, training: Training, roll: Roll, exchange: Exchange) -> None:
        self._training, self._roll, self._limits = training, roll, training.config.round
        if self._limits.buffer is None:
            raise ValueError("round.buffer: asynchronous training needs one")
        self._buffer_size, self._clock = self._limits.buffer, exchange.clock
        self._flight = Flight(exchange, TrainReply, self._limits.deadline_s)
        self._profiles = Flight(exchange, DeviceProfile, roll.deadline_s)
        self._shelf = training.outbox.shelf
        self._out: dict[int, Asked] = {}
        self._next_call_s = self._clock.monotonic()

    def next(self) -> RoundReport | None:
        """Make the next version; None when it is abandoned for too few good updates."""
        begin, version = time.perf_counter(), self._open()
        while len(version.buffer) < self._buffer_size:
            self._fill(version)
            if not len(self._flight):
                break
            self._call_roll()
            if not self._collect(version):
                self._flight.wait()
        asked = sorted(version.ended, key=lambda one: one.member.name)
        goods = version.buffer.emptied()
        work = self._training.open(asked, version.intake, version.fleet)
        return self._training.close(work, goods, version.intake, begin)

    def close(self) -> None:
        """Give up what is out; its devices owe their replies."""
        self._flight.close()
        self._profiles.close()

    def _open(self) -> _Version:
        self._call_roll()
        wait_s = 0.0 if len(self._flight) else self._limits.deadline_s
        away = self._roll.away(self._limits.min_replies, wait_s)
        fleet = self._roll.fleet()
        # By name: a device that came back as another node waits until its old request has ended.
        names = {asked.member.name for asked in self._out.values()}
        working = {member.node for member in fleet.members.values() if member.name in names}
        buffer, intake = Buffer(self._shelf), self._training.intake()
        version = _Version(fleet, intake, buffer, {*away, *working})
        # Each good update but the last makes room for one more: who will be asked for this version is
        # assigned together, so that methods that divide roles have somebody to divide them among.
        self._plan(version, self._room(version) + self._buffer_size - 1)
        return version

    def _room(self, version: _Version) -> int:
        """How many more devices may be at work."""
        most = self._limits.concurrency or len(version.fleet.members)
        return max(most - len(self._flight), 0)

    def _plan(self, version: _Version, most: int) -> None:
        """Assign subnets to so many of the devices that are not closed; they are asked in turn."""
        training, number = self._training, version.intake.books.number
        found = training.assignments(version.fleet, frozenset(version.closed), most)
        version.closed |= found.keys()
        version.spent = len(found) < most
        version.queue += sorted(
            found.values(),
            key=lambda one: stream(training.config.seed, number, "turn", one[0].name).random(),
        )

    def _fill(self, version: _Version) -> None:
        """Ask as many devices as there is room for and are left."""
        while room := self._room(version):
            if not version.queue and not version.spent:
                self._plan(version, room)
            if not version.queue:
                return
            self._ask(*version.queue.pop(0))

    def _ask(self, member: Member, assigned: Assigned) -> None:
        training = self._training
        asked = self._out[member.node] = training.asked(member, assigned)
        self._flight.send(training.outbox.send(asked, training.weights), str(asked.number))

    def _collect(self, version: _Version) -> bool:
        """Take what has come until the version is complete; whether anything has."""
        came = False
        for answer in self._flight.arrived():
            came = True
            self._take(version, answer)
            if len(version.buffer) == self._buffer_size:
                break
            self._fill(version)
        return came

    def _take(self, version: _Version, answer: Answer[TrainReply]) -> None:
        asked = self._out.pop(answer.node)
        version.ended.append(asked)
        version.intake.asked(asked)
        good = self._training.admit(version.intake, asked, answer)
        if good is not None:
            version.buffer.add(good)

    def _call_roll(self) -> None:
        """Ask new nodes for their profile, and let in those that told it; none is waited for."""
        if self._clock.monotonic() >= self._next_call_s:
            self._next_call_s = self._clock.monotonic() + ROLL_CALL_S
            for request in self._roll.fresh(self._profiles.nodes):
                self._profiles.send(request)
        for answer in self._profiles.arrived():
            self._roll.take(answer)
