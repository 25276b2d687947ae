"""What a run's ledger comes to up to a round: folded in one pass, its entries are not kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..contributions import Contribution, count, counted_entries
from ..ledger_chain import LEDGER, Chain, checked
from ..ledger_entries import Abandoned, Entry, Resumed, Round, Started
from ..ledger_keys import PUBLIC, PublicKey


@dataclass(frozen=True, slots=True)
class Book:
    """A checked ledger up to a round: what counts of it, some bytes for each round and device.

    `rounds` are those that are done, `asked` those of them in which a device was. `first` are the
    weights that it begins with, `left` those after its last entry that is about weights.
    """

    chain: Chain
    rounds: tuple[int, ...]
    asked: tuple[int, ...]
    abandoned: int
    unrecorded: int
    contributions: tuple[Contribution, ...]
    first: str | None
    left: str | None

    @property
    def devices(self) -> tuple[str, ...]:
        """Those of which an update was taken."""
        return tuple(one.device for one in self.contributions if one.accepted)


def book_of(folder: Path, round_: int) -> Book | None:
    """A folder's ledger, checked, up to a round; None where there is none.

    LedgerError names the first bad entry; UsageError where the public key is missing or none.
    """
    path = folder / LEDGER
    if not path.exists():
        return None
    return book_at(checked(path, PublicKey.read(folder / PUBLIC, "restore it")), round_)


def book_at(chain: Chain, round_: int) -> Book:
    """What a checked ledger comes to up to a round."""
    seen = _Seen(round_)
    contributions = tuple(count(seen.through(counted_entries(chain))))
    return Book(
        chain,
        tuple(seen.rounds),
        tuple(seen.asked),
        seen.abandoned,
        round_ - len(seen.rounds),
        contributions,
        seen.first,
        seen.left,
    )


class _Seen:
    """Counts the entries up to a round while another fold takes them."""

    def __init__(self, round_: int) -> None:
        self._round = round_
        self.rounds: list[int] = []
        self.asked: list[int] = []
        self.abandoned = 0
        self.first: str | None = None
        self.left: str | None = None

    def through(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if entry.round <= self._round:
                self._take(entry)
                yield entry

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Round):
            self.rounds.append(entry.round)
            self.asked += [entry.round] if entry.assigned else []
            self.left = entry.after
        elif isinstance(entry, Abandoned):
            self.abandoned += 1
        elif isinstance(entry, Started | Resumed):
            self.left = entry.weights
            if isinstance(entry, Started):  # nothing before it counts
                self.first = entry.weights
