"""What each device gave to a run, counted from its ledger."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .ledger_chain import Chain, lines
from .ledger_entries import Abandoned, Entry, Quarantined, Released, Round, entry_of, unseal


@dataclass(slots=True)
class Contribution:
    """One device's rounds: assigned = accepted + refused + missing + unused.

    `unused` updates were good, but their round was abandoned. `weight` sums the accepted updates'
    weights in the merges, `share` is its part of all devices' sum. A strike is a round in which an
    update was refused or suspected, but not for weights that others had overtaken. Superseded rounds
    do not count. A device that is `quarantined` is asked again in round `until_round` (else None).
    """

    device: str
    assigned: int = 0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    suspected: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    unused: int = 0
    weight: float = 0.0
    share: float = 0.0
    strikes: int = 0
    quarantined: bool = False
    until_round: int | None = None


def contributions(chain: Chain) -> list[Contribution]:
    """Per device, in order of name, from a ledger that was checked."""
    return count(counted_entries(chain))


def counted_entries(chain: Chain) -> Iterator[Entry]:
    """The entries of a checked ledger that no later one superseded, one in memory at a time."""
    counted = set(chain.live())
    for index, line in enumerate(lines(chain.path)):
        if index in counted and (sealed := unseal(line)) is not None:
            yield entry_of(sealed.body)


def count(entries: Iterable[Entry]) -> list[Contribution]:
    """Fold entries into what each device gave."""
    found: dict[str, Contribution] = {}
    struck: dict[str, int] = {}  # a round that is tried again strikes once
    until: dict[str, int] = {}
    coming = 0
    for entry in entries:
        if isinstance(entry, Round | Abandoned):
            _count_round(found, entry)
            for device in entry.strikes():
                found[device].strikes += struck.get(device) != entry.round
                struck[device] = entry.round
        elif isinstance(entry, Quarantined):
            until[entry.device] = entry.until_round
        elif isinstance(entry, Released):
            until.pop(entry.device, None)
        coming = entry.round if isinstance(entry, Abandoned) else entry.round + 1
    for device, round_ in until.items():
        one = found.setdefault(device, Contribution(device))
        one.quarantined = coming < round_
        one.until_round = round_ if one.quarantined else None
    total = sum(one.weight for one in found.values())
    for one in found.values():
        one.share = one.weight / total if total else 0.0
    return [found[device] for device in sorted(found)]


def _count_round(found: dict[str, Contribution], entry: Round | Abandoned) -> None:
    for device in entry.assigned:
        one = found.setdefault(device, Contribution(device))
        one.assigned += 1
        if device in entry.refused:
            _add(one.refused, entry.refused[device])
        elif device not in entry.accepted:
            one.missing += 1
        elif isinstance(entry, Round):
            one.accepted += 1
            one.weight += entry.accepted[device].weight
        else:
            one.unused += 1
        if device in entry.suspected:
            _add(one.suspected, entry.suspected[device])


def _add(counts: dict[str, int], code: str) -> None:
    counts[code] = counts.get(code, 0) + 1
