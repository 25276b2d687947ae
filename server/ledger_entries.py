r"""The ledger's format: what an entry says, its canonical bytes, and the line that seals it.

One entry a line, each line exactly

    {"body":BODY,"hash":"H","prev":"P","signature":"S"}\n

- BODY is a JSON object with sorted keys, no spaces, ASCII only, numbers as Python writes them.
- P is the H of the line before, 64 zeros in the first line.
- H = sha256(P || BODY), P as 32 bytes; 64 lower-case hex digits.
- S is the Ed25519 signature of CONTEXT || H, H as 32 bytes; 128 lower-case hex digits.

All but BODY has one length and one spelling. So what was hashed is cut out of the line by its place,
and no byte of a line can change unseen; no parser has a say in it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..supernet.errors import ArtifactError

CONTEXT = b"fedofa ledger entry 1\n"
"""Signed before the hash: the same key may sign other things."""
FIRST = "0" * 64
STALE = "stale_round"
"""Reason code of an update that belongs to another round, or whose weights are too old."""
LINE = re.compile(
    rb'\{"body":(\{.*\}),"hash":"([0-9a-f]{64})","prev":"([0-9a-f]{64})",'
    rb'"signature":"([0-9a-f]{128})"\}\n'
)
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Problem = Literal[
    "torn", "form", "hash", "signature", "order", "body", "round", "weights", "missing"
]


class LedgerError(ArtifactError):
    """An entry that is not what was written. `entry` counts from 0; `problem` is a stable code.

    torn: the last line is not whole. form: not a line of a ledger. hash: the content was changed.
    signature: another key signed it. order: entries before it were removed, added or moved. body: no
    entry that this version knows. round: not the next round. weights: it starts from other weights
    than the round before left. missing: the expected entry is not there.
    """

    def __init__(self, path: Path, entry: int, problem: Problem, detail: str) -> None:
        super().__init__(f"ledger {path}: entry {entry}: {problem}: {detail}")
        self.entry, self.problem, self.detail = entry, problem, detail


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Assignment(_Part):
    """What a device was to train: digest of the architecture, window's offset, MACs of a pass.

    `version` is the round that left the weights that it was sent, in asynchronous training only:
    elsewhere it is the one before, and the entry does not have the field.
    """

    arch: Sha256
    offset: int
    macs: int = Field(ge=0)
    version: int | None = Field(None, ge=0)

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Synchronous rounds keep the bytes that they had before there were versions."""
        fields: dict[str, Any] = plain(self)
        if self.version is None:
            del fields["version"]
        return fields


class Update(_Part):
    """An accepted update: sha256 of its bytes as they travelled, and its weight in the merge."""

    sha256: Sha256
    weight: float = Field(ge=0)


class _Entry(_Part):
    index: int = Field(ge=0)
    time: float
    round: int = Field(ge=0)


class Started(_Entry):
    """A run begins at `round` (0 where it is new) with these weights; nothing before it counts.

    `follows` is the head of a ledger that is no longer there, as a checkpoint remembers it.
    """

    kind: Literal["started"] = "started"
    run: str
    weights: Sha256
    follows: Sha256 | None = None


class Resumed(_Entry):
    """The run goes on from a checkpoint: entries after number `keeps` are superseded.

    `cut_bytes` counts the bytes of a half-written line that were set aside before this entry.
    """

    kind: Literal["resumed"] = "resumed"
    weights: Sha256
    keeps: int = Field(ge=0)
    cut_bytes: int = Field(ge=0)


class _Asked(_Entry):
    before: Sha256
    assigned: dict[str, Assignment]
    accepted: dict[str, Update]
    refused: dict[str, str]
    missing: tuple[str, ...]
    suspected: dict[str, str]

    @model_validator(mode="after")
    def _each_assigned_device_ends_in_one_place(self) -> Self:
        ends = [*self.accepted, *self.refused, *self.missing]
        if sorted(ends) != sorted(self.assigned):
            raise ValueError("accepted, refused and missing devices are not the assigned ones")
        if any((one.version or 0) >= self.round for one in self.assigned.values()):
            raise ValueError("a device was sent weights that were not there yet")
        if not self.suspected.keys() <= self.accepted.keys():
            raise ValueError("suspected devices are not among the accepted ones")
        return self

    def overtaken(self, device: str) -> bool:
        """Whether the device was sent weights that were not the newest when its answer came."""
        version = self.assigned[device].version
        return version is not None and version < self.round - 1

    def strikes(self) -> set[str]:
        """Devices with a refused or suspected update; that weights were overtaken is no fault."""
        refused = {
            device
            for device, code in self.refused.items()
            if not (code == STALE and self.overtaken(device))
        }
        return refused | self.suspected.keys()


class Round(_Asked):
    """A round that is done. `coverage` is the fraction of shared weights trained in it.

    `refused` gives reason codes, and so does `suspected`, of accepted updates that the rule of
    aggregation left out or cut.
    """

    kind: Literal["round"] = "round"
    after: Sha256
    coverage: float = Field(ge=0, le=1)


class Abandoned(_Asked):
    """A round that was given up; the weights stayed as they were, its updates were not used."""

    kind: Literal["abandoned"] = "abandoned"


class Quarantined(_Entry):
    """After `round` a device is asked no more before `until_round`; `code` is its last strike's."""

    kind: Literal["quarantined"] = "quarantined"
    device: str
    until_round: int = Field(ge=1)
    code: str


class Released(_Entry):
    """After `round` a device is asked again, before its time or at it."""

    kind: Literal["released"] = "released"
    device: str
    reason: str


Entry = Started | Resumed | Round | Abandoned | Quarantined | Released
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Sealed:
    """A line of the ledger, taken apart."""

    body: bytes
    hash: str
    prev: str
    signature: str

    @property
    def line(self) -> bytes:
        """The line's bytes."""
        rest = f',"hash":"{self.hash}","prev":"{self.prev}","signature":"{self.signature}"}}\n'
        return b'{"body":' + self.body + rest.encode()


def unseal(line: bytes) -> Sealed | None:
    """Take a line apart; None when it does not have the form. Nothing is verified here."""
    found = LINE.fullmatch(line)
    if found is None:
        return None
    body, *others = found.groups()
    return Sealed(body, *(part.decode() for part in others))


def canonical(value: object) -> bytes:
    """The one spelling of a JSON value; ValueError for numbers that are not finite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def body_of(entry: Entry) -> bytes:
    """An entry's canonical bytes."""
    return canonical(entry.model_dump())


def entry_of(body: bytes) -> Entry:
    """Parse `body_of`'s form; ValueError names the first wrong field."""
    try:
        return _ENTRY.validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise ValueError(f"{where}: {first['msg']}") from None


def link(prev: str, body: bytes) -> str:
    """The hash of an entry after the one with hash `prev`."""
    return hashlib.sha256(bytes.fromhex(prev) + body).hexdigest()


def signed_bytes(hash_: str) -> bytes:
    """What the signature of an entry with this hash is over."""
    return CONTEXT + bytes.fromhex(hash_)


def arch_digest(arch: Mapping[str, int | float]) -> str:
    """sha256 of an architecture's canonical JSON: gene → option."""
    return hashlib.sha256(canonical(dict(arch))).hexdigest()
