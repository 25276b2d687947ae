"""Asking devices over a Flower grid: push one message at a time, pull one reply at a time."""

import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Generic, TypeVar

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
    """A node's reply, or why there is none (`failure`)."""

    node: int
    body: B | None
    values: Values | None
    failure: str = ""


class Exchange:
    """Messages over a grid with a deadline; a late reply is not waited for.

    Poll often: Flower drops a finished reply if its node goes offline before it was pulled.
    """

    def __init__(self, grid: Grid, poll_s: float = POLL_SECONDS) -> None:
        self.grid = grid
        self._poll_s = poll_s
        self._owing: dict[str, int] = {}

    def nodes(self) -> list[int]:
        """Nodes that are online now."""
        return list(self.grid.get_node_ids())

    def busy(self, least: int = 0, of: Collection[int] = (), wait_s: float = 0.0) -> frozenset[int]:
        """Nodes that still owe a late reply: sent another message they would do the old one first.

        Waits up to `wait_s` seconds until at least `least` of the nodes `of` owe none.
        """
        end = time.monotonic() + wait_s
        while True:
            for message in list(self._owing):
                if self._arrived(message):
                    del self._owing[message]
            owing = frozenset(self._owing.values())
            if not owing or len(set(of) - owing) >= least or time.monotonic() >= end:
                return owing
            time.sleep(self._poll_s)

    def ask(
        self, requests: Iterable[Request], reply: type[B], deadline_s: float, group: str = ""
    ) -> Iterator[Answer[B]]:
        """Send every request; yield answers as they come until all are in or time is over."""
        begin = time.monotonic()
        pending: dict[str, int] = {}
        for request in requests:
            for message in self.grid.push_messages([to_message(request, deadline_s, group)]):
                if message:
                    pending[message] = request.node
                else:  # Flower's way to say that it no longer knows the node
                    yield Answer(request.node, None, None, "the device has left")
        while pending:
            arrived = False
            for message, node in list(pending.items()):
                answer = self._pull(message, node, reply)
                if answer is not None:
                    del pending[message]
                    arrived = True
                    yield answer
            waited_s = time.monotonic() - begin
            if waited_s >= deadline_s:
                break
            if pending and not arrived:
                time.sleep(max(self._poll_s, min(POLL_SHARE * waited_s, POLL_MOST_S)))
        for message, node in pending.items():
            self._owing[message] = node
            yield Answer(node, None, None, f"no reply within {deadline_s:g} s")

    def _arrived(self, message: str) -> bool:
        try:
            return any(True for _ in self.grid.pull_messages([message]))
        except UNREADABLE:  # late and of no use, but it is here
            return True

    def _pull(self, message: str, node: int, reply: type[B]) -> Answer[B] | None:
        """One reply, if it is there: alone, so that one that cannot be read costs no other."""
        try:
            found = list(self.grid.pull_messages([message]))
        except UNREADABLE as error:  # Flower unpacks a stranger's bytes in here
            return Answer(node, None, None, f"unreadable reply: {type(error).__name__}")
        return to_answer(node, found[0], reply) if found else None


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
    light = Answer(answer.node, answer.body, None, answer.failure)
    return light, at, answer.values.size, str(answer.values.dtype)


def _fetched(entry: "_Waiting[B]", spool: IO[bytes]) -> Answer[B]:
    answer, at, size, dtype = entry
    if not dtype:
        return answer
    spool.seek(at)
    kind = np.dtype(dtype)
    # A bytearray: torch wants memory that may be written to.
    values = np.frombuffer(bytearray(spool.read(size * kind.itemsize)), dtype=kind)
    return Answer(answer.node, answer.body, values, answer.failure)


_Waiting = tuple[Answer[B], int, int, str]
