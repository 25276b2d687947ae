"""Asking devices over a Flower grid: push one message at a time, pull one reply at a time."""

import tempfile
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Generic, Protocol, TypeVar

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from ..protos.flower import Values, from_record, to_record
from ..protos.messages import Body, MessageError

B = TypeVar("B", bound=Body)
# Each look costs the SuperLink about 10 ms a message: a reply that takes longer is looked for less
# often, after a tenth of the time that it has taken so far.
POLL_SECONDS, POLL_SHARE, POLL_MOST_S = 0.2, 0.1, 1.0
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Request:
    """A message for one node."""

    node: int
    body: Body
    values: Values | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[B]):
    """A node's reply, or why there is none (`failure`); `silent` where nothing at all has come."""

    node: int
    body: B | None
    values: Values | None
    failure: str = ""
    silent: bool = False


class Clock(Protocol):
    """Time that goes by; the module `time` is one."""

    def monotonic(self) -> float:
        """Seconds."""

    def sleep(self, seconds: float, /) -> None:
        """Let time go by."""


class Exchange:
    """Messages over a grid with a deadline; a late reply is not waited for.

    Poll often: Flower drops a finished reply if its node goes offline before it was pulled.
    """

    def __init__(self, grid: Grid, poll_s: float = POLL_SECONDS, clock: Clock = time) -> None:
        self.grid = grid
        self.poll_s, self.clock = poll_s, clock
        self._owing: dict[str, int] = {}

    def nodes(self) -> list[int]:
        """Nodes that are online now."""
        return list(self.grid.get_node_ids())

    def busy(self, least: int = 0, of: Collection[int] = (), wait_s: float = 0.0) -> frozenset[int]:
        """Nodes that still owe a late reply: sent another message they would do the old one first.

        Waits up to `wait_s` seconds until at least `least` of the nodes `of` owe none.
        """
        end = self.clock.monotonic() + wait_s
        while True:
            for message in list(self._owing):
                if self._arrived(message):
                    del self._owing[message]
            owing = frozenset(self._owing.values())
            if not owing or len(set(of) - owing) >= least or self.clock.monotonic() >= end:
                return owing
            self.clock.sleep(self.poll_s)

    def ask(
        self, requests: Iterable[Request], reply: type[B], deadline_s: float, group: str = ""
    ) -> Generator[Answer[B], None, None]:
        """Send every request; yield answers as they come until all are in or time is over.

        Closed before that, it leaves those that have not answered owing their replies.
        """
        flight = Flight(self, reply, deadline_s)
        try:
            for request in requests:
                flight.send(request, group)
            while len(flight):
                came = False
                for answer in flight.arrived():
                    came = True
                    yield answer
                if len(flight) and not came:
                    flight.wait()
        finally:
            flight.close()

    def pull(self, message: str, node: int, reply: type[B]) -> Answer[B] | None:
        """One reply, if it is there: alone, so that one that cannot be read costs no other."""
        try:
            found = list(self.grid.pull_messages([message]))
        except UNREADABLE as error:  # Flower unpacks a stranger's bytes in here
            return Answer(node, None, None, f"unreadable reply: {type(error).__name__}")
        return to_answer(node, found[0], reply) if found else None

    def owes(self, message: str, node: int) -> None:
        """Wait for this reply no longer, but remember that the node is still at it."""
        self._owing[message] = node

    def _arrived(self, message: str) -> bool:
        try:
            return any(True for _ in self.grid.pull_messages([message]))
        except UNREADABLE:  # late and of no use, but it is here
            return True


@dataclass(slots=True)
class _Out:
    """A request that is out: to whom, since when, and when its reply is looked for next."""

    node: int
    since: float
    look: float


