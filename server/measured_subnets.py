"""What subnets scored on the devices, kept in the run's folder: what fleets are planned from.

Every search adds what it measured of the newest supernet. Measurements of another supernet than the one
that the file is about are dropped when new ones come, and refused when a plan asks for them.

Searches of one supernet are numbered, and draw by their number: the next one measures other subnets. One
whose job did not end is repeated under its number, so that a job that is resumed does what it had done.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..protos import durable
from ..specialize.predictors.contract import Sample
from ..supernet.errors import UsageError
from ..supernet.space import Arch, Space
from .class_choice import Choice

FILE = "measured.json"
MORE = (
    "measure more with `fedofa evaluate` or `fedofa specialize` ([search] samples says how many), "
    "then plan again"
)


Search = Literal["evaluate", "specialize"]
"""The kinds of jobs that search."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Subnet(_Record):
    """`group`: which search measured it, for which class, so on which devices."""

    group: str
    arch: dict[str, int | float]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    standard_error: Annotated[float, Field(ge=0)]


class _File(_Record):
    supernet_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    searches: Annotated[int, Field(ge=1)]
    unfinished: dict[Search, int] = Field(default_factory=dict)
    subnets: tuple[_Subnet, ...]


def next_search(folder: Path, supernet_sha256: str, kind: Search) -> int:
    """The number of the next search of this supernet, from 1, for a job of that kind.

    UsageError where `add` could not go on from what is there: asked before a search, not after.
    """
    before = _read(folder / FILE)
    if before is None or before.supernet_sha256 != supernet_sha256:
        return 1
    return before.unfinished.get(kind, before.searches + 1)


def add(folder: Path, supernet_sha256: str, kind: Search, choices: Iterable[Choice]) -> None:
    """Keep what the next search measured, finalists and what they stood beside included."""
    number, before = next_search(folder, supernet_sha256, kind), _read(folder / FILE)
    if before is None or before.supernet_sha256 != supernet_sha256:
        before = _File(supernet_sha256=supernet_sha256, searches=1, subnets=())
    kept = [one for one in before.subnets if one.group.partition(".")[0] != str(number)]
    found = {}
    for choice in choices:
        group = f"{number}.{choice.device_class}"
        scored = [(one.arch, one.score, one.error) for one in choice.found.evaluated]
        scored += [(c.arch, c.measured.accuracy, c.measured.error) for c in choice.candidates]
        for arch, accuracy, error in scored:
            found[group, arch] = _Subnet(
                group=group, arch=dict(arch), accuracy=accuracy, standard_error=error
            )
    after = {
        "searches": max(number, before.searches),
        "unfinished": {**before.unfinished, kind: number},
        "subnets": (*kept, *found.values()),
    }
    _write(folder, before.model_copy(update=after))


def finish(folder: Path) -> None:
    """The job that searched is done: the next one draws anew."""
    found = _read(folder / FILE)
    if found is not None and found.unfinished:
        _write(folder, found.model_copy(update={"unfinished": {}}))


def samples(folder: Path, supernet_sha256: str, space: Space) -> Sequence[Sample]:
    """What was measured of this supernet; of a subnet that one class measured several times the last.

    On the same devices a second measurement says nothing new, and would only count double. UsageError says
    what to do where there is nothing, or it is of another supernet.
    """
    found = _read(folder / FILE)
    if found is None:
        raise UsageError(f"{folder / FILE}: no subnet of this run was measured yet; {MORE}")
    if found.supernet_sha256 != supernet_sha256:
        raise UsageError(
            f"{folder / FILE}: its subnets were measured before the run was trained on; {MORE}"
        )
    last = dict[tuple[str, Arch], Sample]()
    for one in found.subnets:
        arch = space.arch(one.arch)
        sample = Sample(arch, one.group, one.accuracy, one.standard_error)
        last[one.group.partition(".")[2], arch] = sample
    return list(last.values())


def _write(folder: Path, found: _File) -> None:
    durable.write(folder / FILE, json.dumps(found.model_dump(mode="json")).encode())


def _read(path: Path) -> _File | None:
    if not path.exists():
        return None
    try:
        return _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; remove it and measure") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']}; remove the file and measure") from None
