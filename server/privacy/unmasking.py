"""Taking the masks off a sum: secrets are put together from shares, and only those that are needed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...protos.fixed_point import Words
from ...protos.masks import commitment, mask, pair_key, public_of
from ...protos.secure_messages import Advert, Roster, SecrecyError
from ...protos.shamir import join
from .cells import CellMap

Held = Mapping[int, bytes]
"""Who revealed → its share of one secret."""
Secret = tuple[int, int | None]
"""A device and the cell of its own mask, or None: the device's mask key."""


@dataclass(frozen=True, slots=True)
class Unmasking:
    """What is left to do when the values of the devices `alive` have been added up."""

    roster: Roster
    binding: bytes
    spans: CellMap
    alive: frozenset[int]

    def needed(self, shared: Iterable[int]) -> tuple[Secret, ...]:
        """Which secrets every device reveals its shares of, in the order in which it does.

        Of a device whose values arrived those of its own masks, in cells that enough such devices
        cover; of another its mask key. Never both: its own mask hides values that come late.
        """
        kept, found = self.roster.kept(self.alive), list[Secret]()
        for holder in sorted(shared):
            if holder not in self.alive:
                found.append((holder, None))
            else:
                found += [(holder, cell) for cell in self.roster.cells_of(holder) if cell in kept]
        return tuple(found)

    def apply(
        self, total: Words, revealed: Mapping[Secret, Held], committed: Mapping[Secret, bytes]
    ) -> None:
        """Take every mask off the sum, in place, in the cells that enough devices are left for.

        SecrecyError naming the device whose secret does not come out of its shares right.
        """
        least = self.roster.threshold
        for (holder, cell), shares in revealed.items():
            of = self._advert(holder)
            if cell is None:
                private = _joined(shares, least, of.mask_key, public_of, of.name)
                self._take_off_pairs(total, of, private)
            else:
                seed = _joined(shares, least, committed[holder, cell], commitment, of.name)
                total[self.spans.span(cell)] -= mask(seed, cell, self.roster.cells[cell].size)

    def _take_off_pairs(self, total: Words, gone: Advert, private: bytes) -> None:
        """What devices that are left share with one that is gone: nothing of it cancelled."""
        kept = self.roster.kept(self.alive).intersection(self.roster.cells_of(gone.holder))
        for holder in self.alive:
            key = pair_key(private, self._advert(holder).mask_key, self.binding)
            for number in kept:
                cell = self.roster.cells[number]
                if holder in cell.cover:
                    part = total[self.spans.span(number)]
                    common = mask(key, number, cell.size)
                    # The device that is left added it if its number is the lower one.
                    (np.subtract if holder < gone.holder else np.add)(part, common, out=part)

    def _advert(self, holder: int) -> Advert:
        return next(advert for advert in self.roster.adverts if advert.holder == holder)


def _joined(
    shares: Held, threshold: int, expected: bytes, check: Callable[[bytes], bytes], name: str
) -> bytes:
    """The secret, from the first `threshold` neighbours whose shares give what was committed to.

    Neighbours in a ring: a single wrong share is got round where there is one more than needed.
    """
    ring = sorted(shares)
    for first in range(len(ring)):
        several = (ring[(first + place) % len(ring)] for place in range(threshold))
        try:
            secret = join({holder: shares[holder] for holder in several})
        except ValueError:
            continue
        if check(secret) == expected:
            return secret
    raise SecrecyError(
        "share", f"the shares of device {name}'s secret do not fit: some device sent a wrong one"
    )
