"""A small run in one process: configuration, fleet of digits clients, and clients that misbehave."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fedofa.client.app import app as honest_app
from fedofa.client.device import of_node
from fedofa.protos.device import FLEET_KEY, PARTITION_KEY, DataSource, Device
from fedofa.protos.flower import BODY, DTYPE, VALUES, Values, from_record, to_record
from fedofa.protos.messages import TrainReply
from fedofa.server.checkpoint import CheckpointStore
from fedofa.server.config import RunConfig, parse_config
from fedofa.server.events import EventLog, read_events
from fedofa.server.exchange import Clock, Exchange
from fedofa.server.fleet import Roll
from fedofa.server.ledger import Ledger
from fedofa.server.local_grid import FIRST_NODE, LocalGrid
from fedofa.server.strategy import SupernetStrategy
from fedofa.server.training import Training
from flwr.app import ConfigRecord, Context, Message, RecordDict

TINY_SPACE: dict[str, Any] = {
    "preset": "digits",
    "stem_widths": [4, 8],
    "stages": [
        {"widths": [8], "depths": [1], "expands": [2, 3], "kernels": [3], "stride": 2},
        {"widths": [8, 16], "depths": [1, 2], "expands": [2, 3], "kernels": [3, 5], "stride": 2},
    ],
    "head_widths": [16, 32],
}
SPEEDS = "train_macs_per_s = 1e12\ninfer_macs_per_s = 1e12\nmemory_bytes = 1000000000\n"
DIGITS_DATA = "fedofa.client.datasets:digits"


def small_config(**changes: Any) -> RunConfig:
    """Two classes, a tiny space, a few steps a round; `changes` replace fields section by section."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "space": TINY_SPACE,
        "round": {"rounds": 2, "deadline_s": 20.0, "join_timeout_s": 0.3, "max_update_ratio": 20.0},
        "recipe": {"steps": 4, "batch_size": 16, "lr": 0.1, "random_subnets": 1},
        "classes": {"big": {}, "small": {"params": 3000}},
    }
    for section, values in changes.items():
        mergeable = isinstance(values, dict) and section in ("round", "recipe")
        fields[section] = {**fields[section], **values} if mergeable else values
    return parse_config(fields)


def small_fleet(folder: Path, classes: Sequence[str] = ("big", "small", "small")) -> list[Device]:
    """Devices `dev-0`, `dev-1`, … with digits data and declared speeds: nothing to measure."""
    profile = folder / "profile.toml"
    folder.mkdir(parents=True, exist_ok=True)
    profile.write_text(SPEEDS)
    return [
        Device(
            name=f"dev-{place}",
            device_class=name,
            source=DataSource(DIGITS_DATA, client=place, clients=len(classes)),
            profile=str(profile),
        )
        for place, name in enumerate(classes)
    ]


Trick = Callable[[TrainReply, Values, Message], Message]


@dataclass
class Clients:
    """The ClientApp with tricks: device name → what it makes of its honest update.

    Remembers the honest updates that it let pass: (round, device) → (body, values).
    """

    tricks: Mapping[str, Trick] = field(default_factory=dict)
    passed: dict[tuple[int, str], tuple[TrainReply, Values]] = field(default_factory=dict)

    def __call__(self, message: Message, context: Context) -> Message:
        reply = honest_app(message=message, context=context)
        if message.metadata.message_type != "train":
            return reply
        name = of_node(context.node_config, context.run_config).name
        body, values = from_record(TrainReply, reply.content)
        assert values is not None
        if name in self.tricks:
            return self.tricks[name](body, values, message)
        self.passed[body.round, name] = body, values
        return reply


def raising(_body: TrainReply, _values: Values, _message: Message) -> Message:
    """A client whose app fails."""
    raise RuntimeError("the data folder is gone")


def sending(change: Callable[[Any], Any] | None = None, **fields: object) -> Trick:
    """A client that sends other values, or other fields in its reply's body."""

    def trick(body: TrainReply, values: Values, message: Message) -> Message:
        sent = values if change is None else change(values.copy())
        return Message(to_record(body.model_copy(update=fields), sent), reply_to=message)

    return trick


def sending_record(make: Callable[[RecordDict], RecordDict]) -> Trick:
    """A client that sends another record."""

    def trick(body: TrainReply, values: Values, message: Message) -> Message:
        return Message(make(to_record(body, values)), reply_to=message)

    return trick


