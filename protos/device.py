"""How a device is described to its own ClientApp: who it is and where its data come from."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from ..supernet.errors import UsageError
from ..supernet.precision import Bits, check_bits

NODE_KEY = "fedofa-device"
"""Node-config key under which a real device describes itself."""
FLEET_KEY = "fedofa-fleet"
"""Run-config key under which a simulation describes its devices, by partition."""
PARTITION_KEY = "partition-id"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data function `module:function`, its folder, and this device's place among the clients."""

    function: str
    root: str | None = None
    client: int = 0
    clients: int = 1
    arguments: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Device:
    """A device's description; it travels to its ClientApp as one JSON text.

    Bits that it gives count more than its profile file's: simulated devices have no file. `memory`
    is a folder for what the device must remember from round to round; None: this process's memory.
    `trust` is a file of what it asks of secure sums.
    """

    name: str
    source: DataSource
    device_class: str | None = None
    profile: str | None = None
    threads: int = 1
    train_bits: Bits | None = None
    infer_bits: Bits | None = None
    memory: str | None = None
    trust: str | None = None

    def __post_init__(self) -> None:
        for field_name in ("train_bits", "infer_bits"):
            bits = getattr(self, field_name)
            if bits is not None:
                check_bits(f"device {self.name}: {field_name}", bits)

    def memory_of(self, kind: str, run: str) -> Path | None:
        """The folder for one kind of what it remembers of a run; UsageError for a name that is none."""
        if not RUN_NAME.fullmatch(run):
            raise UsageError(f"run {run!r}: letters, digits, '.', '_' and '-', at most 64")
        return Path(self.memory) / kind / run if self.memory else None

    def to_json(self) -> str:
        """As one JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json`'s form."""
        fields = json.loads(text)
        fields["source"] = DataSource(**fields["source"])
        return cls(**fields)
