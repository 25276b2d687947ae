"""A subnet on its way to a published model: what was chosen, what is known of it, what was made."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..protos.inference import Ranges
from ..protos.manifest import INT4S, BareFile, FileEntry, FileKind, Finished, Manifest
from ..protos.subnets import Statistics
from ..specialize.adjust import Adjustment
from ..specialize.export import Completed, Subnet, complete, complete_few, float_calls
from ..specialize.fork_server import Call
from ..specialize.quantizing import ROUNDED, FewBits
from ..supernet.cost import Budget
from ..supernet.space import Arch
from .figures import FileMeasured, Measured


@dataclass(frozen=True, slots=True)
class Chosen:
    """A subnet that is to be a model, measured on the devices.

    `name` is the device class that it is published for; devices that can hold any subnet of `budget`
    are asked about it. Files of `formats` are made, of 4 bits too where `int4` says so, and those of
    `kinds` published (None: all).
    `finished`: that it was trained further after the search. `timed_by`: the devices that are to
    time its files. `kind` is the file that the budget's bounds on latency and size are about.
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
    int4: bool = False
    kind: FileKind = "tflite_int8"

    @property
    def only_int4(self) -> bool:
        """Whether no other file of it is wanted."""
        return self.kinds is not None and set(self.kinds) <= set(INT4S.values())

    @property
    def needs_int4(self) -> bool:
        """Whether it is no model without its file of 4 bits."""
        return self.kind in INT4S.values()


@dataclass(slots=True)
class Rounded:
    """The subnet that files of 4 bits are made of, its norm statistics those of rounded kernels.

    `kernels` are the bits of each by name; `widths`, where they are not all as narrow as can be: see
    `FewBits`. `why_nearest` says why they are not rounded by second moments (`compensation.py`), if not.
    """

    subnet: Subnet
    kernels: Mapping[str, int]
    widths: tuple[tuple[int, int], ...] = ()
    why_nearest: str = ""
    observable: Mapping[str, bytes] = field(default_factory=dict)
    ranges: dict[str, Ranges] = field(default_factory=dict)


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
    rounded: Rounded | None = None
    input_range: tuple[float, float] = (0.0, 0.0)
    entries: list[FileEntry] = field(default_factory=list)
    trainable: BareFile | None = None
    figures: dict[FileKind, FileMeasured] = field(default_factory=dict)

    @property
    def parts(self) -> "tuple[Part, ...]":
        """What float files are made of: the subnet, and the one with rounded kernels."""
        own: tuple[Part, ...] = () if self.chosen.only_int4 else (self,)
        return own if self.rounded is None else (*own, self.rounded)

    def float_calls(self, part: "Part") -> list[Call]:
        """What makes a part's float files, a call a format."""
        folder = self.folder if part is self else self.folder / ROUNDED
        return float_calls(part.subnet, self.chosen.formats, folder)

    def quantize_call(self, part: "Part", *, trainable: bool) -> Call:
        """What makes a part's quantized files of what was observed."""
        if isinstance(part, Rounded):
            return Call(complete_few, (self.folder, FewBits(part.ranges, part.widths)))
        finish = partial(complete, trainable=trainable)
        return Call(finish, (self.subnet, self.folder, self.ranges))

    def keep(self, completed: Completed) -> None:
        """Take the files that are to be published; the others are removed."""
        kinds = self.chosen.kinds
        for entry in completed.entries:
            if kinds is None or entry.kind in kinds:
                self.entries.append(entry)
            else:
                (self.folder / entry.name).unlink()
        self.input_range = completed.input_range
        self.trainable = completed.trainable or self.trainable

    def remove(self, kind: FileKind) -> None:
        """A file is not to be published after all, verified or not."""
        (entry,) = (entry for entry in self.entries if entry.kind == kind)
        (self.folder / entry.name).unlink()
        self.entries.remove(entry)
        self.figures.pop(kind, None)


Part = Work | Rounded
