"""Merging the partial sums that aggregators of some devices each sent on."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..supernet.errors import UsageError
from ..supernet.space import Space, plain
from .aggregation import partial_file
from .aggregation.overlap_mean import OverlapMean
from .aggregation.partial_file import Origin, Parcel
from .ledger_entries import canonical
from .sharing import shown


def space_digest(space: Space) -> str:
    """sha256 of a space's canonical description: sums of other shared weights never meet."""
    return hashlib.sha256(canonical(plain(space.to_dict()))).hexdigest()


class Merge:
    """Adds up partial sums of one space, run and round; each update counts once."""

    def __init__(self, first: Parcel) -> None:
        """A merge of what belongs to the same weights as `first`, with nothing in it yet."""
        self._origin, self._shapes = first.origin, first.shapes
        self._dtype = first.partial.total.dtype
        self._sum = OverlapMean(first.shapes, self._dtype)
        self._updates: set[str] = set()

    def add(self, parcel: Parcel) -> bool:
        """Count a partial sum; False where all its updates count already: it was delivered twice.

        UsageError where it belongs to other weights, or where only some of its updates count already,
        which cannot be taken out of a sum.
        """
        self._check(parcel)
        known = self._updates & parcel.updates
        if known == parcel.updates:
            return False
        if known:
            raise UsageError(
                f"{len(known)} of {len(parcel.updates)} updates are in another partial sum already "
                f"({shown(sorted(known))}), and cannot be taken out of this one; merge sums without a "
                "common update"
            )
        self._sum.add_partial(parcel.partial)
        self._updates |= parcel.updates
        return True

    def result(self) -> Parcel:
        """The sum of all; ends the merge."""
        found = self._sum.partial()
        return Parcel.of(self._origin, self._shapes, frozenset(self._updates), found)

    def _check(self, parcel: Parcel) -> None:
        for what in Origin.model_fields:
            here, there = getattr(self._origin, what), getattr(parcel.origin, what)
            if here != there:
                raise UsageError(f"it is of {what} {there}; the first one is of {here}")
        if not partial_file.shapes_equal(self._shapes, parcel.shapes):
            raise UsageError("its shared tensors are not those of the first one")
        if parcel.partial.total.dtype != self._dtype:
            raise UsageError(
                f"its sums are {parcel.partial.total.dtype}; those of the first one are "
                f"{self._dtype}: let all aggregators accumulate alike"
            )


def merge_files(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Merge files into a new one, one in memory at a time beside the sum; what `described` says.

    UsageError names the file that does not go with the first one; then nothing is written.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists; name a new file")
    first, *others = paths
    parcel, twice = partial_file.read(first), list[str]()
    merge = Merge(parcel)
    merge.add(parcel)
    del parcel
    for path in others:
        try:
            if not merge.add(partial_file.read(path)):
                twice.append(str(path))
        except UsageError as error:
            raise UsageError(f"partial sum {path}: {error}") from None
    found = merge.result()
    try:
        partial_file.write(out, found)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from None
    return {**described(found), "delivered_twice": twice}


def described(parcel: Parcel) -> dict[str, Any]:
    """What is in a partial sum."""
    return {
        **parcel.origin.model_dump(),
        "updates": sorted(parcel.updates),
        "weight": parcel.partial.weight,
        "values": parcel.partial.total.numel(),
        "values_trained": partial_file.values_trained(parcel),
        "sums": str(parcel.partial.total.dtype).removeprefix("torch."),
    }


def as_lines(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a terminal: many updates are counted, not listed."""
    return {**found, "updates": f"{len(found['updates'])} ({shown(found['updates'])})"}
