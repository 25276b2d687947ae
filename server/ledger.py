"""The record of a run: signed, each entry chained to the one before, never changed (card 33).

After the ledgers of blockchain-based federated learning: what each device was given, sent and was
refused for, and what became of the weights. One signer instead of a chain: who holds the public key
and some hash that was noted later sees any change, but must trust the server to have told the truth.

A round is entered before its checkpoint is written, whose notes carry `head`. A server killed between
the two leaves a round that the checkpoint lacks: the run does it again, and `resumed` supersedes it.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protos import durable
from ..supernet.errors import RunError
from .ledger_chain import LEDGER, Chain, lines
from .ledger_entries import (
    Abandoned,
    Assignment,
    Entry,
    LedgerError,
    Quarantined,
    Released,
    Resumed,
    Round,
    Sealed,
    Started,
    Update,
    arch_digest,
    body_of,
    link,
    signed_bytes,
)
from .ledger_keys import SigningKey, run_key

TORN = "ledger.torn"


def update_digest(values: NDArray[Any]) -> str:
    """sha256 of an update's bytes as they travelled."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


@dataclass(slots=True)
class RoundRecord:
    """What happens in one round, gathered as it happens; `before` is the weights' digest.

    A device that was assigned something and neither accepted nor refused is missing.
    """

    before: str
    assigned: dict[str, Assignment] = field(default_factory=dict)
    accepted: dict[str, Update] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    suspected: dict[str, str] = field(default_factory=dict)

    def assign(
        self,
        device: str,
        arch: Mapping[str, int | float],
        macs: int,
        offset: int = 0,
        version: int | None = None,
    ) -> None:
        """Note what a device is to train; `macs` of one forward pass of one example.

        `version` is that of the weights that it was sent, where it need not be the newest.
        """
        digest = arch_digest(arch)
        self.assigned[device] = Assignment(arch=digest, offset=offset, macs=macs, version=version)

    def accept(self, device: str, sha256: str, weight: float) -> None:
        """Note an update that counts, by its `update_digest`, and its weight in the merge."""
        self.accepted[device] = Update(sha256=sha256, weight=weight)

    def count_less(self, device: str, share: float) -> None:
        """Note that the rule let an accepted update count for a share of its weight only."""
        update = self.accepted[device]
        self.accepted[device] = update.model_copy(update={"weight": update.weight * share})

    def refuse(self, device: str, code: str) -> None:
        """Note a refusal with its reason code."""
        self.refused[device] = code

    def suspect(self, device: str, code: str) -> None:
        """Note that the rule of aggregation suspects an accepted update."""
        self.suspected[device] = code

    def parts(self) -> dict[str, Any]:
        """The fields of the round's entry."""
        missing = self.assigned.keys() - self.accepted.keys() - self.refused.keys()
        return {
            "before": self.before,
            "assigned": self.assigned,
            "accepted": self.accepted,
            "refused": self.refused,
            "missing": tuple(sorted(missing)),
            "suspected": self.suspected,
        }


