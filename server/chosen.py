"""A subnet on its way to a published model: what was chosen, what is known of it, what was made."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..protos.inference import Ranges
from ..protos.manifest import INT4S, BareFile, FileEntry, FileKind, Finished, Manifest
from ..protos.subnets import Statistics
from ..specialize.adjust import Adjustment
from ..specialize.export import FloatExport, Subnet, float_calls, together
from ..specialize.fork_server import Call
from ..specialize.quantizing import ROUNDED, FewBits
from ..specialize.scheme import WIDE
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
    time its files. `file_bits`: the width of the files that the budget's bound on size is about.
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
    file_bits: int = WIDE

    @property
    def only_int4(self) -> bool:
        """Whether no other file of it is wanted."""
        return self.kinds is not None and set(self.kinds) <= set(INT4S.values())


@dataclass(slots=True)
class Rounded:
    """The subnet that files of 4 bits are made of, its norm statistics those of rounded kernels.

    `widths`, where they are not all as narrow as can be: see `FewBits`.
    """

    subnet: Subnet
    widths: tuple[tuple[int, int], ...] = ()
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
    def parts(self) -> "tuple[Work | Rounded, ...]":
        """What float files are made of: the subnet, and the one with rounded kernels."""
        return (self,) if self.rounded is None else (self, self.rounded)

    @property
    def few_bits(self) -> FewBits | None:
        """What files of 4 bits are made with, where there are to be any."""
        return None if self.rounded is None else FewBits(self.rounded.ranges, self.rounded.widths)

    def float_calls(self) -> list[Call]:
        """The subnet's float files, then those of the one with rounded kernels."""
        formats, found = self.chosen.formats, list[Call]()
        if not self.chosen.only_int4:
            found += float_calls(self.subnet, formats, self.folder)
        if self.rounded is not None:
            found += float_calls(self.rounded.subnet, formats, self.folder / ROUNDED)
        return found

    def exported(self, results: Sequence[FloatExport]) -> None:
        """Take what these calls gave."""
        self.input_shape = results[0].input_shape
        own = 0 if self.chosen.only_int4 else len(self.chosen.formats)
        if own:
            self.observable = together(results[:own]).observable
        if self.rounded is not None:
            self.rounded.observable = together(results[own:]).observable

    def keep(self, entries: Sequence[FileEntry]) -> None:
        """Take the files that are to be published; the others are removed."""
        kinds = self.chosen.kinds
        self.entries = [e for e in entries if kinds is None or e.kind in kinds]
        for entry in entries:
            if entry not in self.entries:
                (self.folder / entry.name).unlink()

    def remove(self, kind: FileKind) -> None:
        """A verified file is not to be published after all."""
        (entry,) = (entry for entry in self.entries if entry.kind == kind)
        (self.folder / entry.name).unlink()
        self.entries.remove(entry)
        del self.figures[kind]
