"""A subnet on its way to a published model: what was chosen, what is known of it, what was made."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..protos.inference import Ranges
from ..protos.manifest import BareFile, FileEntry, FileKind, Finished, Manifest
from ..protos.subnets import Statistics
from ..specialize.adjust import Adjustment
from ..specialize.export import Subnet
from ..supernet.cost import Budget
from ..supernet.space import Arch
from .figures import FileMeasured, Measured


@dataclass(frozen=True, slots=True)
class Chosen:
    """A subnet that is to be a model, measured on the devices.

    `name` is the device class that it is published for; devices that can hold any subnet of `budget`
    are asked about it. Files of `formats` are made, and those of `kinds` published (None: all).
    `finished`: that it was trained further after the search. `timed_by`: the devices that are to
    time its files.
    """

    name: str
    arch: Arch
    budget: Budget
    statistics: Statistics
    measured: Measured
    formats: tuple[str, ...]
    kinds: tuple[FileKind, ...] | None = None
    finished: Finished | None = None
    timed_by: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A published model: its manifest, where that lies, and what the devices measured."""

    name: str
    manifest: Manifest
    path: Path
    figures: Mapping[FileKind, FileMeasured]
    adjustment: Adjustment


@dataclass(slots=True)
class Work:
    """One subnet on its way: what is known of it so far."""

    chosen: Chosen
    subnet: Subnet
    folder: Path
    input_shape: tuple[int, ...] = ()
    observable: Mapping[str, bytes] = field(default_factory=dict)
    ranges: dict[str, Ranges] = field(default_factory=dict)
    input_range: tuple[float, float] = (0.0, 0.0)
    entries: list[FileEntry] = field(default_factory=list)
    trainable: BareFile | None = None
    figures: dict[FileKind, FileMeasured] = field(default_factory=dict)
