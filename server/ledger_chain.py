"""Whether a ledger is what was written: every line checked against all before it.

A `resumed` entry goes on from an earlier entry; what lies between is superseded. So the entries form
a tree that grows at its tip, and those that count are the path from the last one back to its root.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..supernet.errors import UsageError
from .ledger_entries import (
    FIRST,
    Abandoned,
    Entry,
    LedgerError,
    Problem,
    Resumed,
    Round,
    Sealed,
    Started,
    entry_of,
    link,
    signed_bytes,
    unseal,
)
from .ledger_keys import PublicKey

LEDGER = "ledger.jsonl"
LONGEST_LINE_BYTES = 1 << 28
"""About a million devices in one round; a stranger's file must not fill the memory."""


@dataclass(frozen=True, slots=True)
class State:
    """Where training stands after an entry; `parent` is the entry it goes on from (-1: none)."""

    round: int
    weights: str
    parent: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What a good ledger holds. `weights` and `head` are those after the last entry.

    `recorded` rounds count; `superseded` ones were done again after a resume; `unrecorded` ones
    shaped the weights and are not in the ledger. `after_head` counts entries after the expected one.
    """

    entries: int
    round: int
    recorded: int
    superseded: int
    unrecorded: int
    weights: str
    head: str
    key: str
    after_head: int | None


class Chain:
    """The checked entries so far: some 200 bytes an entry, whatever the entries hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head = FIRST
        self.size_bytes = 0
        self.states: list[State] = []
        self._rounds: list[int] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.states)

    def take(self, line: bytes, key: PublicKey) -> Entry:
        """Check the next line and count it; LedgerError says what is wrong with it."""
        if not line.endswith(b"\n"):
            raise self.error(
                "torn", "the last line is not whole: the server was killed while it wrote, or the "
                "file was cut; a resumed run sets it aside"
            )  # fmt: skip
        sealed = unseal(line)
        if sealed is None:
            raise self.error("form", "not a line of a ledger")
        if link(sealed.prev, sealed.body) != sealed.hash:
            raise self.error("hash", "its content is not what was hashed: it was changed")
        if not key.confirms(bytes.fromhex(sealed.signature), signed_bytes(sealed.hash)):
            raise self.error("signature", f"not signed with the key {key.text}")
        if sealed.prev != self.head:
            raise self.error("order", self._misplaced(sealed.prev))
        try:
            entry = entry_of(sealed.body)
        except ValueError as error:
            raise self.error("body", str(error)) from None
        self.extend(sealed, entry, self.follow(entry))
        return entry

    def follow(self, entry: Entry) -> State:
        """Where training stands after this entry; LedgerError when it cannot come next."""
        last = len(self) - 1
        if entry.index != len(self):
            raise self.error("order", f"it calls itself entry {entry.index}")
        if isinstance(entry, Started):
            return State(entry.round, entry.weights, -1)
        if last < 0:
            raise self.error("order", f"{entry.kind} comes first; a ledger begins with started")
        now = self.states[last]
        if isinstance(entry, Resumed):
            return self._resumed(entry)
        if isinstance(entry, Round | Abandoned):
            if entry.round != now.round + 1:
                raise self.error("round", f"{entry.round} comes after {now.round}")
            if entry.before != now.weights:
                raise self.error(
                    "weights", f"it starts from {entry.before}, but {now.weights} was left"
                )
            after = entry.after if isinstance(entry, Round) else now.weights
            done = entry.round if isinstance(entry, Round) else now.round
            return State(done, after, last)
        if entry.round != now.round:
            raise self.error("round", f"{entry.kind} after {entry.round}; {now.round} is done")
        return State(now.round, now.weights, last)

    def _resumed(self, entry: Resumed) -> State:
        if entry.keeps >= len(self):
            raise self.error("order", f"it goes on from entry {entry.keeps}, which comes later")
        kept = self.states[entry.keeps]
        if kept.round > entry.round:
            raise self.error("round", f"it goes on from {entry.round}, and keeps {kept.round}")
        if kept.round == entry.round and kept.weights != entry.weights:
            raise self.error("weights", f"it goes on from {entry.weights}, not {kept.weights}")
        return State(entry.round, entry.weights, entry.keeps)

    def extend(self, sealed: Sealed, entry: Entry, state: State) -> None:
        """Count a checked entry."""
        if isinstance(entry, Round):
            self._rounds.append(len(self))
        self._places[sealed.hash] = len(self)
        self.states.append(state)
        self.head = sealed.hash
        self.size_bytes += len(sealed.line)

    def live(self) -> list[int]:
        """The entries that count, ascending: those that no later `resumed` or `started` undid."""
        found, at = [], len(self) - 1
        while at >= 0:
            found.append(at)
            at = self.states[at].parent
        return found[::-1]

    def place(self, head: str) -> int:
        """The entry with this hash; LedgerError when there is none."""
        if head not in self._places:
            raise self.error(
                "missing", f"no entry has the hash {head}: it is another ledger's or was "
                "mistyped, or this ledger was cut short"
            )  # fmt: skip
        return self._places[head]

    def kept(self, round_: int, weights: str, head: str | None) -> int:
        """The entry that a run resumed at this round, with these weights, goes on from.

        `head` is the ledger's when the checkpoint was written: that entry, or else the first after
        it that stands at this round. Where none does, rounds are unrecorded: the last one before.
        """
        live = self.live()
        begin = self.place(head) if head is not None else live[0]
        path = [begin, *(at for at in live if at > begin)]
        here = [at for at in path if self.states[at].round == round_]
        for at in here:
            if self.states[at].weights == weights:
                return at
        before = [at for at in path if self.states[at].round < round_]
        if here or not before:
            raise self.error(
                "weights", f"the checkpoint of round {round_} holds {weights}, which this ledger "
                "does not know; restore the ledger, or move it aside to begin another"
            )  # fmt: skip
        return before[-1]

    def verified(self, key: PublicKey, head: str | None) -> Verified:
        """The figures of at least one entry; LedgerError when the expected head is missing."""
        after = None if head is None else len(self) - 1 - self.place(head)
        counted = set(self.live())
        recorded = sum(1 for at in self._rounds if at in counted)
        last = self.states[-1]
        return Verified(
            entries=len(self),
            round=last.round,
            recorded=recorded,
            superseded=len(self._rounds) - recorded,
            unrecorded=last.round - recorded,
            weights=last.weights,
            head=self.head,
            key=key.text,
            after_head=after,
        )

    def error(self, problem: Problem, detail: str) -> LedgerError:
        """About the entry that comes next."""
        return LedgerError(self.path, len(self), problem, detail)

    def _misplaced(self, prev: str) -> str:
        if prev in self._places:
            return f"it belongs after entry {self._places[prev]}: entries were repeated or moved"
        if prev == FIRST:
            return "it belongs at the beginning: entries were repeated or moved"
        return "the entry before it is not the one that it follows: entries were removed or moved"


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a ledger, one at a time; UsageError where there is no file."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"ledger {path}: {error.strerror}") from None
    with file:
        while line := file.readline(LONGEST_LINE_BYTES):
            yield line


def checked(path: Path, key: PublicKey) -> Chain:
    """The chain of a whole ledger; LedgerError names the first bad entry."""
    chain = Chain(path)
    for line in lines(path):
        chain.take(line, key)
    if not len(chain):
        raise chain.error("missing", "the ledger is empty")
    return chain


def verify(path: Path, key: PublicKey, head: str | None = None) -> Verified:
    """Check a whole ledger with the public key alone; LedgerError names the first bad entry.

    A ledger that was cut after a whole line is good as far as it goes: only `head`, a hash that was
    noted elsewhere, shows it.
    """
    return checked(path, key).verified(key, head)


def noted_head(path: Path) -> str | None:
    """The hash of the last whole line as it stands there, not checked; None without a ledger."""
    head = None
    for line in lines(path) if path.is_file() else ():
        if (sealed := unseal(line)) is not None:
            head = sealed.hash
    return head


def ledger_at(path: Path) -> Path:
    """A ledger's file, from its own path or its run's folder."""
    return path / LEDGER if path.is_dir() else path