def with_nan(values: Any) -> Any:
    """One value that is not a number."""
    values[len(values) // 2] = np.nan
    return values


def with_bytes(data: bytes, dtype: str = "float32") -> Trick:
    """A client whose array is these bytes."""

    def make(record: RecordDict) -> RecordDict:
        record[BODY] = ConfigRecord({**record.config_records[BODY], DTYPE: dtype, VALUES: data})
        return record

    return sending_record(make)


class SlowGrid(LocalGrid):
    """Replies of `slow` nodes to training messages are not there until the nodes are released."""

    def __init__(self, *arguments: Any, slow: set[int]) -> None:
        super().__init__(*arguments)
        self.slow = slow

    def pull_messages(self, message_ids: Any) -> Any:
        ready = [
            found
            for found in message_ids
            if found in self._waiting and not self._is_late(self._waiting[found])
        ]
        return super().pull_messages(ready)

    def _is_late(self, message: Message) -> bool:
        return (
            message.metadata.dst_node_id in self.slow and message.metadata.message_type == "train"
        )


class UnevenGrid(LocalGrid):
    """Each node's replies are there only after so many polls: they arrive in another order."""

    def __init__(self, *arguments: Any, polls: Mapping[int, int]) -> None:
        super().__init__(*arguments)
        self._left: dict[str, int] = {}
        self._polls = polls

    def pull_messages(self, message_ids: Any) -> Any:
        ready = []
        for found in message_ids:
            if found not in self._waiting:
                continue
            node = self._waiting[found].metadata.dst_node_id
            left = self._left.setdefault(found, self._polls.get(node, 0))
            self._left[found] = left - 1
            if left <= 0:
                ready.append(found)
        return super().pull_messages(ready)


class VirtualClock:
    """Time that goes by only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


class PacedGrid(LocalGrid):
    """Training takes each device so many seconds of a clock, the first node first; else none."""

    def __init__(self, *arguments: Any, paces: Sequence[float], clock: VirtualClock) -> None:
        super().__init__(*arguments)
        self.paces = {FIRST_NODE + place: seconds for place, seconds in enumerate(paces)}
        self.clock = clock
        self._since: dict[str, float] = {}

    def push_messages(self, messages: Any) -> Any:
        ids = list(super().push_messages(messages))
        self._since |= dict.fromkeys(ids, self.clock.now)
        return ids

    def pull_messages(self, message_ids: Any) -> Any:
        return super().pull_messages([found for found in message_ids if self._is_done(found)])

    def _is_done(self, message_id: str) -> bool:
        message = self._waiting.get(message_id)
        if message is None or message.metadata.message_type != "train":
            return True
        pace_s = self.paces.get(message.metadata.dst_node_id, 0.0)
        return self.clock.now >= self._since[message_id] + pace_s


@dataclass
class Run:
    """One run in a folder: its training state, its strategy, its log; with a ledger or without."""

    folder: Path
    config: RunConfig
    grid: LocalGrid
    clock: Clock = time
    keeps_ledger: bool = False

    def __post_init__(self) -> None:
        space = self.config.build_space()
        self.log = EventLog(self.folder / "events.jsonl")
        self.store = CheckpointStore(
            self.folder / "checkpoints", self.config.round.keep_checkpoints
        )
        ledger = Ledger.open(self.folder, self.config.name) if self.keeps_ledger else None
        self.training = Training(self.config, space, self.store, self.log, ledger)
        self.exchange = Exchange(self.grid, poll_s=0.01, clock=self.clock)
        self.roll = Roll(self.exchange, space, self.config, self.log)
        self.strategy = SupernetStrategy(self.training, self.roll, self.exchange, self.log)

    def start(self) -> "Run":
        """Train to the end."""
        self.strategy.start(self.grid)
        return self

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the log says of one kind."""
        return [e for e, _ in read_events(self.folder / "events.jsonl") if e["event"] == kind]


def grid_of(
    devices: Sequence[Device],
    app: Any = honest_app,
    order: Sequence[int] | None = None,
    **options: Any,
) -> LocalGrid:
    """A grid of simulated nodes, one per device, in this order."""
    run_config = {FLEET_KEY: json.dumps([device.to_json() for device in devices])}
    places = range(len(devices)) if order is None else order
    nodes = [{PARTITION_KEY: place} for place in places]
    kinds: dict[str, type[Any]] = {"slow": SlowGrid, "polls": UnevenGrid, "paces": PacedGrid}
    kind = kinds[next(iter(options))] if options else LocalGrid
    grid: LocalGrid = kind(app, nodes, run_config, **options)
    return grid


def run_of(
    folder: Path,
    config: RunConfig | None = None,
    app: Any = honest_app,
    order: Sequence[int] | None = None,
) -> Run:
    """A run with the small fleet."""
    devices = small_fleet(folder)
    return Run(folder, config or small_config(), grid_of(devices, app, order))
