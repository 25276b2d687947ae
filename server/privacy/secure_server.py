"""The server's part in a secure sum of unequal regions: it learns sums and counts, no update.

The protocol is Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine
Learning"), four letters each way (`protos/secure_messages.py`). Every two devices agree on a key and mask
their values with numbers made from it, which cancel in the sum; each adds a mask of its own; the seeds
of the latter and the keys of the former are shared out (Shamir) among all devices, so that `threshold`
of them can take off the masks of what arrived, whoever dropped out.

**Regions.** Masking the whole supernet would make the weakest device upload all of it, and protect no
more: a value that one device covers would still be that device's in the sum. Here two devices mask the
values that both cover, and values lie in *cells* of equal cover (`cells.py`). In a cell the protocol is
the published one. A cell is summed only if `least_cover` devices cover it, which is asked three times:
when cells are made, when values are sent, and when they have arrived. That last one is why each device
has one seed for each cell and not one for all: if a cell's devices dropped out, its seeds stay shared
and its values hidden, and the other cells are summed. Values in no such cell count as not trained.

**What the server learns**: of each value in a summed cell the sum, exact but for the fixed point's
error (`protos/fixed_point.py`), and how many devices it is over. It knows which device covers what,
since it assigned that. **What devices learn** of each other: names, keys, and for each cell its size and
who covers it, hence about which subnets; not where cells lie, and no value. A sum over k devices tells
k - 1 of them together the last one's values: `least_cover` beyond the number that may collude, and
noise (`client/privacy/local_noise.py`), are what helps.

**Whom it holds against.** A server that follows the protocol and is curious, with up to threshold - 1
devices beside it. It cannot ask for both secrets of a device: a request names the survivors and nothing
else, devices decide what to reveal, once, and threshold > half makes two groups with different lists
share a device. A server that cheats could send its own keys for a device's. Against that each device
signs its adverts with an Ed25519 identity key of its own (`client/privacy/trust.py`), made at
enrolment, and holds the others' public halves from a list that the operator signed offline: Flower's
node keys will not do, since devices know each other's only from the server. Not covered, even then: a
server that tells devices different survivors (the paper's consistency round is left out), or owns
devices that are on the list. Devices that lie can spoil a round, not read it: nobody can see that an
update is absurd. Never sum the same update twice among other devices: the difference is somebody's.

Cost: each device expands one mask for each other one, so that work grows with the square of their
number: tens of devices, not thousands (the neighbour graphs of Bell et al. 2020 are left out). Flower's
own SecAgg+ is no alternative: it wants its legacy context, one vector of equal length from all, and one
weight for it.
"""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Literal, TypeVar

import numpy as np

from ...protos.fixed_point import FixedPoint
from ...protos.masks import KEY_BYTES, SEAL_BYTES
from ...protos.noise import Entropy
from ...protos.places import Places
from ...protos.secure_messages import (
    Advert,
    Inbox,
    Invitation,
    Masked,
    Reveal,
    Roster,
    SecrecyError,
    Shares,
    Survivors,
)
from ...protos.shamir import SHARE_BYTES
from .advert_keys import check_keys
from .cells import cell_map
from .terms import SecureSums, Terms
from .unmasking import Secret, Unmasking

Phase = Literal["adverts", "shares", "masked", "reveals", "done"]
L = TypeVar("L", Advert, Shares, Masked, Reveal)