class Flight(Generic[B]):
    """Requests that are out, each with a deadline of its own from when it was sent."""

    def __init__(self, exchange: Exchange, reply: type[B], deadline_s: float) -> None:
        self._exchange, self._reply, self._deadline_s = exchange, reply, deadline_s
        self._out: dict[str, _Out] = {}
        self._left: list[int] = []

    def __len__(self) -> int:
        return len(self._out) + len(self._left)

    @property
    def nodes(self) -> frozenset[int]:
        """Whom an answer is expected from."""
        return frozenset([*self._left, *(out.node for out in self._out.values())])

    def send(self, request: Request, group: str = "") -> None:
        """Send a request."""
        message = to_message(request, self._deadline_s, group)
        for sent in self._exchange.grid.push_messages([message]):
            if sent:
                now = self._exchange.clock.monotonic()
                self._out[sent] = _Out(request.node, now, now)
            else:  # Flower's way to say that it no longer knows the node
                self._left.append(request.node)

    def arrived(self) -> Iterator[Answer[B]]:
        """What has come since the last look, and what will not come: late, or the device has left."""
        while self._left:
            yield Answer(self._left.pop(0), None, None, "the device has left", silent=True)
        for message, out in list(self._out.items()):
            now = self._exchange.clock.monotonic()
            waited_s = now - out.since
            if now < out.look and waited_s < self._deadline_s:
                continue
            answer = self._exchange.pull(message, out.node, self._reply)
            if answer is None and waited_s >= self._deadline_s:
                self._exchange.owes(message, out.node)
                late = f"no reply within {self._deadline_s:g} s"
                answer = Answer(out.node, None, None, late, silent=True)
            if answer is None:
                later_s = max(self._exchange.poll_s, min(POLL_SHARE * waited_s, POLL_MOST_S))
                out.look = now + later_s
            else:
                del self._out[message]
                yield answer

    def wait(self) -> None:
        """Let time go by until there is something to look for."""
        now = self._exchange.clock.monotonic()
        ends = [min(out.look, out.since + self._deadline_s) for out in self._out.values()]
        self._exchange.clock.sleep(max(min(ends, default=now) - now, self._exchange.poll_s))

    def close(self) -> None:
        """Wait for none of them any longer."""
        for message, out in self._out.items():
            self._exchange.owes(message, out.node)
        self._out.clear()
        self._left.clear()


def to_message(request: Request, deadline_s: float, group: str) -> Message:
    """A request as Flower carries it, valid for its deadline and a minute."""
    return Message(
        to_record(request.body, request.values),
        dst_node_id=request.node,
        message_type=request.body.action,
        group_id=group,
        ttl=deadline_s + 60,
    )


def printable(text: str) -> str:
    """A device's words without control characters: they end up on a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:2000])


def to_answer(node: int, message: Message, reply: type[B]) -> Answer[B]:
    """A reply, or why it cannot be used."""
    if message.has_error():
        return Answer(
            node, None, None, f"error {message.error.code}: {printable(message.error.reason or '')}"
        )
    try:
        body, values = from_record(reply, message.content)
    except MessageError as error:
        return Answer(node, None, None, printable(str(error)))
    return Answer(node, body, values)


def in_order(answers: Iterable[Answer[B]], order: Sequence[int]) -> Iterator[Answer[B]]:
    """The same answers in the given order of nodes, with one array in memory at a time.

    Float sums depend on their order; folding in a fixed one makes a run repeatable bit for bit.
    Arrays that come before their turn wait in an unnamed temporary file.
    """
    waiting: dict[int, tuple[Answer[B], int, int, str]] = {}
    turn = list(order)
    with tempfile.TemporaryFile() as spool:
        for answer in answers:
            if turn and answer.node == turn[0]:
                turn.pop(0)
                yield answer
            else:
                waiting[answer.node] = _spooled(answer, spool)
            while turn and turn[0] in waiting:
                yield _fetched(waiting.pop(turn.pop(0)), spool)
        for node in [node for node in turn if node in waiting]:
            yield _fetched(waiting.pop(node), spool)


def _spooled(answer: Answer[B], spool: IO[bytes]) -> "_Waiting[B]":
    if answer.values is None:
        return answer, 0, 0, ""
    at = spool.seek(0, 2)
    spool.write(answer.values.tobytes())
    return replace(answer, values=None), at, answer.values.size, str(answer.values.dtype)


def _fetched(entry: "_Waiting[B]", spool: IO[bytes]) -> Answer[B]:
    answer, at, size, dtype = entry
    if not dtype:
        return answer
    spool.seek(at)
    kind = np.dtype(dtype)
    # A bytearray: torch wants memory that may be written to.
    values = np.frombuffer(bytearray(spool.read(size * kind.itemsize)), dtype=kind)
    return replace(answer, values=values)


_Waiting = tuple[Answer[B], int, int, str]