class Ledger:
    """Appends entries to a run's ledger; an entry that was appended outlives a kill or power cut.

    One process at a time: the job's lock on the run folder sees to it.
    """

    def __init__(
        self, path: Path, run: str, key: SigningKey, clock: Callable[[], float] = time.time
    ) -> None:
        """Read and check what is there, and change nothing yet.

        A last line that was not written whole counts as not there: the next entry replaces it.
        LedgerError names an entry that is bad otherwise.
        """
        self.path, self.run = path, run
        self._key, self._clock = key, clock
        self._chain, self._torn_bytes = _read(path, key)

    @classmethod
    def open(cls, folder: Path, run: str, clock: Callable[[], float] = time.time) -> "Ledger":
        """The ledger of a run folder, with the run's key, which is made where both are missing."""
        path = folder / LEDGER
        new = not path.exists() or path.stat().st_size == 0
        return cls(path, run, run_key(folder, new=new), clock)

    @property
    def head(self) -> str:
        """The last entry's hash. Noted elsewhere, it shows whether the ledger was cut later."""
        return self._chain.head

    def started(self, round_: int, weights: str, follows: str | None = None) -> None:
        """A run begins: nothing that was entered before counts."""
        self._append(Started(**self._stamp(round_), run=self.run, weights=weights, follows=follows))

    def resumed(self, round_: int, weights: str, head: str | None = None) -> None:
        """The run goes on after a checkpoint's round; `head` is what its notes say.

        What was entered after that is superseded. Where there is no ledger any more, one begins that
        says what it follows. LedgerError where the ledger does not know the head or the weights.
        """
        if not len(self._chain):
            self.started(round_, weights, follows=head)
            return
        keeps, cut = self._chain.kept(round_, weights, head), self._torn_bytes
        self._append(Resumed(**self._stamp(round_), weights=weights, keeps=keeps, cut_bytes=cut))

    def round(self, record: RoundRecord, round_: int, after: str, coverage: float) -> None:
        """A round is done; `after` is the digest of the weights that it leaves."""
        self._append(Round(**self._stamp(round_), **record.parts(), after=after, coverage=coverage))

    def abandoned(self, record: RoundRecord, round_: int) -> None:
        """A round was given up: the weights are as before."""
        self._append(Abandoned(**self._stamp(round_), **record.parts()))

    def quarantined(self, device: str, until_round: int, code: str) -> None:
        """A device is asked no more before a round; enter it before or after its round's entry."""
        self._append(
            Quarantined(**self._stamp(), device=device, until_round=until_round, code=code)
        )

    def released(self, device: str, reason: str) -> None:
        """A device is asked again."""
        self._append(Released(**self._stamp(), device=device, reason=reason))

    def _stamp(self, round_: int | None = None) -> dict[str, Any]:
        if round_ is None:
            round_ = self._chain.states[-1].round if len(self._chain) else 0
        return {"index": len(self._chain), "time": self._clock(), "round": round_}

    def _append(self, entry: Entry) -> None:
        state = self._chain.follow(entry)
        body = body_of(entry)
        hash_ = link(self.head, body)
        signature = self._key.sign(signed_bytes(hash_)).hex()
        sealed = Sealed(body, hash_, self.head, signature)
        try:
            if self._torn_bytes:
                self._set_torn_line_aside()
            _write(self.path, self._chain.size_bytes, sealed.line)
        except OSError as error:
            raise RunError(f"ledger {self.path} cannot be written: {error.strerror}") from None
        self._chain.extend(sealed, entry, state)

    def _set_torn_line_aside(self) -> None:
        with self.path.open("r+b") as file:
            file.seek(self._chain.size_bytes)
            torn = file.read()
            with self.path.with_name(TORN).open("ab") as aside:
                aside.write(torn + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            file.truncate(self._chain.size_bytes)
            os.fsync(file.fileno())
        self._torn_bytes = 0


def _read(path: Path, key: SigningKey) -> tuple[Chain, int]:
    """The checked entries, and the size of what a killed server left of a last line."""
    chain = Chain(path)
    if not path.exists():
        return chain, 0
    rest = lines(path)
    for line in rest:
        try:
            chain.take(line, key.public)
        except LedgerError as error:
            # A power cut may also leave a line of the full length with holes in it. What has its
            # right hash was written so, whatever else is wrong with it: no accident makes that.
            if error.problem in ("torn", "form", "hash") and next(rest, None) is None:
                return chain, len(line)
            advice = f"{error.detail}; restore the ledger, or move it aside to begin another"
            raise LedgerError(path, error.entry, error.problem, advice) from None
    return chain, 0


def _write(path: Path, at: int, line: bytes) -> None:
    """Append a line at the end, which must be at `at`; all of it or, if that fails, nothing."""
    new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if (size := os.fstat(handle).st_size) != at:
            raise RunError(
                f"ledger {path} is {size} bytes long, not {at}: another process writes to it"
            )
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, at)
            raise
    finally:
        os.close(handle)
    if new:
        durable.sync(path.parent)
