"""`run.json`: which jobs made a run, with which configuration and software, and what they ended in.

What a run's other files hold (events, ledger, checkpoints, results, manifests) is not repeated here:
this record has their digests, and is signed with the run's key. After the best-practice list of
"Neural Architecture Search: Insights from 1000 Papers" (White et al. 2023): configuration, seeds,
software and cost belong to a result. Whether they are there is checked by `report/practices.py`.

The file is one line, exactly

    {"body":BODY,"signature":"S"}\n

BODY as in the ledger (sorted keys, no spaces, ASCII), S the Ed25519 signature of CONTEXT || sha256(BODY).
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..protos import durable
from ..supernet.errors import ArtifactError, UsageError
from .ledger_entries import Sha256, canonical
from .ledger_keys import PUBLIC, PublicKey, SigningKey

RECORD = "run.json"
CONTEXT = b"fedofa run record 1\n"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Environment(_Part):
    """Where a job ran: Python, system, processor, its cores, and versions of what decides results."""

    python: str
    system: str
    processor: str
    cores: int = Field(ge=1)
    packages: dict[str, str]


class LogMark(_Part):
    """How far an event log had grown, and the sha256 of what it held by then; it only grows."""

    size_bytes: int = Field(ge=0)
    sha256: Sha256


Kind = Literal["train", "specialize", "fleet", "finish"]


class Published(_Part):
    """What a job left: digests of its results and of each class's manifest.

    The results are `specialized.json`, a fleet's `assignment.json`, or what a finishing came to, which
    may have published nothing. `registry` is the registry's folder, `channel` what points at the models there.
    """

    results_sha256: Sha256
    manifests: dict[str, Sha256]
    registry: str
    channel: str


class JobRecord(_Part):
    """One job. `seconds` is None while it works, and stays so where it was killed or failed.

    `round`, `weights` and `head` say where it stood: the checkpoint's round, the digest of the shared
    weights (`supernet.weights.digest`), and the hash of the ledger's last entry (None: no ledger).
    `logs` are its event logs by their path from the record's folder. `fleet` is the one whose plan it
    carried out. A finishing has a record of its own, in its folder.
    """

    kind: Kind
    began_unix_s: float
    seconds: float | None = Field(None, ge=0)
    config: dict[str, Any]
    environment: Environment
    round: int = Field(ge=0)
    weights: Sha256
    head: Sha256 | None
    logs: dict[str, LogMark]
    published: Published | None = None
    fleet: str | None = None

    @model_validator(mode="after")
    def _all_but_training_publish(self) -> Self:
        done = self.kind != "train" and self.seconds is not None
        if done != (self.published is not None):
            raise ValueError("what was published belongs to each job that is done, but training")
        if (self.kind == "fleet") != (self.fleet is not None):
            raise ValueError("a job for a fleet says which, and no other does")
        return self


class RunRecord(_Part):
    """A run's jobs in order, those of one supernet: a branch has a record of its own."""

    schema_version: Literal[1] = 1
    run: str
    jobs: tuple[JobRecord, ...] = ()

    def newest(self, kind: Kind, fleet: str | None = None) -> JobRecord | None:
        """The last job of a kind that was done, of any fleet or of one; None when there is none."""
        done = [job for job in self.jobs if job.kind == kind and job.seconds is not None]
        mine = [job for job in done if fleet in (None, job.fleet)]
        return mine[-1] if mine else None

    @property
    def fleets(self) -> tuple[str, ...]:
        """The fleets for which there was a job, in order of name."""
        return tuple(sorted({job.fleet for job in self.jobs if job.fleet is not None}))

    def with_job(self, job: JobRecord) -> Self:
        """With one more job, or with the same one (by kind and beginning) as it is now."""
        mine = (job.kind, job.began_unix_s)
        others = tuple(one for one in self.jobs if (one.kind, one.began_unix_s) != mine)
        return self.model_copy(update={"jobs": (*others, job)})


def write(folder: Path, record: RunRecord, key: SigningKey) -> None:
    """Sign and write whole or not at all."""
    durable.write(folder / RECORD, _sealed(record, key))


def _sealed(record: RunRecord, key: SigningKey) -> bytes:
    body = canonical(record.model_dump(mode="json"))
    return _line(body, key.sign(_signed(body)).hex())


def _line(body: bytes, signature: str) -> bytes:
    return b'{"body":' + body + b',"signature":"' + signature.encode() + b'"}\n'


def _signed(body: bytes) -> bytes:
    return CONTEXT + hashlib.sha256(body).digest()


def read(folder: Path) -> RunRecord:
    """The record of a run folder, checked against the run's public key beside it.

    UsageError where there is none; ArtifactError where it is half, was changed or signed by another
    key, or has another version.
    """
    path = folder / RECORD
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"run record {path}: no such file; a run begins it (fedofa run), and "
            "fedofa specialize goes on with it"
        ) from None
    except OSError as error:
        raise ArtifactError(f"run record {path}: {error.strerror}") from None
    try:
        whole = json.loads(data)
        body, signature = canonical(whole["body"]), str(whole["signature"])
        if data != _line(body, signature):
            raise ValueError("its bytes are not those that were written")
        signed = bytes.fromhex(signature)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(path, f"not a whole record ({error})") from None
    key = PublicKey.read(folder / PUBLIC, f"restore it: {RECORD} is signed with that key")
    if not key.confirms(signed, _signed(body)):
        raise _bad(path, f"it was changed, or signed by another key than {PUBLIC}'s")
    try:
        return RunRecord.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        raise _bad(path, f"{where}: {first['msg']}; this version knows schema_version 1") from None


def _bad(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"run record {path}: {what}. Restore the file, or remove it and specialize again "
        "(the jobs before are then unknown)"
    )
