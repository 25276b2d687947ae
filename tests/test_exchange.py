"""What devices answer late or wrongly stays their own trouble."""

from typing import Any

from fedofa.protos.messages import EvaluateReply, ProfileRequest
from fedofa.server.exchange import Exchange, Flight, Request, to_answer
from fedofa.server.local_grid import LocalGrid
from fleets import VirtualClock
from flwr.app import ConfigRecord, Message, RecordDict


class RottenGrid:
    """Takes messages; their replies are not there at first, and later cannot be read."""

    def __init__(self) -> None:
        self.late = False

    def push_messages(self, messages: list[Message]) -> list[str]:
        return [str(message.metadata.dst_node_id) for message in messages]

    def pull_messages(self, _ids: list[str]) -> list[Message]:
        if self.late:
            raise ValueError("not an object of Flower's")
        return []


def test_a_late_reply_that_cannot_be_read_frees_its_device_and_stops_nothing() -> None:
    LocalGrid(lambda **_: None, [])  # type: ignore[arg-type] # gives the process an identity
    grid: Any = RottenGrid()
    exchange = Exchange(grid, poll_s=0.01)
    (answer,) = exchange.ask([Request(7, ProfileRequest(space={}))], EvaluateReply, 0.05)
    assert answer.failure == "no reply within 0.05 s"
    assert exchange.busy() == {7}
    grid.late = True
    assert exchange.busy() == frozenset()


class LeavingGrid(RottenGrid):
    """Knows no node any more."""

    def push_messages(self, messages: list[Message]) -> list[str]:
        return ["" for _ in messages]


def test_whoever_has_left_is_told_also_where_one_stops_to_listen_in_between() -> None:
    LocalGrid(lambda **_: None, [])  # type: ignore[arg-type]
    grid: Any = LeavingGrid()
    flight = Flight(Exchange(grid, poll_s=0.01), EvaluateReply, 5)
    for node in (7, 8):
        flight.send(Request(node, ProfileRequest(space={})))
    assert (len(flight), flight.nodes) == (2, frozenset({7, 8}))
    first = next(flight.arrived())
    assert (first.node, first.failure) == (7, "the device has left")
    assert [answer.node for answer in flight.arrived()] == [8]
    assert len(flight) == 0


def test_each_request_has_a_deadline_of_its_own() -> None:
    LocalGrid(lambda **_: None, [])  # type: ignore[arg-type]
    grid: Any = RottenGrid()
    clock = VirtualClock()
    exchange = Exchange(grid, poll_s=0.01, clock=clock)
    flight = Flight(exchange, EvaluateReply, 5)
    ended: dict[int, int] = {}
    for node in (7, 8):
        flight.send(Request(node, ProfileRequest(space={})))
        clock.sleep(3)
    while len(flight):
        ended |= {answer.node: round(clock.now) for answer in flight.arrived()}
        flight.wait()
    assert ended == {7: 5 + 1, 8: 8}  # the first look is at 6 s
    assert exchange.busy() == {7, 8}


def test_a_strangers_words_reach_a_terminal_without_control_characters_and_cut() -> None:
    LocalGrid(lambda **_: None, [])  # type: ignore[arg-type]
    for record in (
        RecordDict({"body": ConfigRecord({"json": '{"\\u001b[2Jhi": 1}'})}),
        RecordDict({"\x1b[2J" + "x" * 9000: ConfigRecord({"json": "{}"})}),
    ):
        message = Message(record, dst_node_id=1, message_type="evaluate")
        answer = to_answer(1, message, EvaluateReply)
        assert answer.body is None
        assert answer.failure
        assert answer.failure.isprintable()
        assert len(answer.failure) <= 2000