class SecureServer:
    """One round: collect from every device, ask all for the next step, and so on to the sums.

    `places` says by name where each device's values lie in the supernet's flat array of `size`.
    `advert`, `shares`, … take one device's answer: SecrecyError where it is refused, and the device
    counts as dropped out. `rosters`, `inboxes`, … end a step and give the next request to each device
    that is left: SecrecyError("threshold") when those are too few, and nothing was revealed.
    """

    def __init__(
        self,
        terms: Terms,
        size: int,
        places: Mapping[str, Places],
        entropy: Entropy = os.urandom,
    ) -> None:
        terms.check(len(places))
        self._terms, self._size, self._places = terms, size, places
        self._names = dict(enumerate(sorted(places), 1))
        self._number = {name: number for number, name in self._names.items()}
        self._session = entropy(16)
        self._phase: Phase = "adverts"
        self._expected = frozenset(self._number.values())
        self._adverts: dict[int, Advert] = {}
        self._committed: dict[Secret, bytes] = {}
        self._letters: dict[int, dict[int, bytes]] = {}
        self._arrived: set[int] = set()
        self._revealed: dict[int, dict[Secret, bytes]] = {}

    def invitations(self) -> dict[str, bytes]:
        """The first request to each device."""
        return self._to(
            self._number.values(),
            lambda holder: Invitation(
                session=self._session,
                holder=holder,
                clients=len(self._places),
                threshold=self._terms.threshold,
            ).to_bytes(),
        )

    def advert(self, name: str, answer: bytes) -> None:
        """A device's keys."""
        found, tail = self._read("adverts", name, Advert, answer, self._adverts)
        if found.name != name:
            raise SecrecyError("sender", f"device {name} calls itself {found.name!r}")
        _whole(name, tail, 0)
        check_keys(found, self._adverts.values())
        self._adverts[found.holder] = found

    def rosters(self) -> dict[str, bytes]:
        """To each device that sent keys: everybody's keys, the cells, and its own runs."""
        self._go_on("adverts", "shares", self._adverts)
        terms, holders = self._terms, sorted(self._adverts)
        self._map = cell_map(self._size, holders, self._at, terms.least_cover, terms.most_cells)
        self._roster = Roster(
            session=self._session,
            clients=len(self._places),
            threshold=terms.threshold,
            least_cover=terms.least_cover,
            bound=terms.bound,
            adverts=tuple(self._adverts[holder] for holder in holders),
            cells=self._map.cells,
        )
        head = self._roster.to_bytes()
        self._binding = Roster.binding(head)
        return self._to(holders, lambda holder: head + self._map.runs_of(self._at(holder)))

    def shares(self, name: str, answer: bytes) -> None:
        """A device's letters to the others."""
        found, tail = self._read("shares", name, Shares, answer, self._letters)
        cells = self._roster.cells_of(found.holder)
        others = [other for other in self._roster.holders if other != found.holder]
        at, size = KEY_BYTES * len(cells), SHARE_BYTES * (1 + len(cells)) + SEAL_BYTES
        _whole(name, tail, at + size * len(others))
        for place, cell in enumerate(cells):
            begin = KEY_BYTES * place
            self._committed[found.holder, cell] = bytes(tail[begin : begin + KEY_BYTES])
        self._letters[found.holder] = {
            other: bytes(tail[at + size * place : at + size * (place + 1)])
            for place, other in enumerate(others)
        }

    def inboxes(self) -> dict[str, bytes]:
        """To each device that sent letters: those for it."""
        self._go_on("shares", "masked", self._letters)
        senders = tuple(sorted(self._letters))
        head = Inbox(session=self._session, holders=senders)
        self._kept = self._roster.kept(frozenset(senders))
        self._total = np.zeros(len(self._map.order), np.uint32)
        return self._to(
            senders,
            lambda to: head.to_bytes(*(self._letters[by][to] for by in senders if by != to)),
        )

    def masked(self, name: str, answer: bytes) -> None:
        """A device's masked values: added up at once, one device's in memory at a time."""
        found, tail = self._read("masked", name, Masked, answer, self._arrived)
        cells = [n for n in self._roster.cells_of(found.holder) if n in self._kept]
        _whole(name, tail, 4 * sum(self._roster.cells[number].size for number in cells))
        words, at = np.frombuffer(tail, "<u4"), 0
        for number in cells:
            span = self._map.span(number)
            size = span.stop - span.start
            self._total[span] += words[at : at + size]
            at += size
        self._arrived.add(found.holder)

    def survivors(self) -> dict[str, bytes]:
        """To each device whose values arrived: who these devices are."""
        self._go_on("masked", "reveals", self._arrived)
        alive = frozenset(self._arrived)
        self._open = Unmasking(self._roster, self._binding, self._map, alive)
        head = Survivors(session=self._session, holders=tuple(sorted(alive)))
        return self._to(alive, lambda _: head.to_bytes())

    def reveal(self, name: str, answer: bytes) -> None:
        """A device's shares of what hides the sum."""
        found, tail = self._read("reveals", name, Reveal, answer, self._revealed)
        needed = self._open.needed(self._letters)
        _whole(name, tail, SHARE_BYTES * len(needed))
        self._revealed[found.holder] = {
            secret: bytes(tail[SHARE_BYTES * place : SHARE_BYTES * (place + 1)])
            for place, secret in enumerate(needed)
        }

    def result(self) -> SecureSums:
        """The sums, in the supernet's order. SecrecyError("share") names whose secret is spoilt."""
        self._go_on("reveals", "done", self._revealed)
        shares = {
            secret: {holder: found[secret] for holder, found in self._revealed.items()}
            for secret in self._open.needed(self._letters)
        }
        self._open.apply(self._total, shares, self._committed)
        point = FixedPoint(self._terms.bound, len(self._places))
        sums, counts = np.zeros(self._size), np.zeros(self._size, np.int32)
        kept = self._roster.kept(self._open.alive)
        for number in kept:
            at = self._map.order[span := self._map.span(number)]
            sums[at] = point.decode(self._total[span])
            counts[at] = len(self._open.alive.intersection(self._roster.cells[number].cover))
        lost = len(self._map.order) - int(np.count_nonzero(counts))
        return SecureSums(sums, counts, point.step, self._map.left_out + lost, len(kept))

    def _read(
        self, phase: Phase, name: str, kind: type[L], answer: bytes, had: Collection[int]
    ) -> tuple[L, memoryview]:
        """An answer that is expected now, of this device, and the first."""
        if self._phase != phase:
            raise SecrecyError(
                "phase", f"device {name}: {kind.__name__} comes too late or too early"
            )
        if self._number.get(name) not in self._expected or self._number[name] in had:
            raise SecrecyError("sender", f"device {name} was asked for nothing, or sent it before")
        found, tail = kind.from_bytes(answer)
        if found.session != self._session:
            raise SecrecyError("session", f"device {name}: {kind.__name__} is of another session")
        if found.holder != self._number[name]:
            raise SecrecyError("sender", f"device {name} answers as number {found.holder}")
        return found, tail

    def _go_on(self, phase: Phase, following: Phase, left: Collection[int]) -> None:
        if self._phase != phase:
            raise SecrecyError("phase", f"the sum is at {self._phase}, not at {phase}")
        if len(left) < self._terms.threshold:
            raise SecrecyError(
                "threshold",
                f"{len(left)} devices are left at {phase}; {self._terms.threshold} are needed. "
                "Nothing was revealed; begin the round anew",
            )
        self._phase = following

    def _to(self, holders: Collection[int], letter: Callable[[int], bytes]) -> dict[str, bytes]:
        self._expected = frozenset(holders)
        return {self._names[holder]: letter(holder) for holder in sorted(holders)}

    def _at(self, holder: int) -> Places:
        return self._places[self._names[holder]]


def _whole(name: str, tail: memoryview, size: int) -> None:
    if len(tail) != size:
        raise SecrecyError("size", f"device {name}: {len(tail)} bytes of data; {size} expected")
