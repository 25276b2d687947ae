"""Probes: small exported files that a device times, so that the latency of others can be predicted.

A set of them is made once for a search space (`fedofa probes`), from weights drawn at random: latency
does not depend on what a network has learned. A device times it with the runtime that it will use and
sends what it measured with its profile. Importable without torch.
"""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..supernet.errors import ArtifactError
from .manifest import FileEntry, FileKind

SET_NAME = "probes.json"
MOST_PROBES = 1024
LEAST_S, MOST_S = 1e-7, 600.0
"""What one run on one example can take: nothing answers within 100 ns, nobody waits ten minutes."""
MOST_MACS_PER_S_AND_THREAD = 4e12
"""No core does more: 4 GHz times two units of 512 bits with four int8 multiply-accumulates a lane."""

Seconds = Annotated[float, Field(ge=LEAST_S, le=MOST_S)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


R = TypeVar("R", bound=_Record)


class Probe(_Record):
    """One network as files of several kinds; `name` is its folder in the set.

    A whole subnet has an `arch`; a single layer has its number among the set's `layers`.
    """

    name: Name
    macs: int = Field(ge=1)
    input_shape: tuple[int, ...]
    arch: dict[str, int | float] | None = None
    layer: int | None = Field(None, ge=0)
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.arch is None) == (self.layer is None):
            raise ValueError(f"probe {self.name}: either an arch or a layer is expected")
        return self

    def file(self, kind: FileKind) -> FileEntry | None:
        """The file of a kind, if the probe has one."""
        return next((entry for entry in self.files if entry.kind == kind), None)


class ProbeSet(_Record):
    """The probes of a search space, given as `Space.to_dict` gives it.

    `layers` are the keys of the layers that stand alone, see `specialize.latency.table`.
    """

    space: dict[str, object]
    probes: tuple[Probe, ...] = Field(min_length=1, max_length=MOST_PROBES)
    layers: tuple[tuple[str | int | bool, ...], ...] = ()

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [probe.name for probe in self.probes]
        if len(set(names)) != len(names):
            raise ValueError("two probes have the same name")
        if any(p.layer is not None and p.layer >= len(self.layers) for p in self.probes):
            raise ValueError(f"a probe's layer is not among the {len(self.layers)} layers")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the set, file digests included, in hex."""
        return sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def subnets(self) -> tuple[Probe, ...]:
        """The probes that are whole subnets."""
        return tuple(probe for probe in self.probes if probe.arch is not None)


class KindMeasured(_Record):
    """What a device measured with files of one kind.

    `seconds`: probe → time of one run on one example. `noise` is the median, over the probes, of the
    interquartile range of repeated measurements by their median. `load_s` and `peak_bytes` are of
    loading and first running the probes that are subnets: time, and memory beyond what the process
    had before.
    """

    kind: FileKind
    runtime: str = Field(min_length=1, max_length=100)
    threads: int = Field(ge=1, le=1024)
    seconds: dict[Name, Seconds] = Field(max_length=MOST_PROBES)
    noise: float = Field(ge=0)
    load_s: dict[Name, Seconds] = Field(max_length=MOST_PROBES)
    peak_bytes: dict[Name, Annotated[int, Field(ge=0, le=2**50)]] = Field(max_length=MOST_PROBES)


class Measurements(_Record):
    """A device's measurements of one set of probes."""

    probe_set: str = Field(pattern=r"^[0-9a-f]{64}$")
    kinds: tuple[KindMeasured, ...] = Field(min_length=1, max_length=4)

    @model_validator(mode="after")
    def _kinds_are_distinct(self) -> Self:
        if len({one.kind for one in self.kinds}) != len(self.kinds):
            raise ValueError("kinds: one stands twice")
        return self

    def of(self, kind: FileKind) -> KindMeasured | None:
        """What was measured with files of a kind."""
        return next((one for one in self.kinds if one.kind == kind), None)


def read_set(folder: Path) -> ProbeSet:
    """The set in a folder; its files are checked when they are used.

    ArtifactError where there is none, or it is damaged.
    """
    return _read(folder / SET_NAME, ProbeSet, "make one with `fedofa probes`")


def read_measurements(path: Path) -> Measurements:
    """What `fedofa-device profile --probes` wrote; ArtifactError names the field that is wrong."""
    return _read(path, Measurements, "write it anew with `fedofa-device profile --probes`")


def read_probe(folder: Path, probe: Probe, entry: FileEntry) -> bytes:
    """A probe's file; ArtifactError where it is missing or not the one that the set names."""
    path = folder / probe.name / entry.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"probe {path}: {error.strerror}") from None
    if sha256(content).hexdigest() != entry.sha256:
        raise ArtifactError(f"probe {path} is damaged: copy the set again")
    return content


def absurd(measured: KindMeasured, probes: ProbeSet) -> str:
    """Why nothing can be so fast, or that names are unknown; empty where the figures can be true."""
    macs = {probe.name: probe.macs for probe in probes.probes}
    if unknown := sorted(measured.seconds.keys() - macs.keys()):
        return f"seconds.{unknown[0]}: the set has no such probe"
    most = measured.threads * MOST_MACS_PER_S_AND_THREAD
    for name, seconds in measured.seconds.items():
        if macs[name] / seconds > most:
            return (
                f"seconds.{name} = {seconds:g} for {macs[name]:,} multiply-accumulates on "
                f"{measured.threads} threads: no processor does more than "
                f"{MOST_MACS_PER_S_AND_THREAD:g} a second and thread"
            )
    return ""


def _read(path: Path, kind: type[R], hint: str) -> R:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; {hint}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}; {hint}") from None
