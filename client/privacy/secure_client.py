"""A device's part in a secure sum: four letters in, four letters out (`protos/secure_messages.py`).

The protocol is Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine
Learning"), for values that unequal sets of devices cover. What it does, why cells, what leaks and what
a cheating server could do: `server/privacy/secure_server.py`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from pydantic import Field

from ...protos.masks import (
    SEAL_BYTES,
    commitment,
    letter_key,
    opened,
    pair_key,
    public_of,
    sealed,
)
from ...protos.noise import Entropy, Flat
from ...protos.secure_messages import (
    Advert,
    Header,
    Inbox,
    Invitation,
    Masked,
    Reveal,
    Roster,
    SecrecyError,
    Shares,
    Survivors,
    ascending,
)
from ...protos.shamir import SHARE_BYTES, drawn_secret, split
from .masking import in_cells, masked
from .trust import Trust

Phase = Literal["idle", "advertised", "shared", "masked"]
L = TypeVar("L", Inbox, Survivors)


class _State(Header):
    """What a device must remember between two letters. It holds secrets: memory, not disk."""

    phase: Phase = "idle"
    invitation: Invitation | None = None
    advert: Advert | None = None
    seal_private: bytes = b""
    mask_private: bytes = b""
    roster: bytes = b""
    seeds: dict[int, bytes] = Field(default_factory=dict)
    """Cell → the seed of this device's own mask."""
    held: dict[int, bytes] = Field(default_factory=dict)
    """Device → this device's shares of its mask key and of its seeds, cell after cell."""


class SecureClient:
    """One device through the four steps of a round; each takes a letter's bytes and returns bytes.

    Each step is taken once and in order, whatever the server asks; a new invitation starts anew.
    `state` holds it between two calls, for a device that starts a process for every message: keep it
    in memory and never give a former one back, or a device would reveal twice.

    Raises SecrecyError for a letter that is refused; the state then stays what it was.
    """

    def __init__(
        self,
        name: str,
        trust: Trust | None = None,
        state: bytes | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._name, self._trust, self._entropy = name, trust or Trust(), entropy
        self._state = _State() if state is None else _State.from_bytes(state)[0]

    @property
    def state(self) -> bytes:
        """What the next call needs, in a later process."""
        return self._state.to_bytes()

    @property
    def bound(self) -> float:
        """The largest value that the sum takes; SecrecyError before and after its shares were sent."""
        state, _ = self._in("shared")
        return Roster.from_bytes(state.roster)[0].bound

    def advertise(self, invitation: bytes) -> bytes:
        """Make this round's keys; the answer has their public halves."""
        found, _ = Invitation.from_bytes(invitation)
        self._trust.check_invitation(found)
        seal_private, mask_private = self._entropy(SHARE_BYTES), drawn_secret(self._entropy)
        advert = self._trust.sign(
            Advert(
                session=found.session,
                holder=found.holder,
                name=self._name,
                seal_key=public_of(seal_private),
                mask_key=public_of(mask_private),
            )
        )
        self._state = _State(
            phase="advertised",
            invitation=found,
            advert=advert,
            seal_private=seal_private,
            mask_private=mask_private,
        )
        return advert.to_bytes()

    def share(self, roster: bytes) -> bytes:
        """Give every other device its shares of this one's secrets, in letters only it can open."""
        state, own = self._in("advertised")
        found, _ = Roster.from_bytes(roster)
        assert state.invitation is not None  # noqa: S101 - as in every phase but idle
        self._trust.check_roster(found, state.invitation, own)
        seeds = {cell: drawn_secret(self._entropy) for cell in found.cells_of(own.holder)}
        pieces = [
            split(secret, found.threshold, found.clients, self._entropy)
            for secret in (state.mask_private, *seeds.values())
        ]
        plain = {to: b"".join(piece[to - 1] for piece in pieces) for to in found.holders}
        binding, letters = Roster.binding(roster), []
        for other in found.adverts:
            if other.holder != own.holder:
                way = (own.holder, other.holder)
                key = _letter_key(state, other, binding, way)
                letters.append(sealed(key, plain[other.holder]))
        self._state = state.model_copy(
            update={
                "phase": "shared",
                "roster": roster,
                "seeds": seeds,
                "held": {own.holder: plain[own.holder]},
            }
        )
        head = Shares(session=own.session, holder=own.holder)
        return head.to_bytes(*map(commitment, seeds.values()), *letters)

    def mask(self, inbox: bytes, values: Flat) -> bytes:
        """The masked values. `values` are this device's own, in ascending order of place."""
        state, own = self._in("shared")
        roster, tail = Roster.from_bytes(state.roster)
        found, letters = self._checked(Inbox, inbox, roster, frozenset(roster.holders))
        held = {**state.held, **self._opened(state, roster, found.holders, letters)}
        words = in_cells(values, bytes(tail), roster, own.holder)
        binding = Roster.binding(state.roster)
        keys = {
            other.holder: _pair_key(state, other, binding)
            for other in roster.adverts
            if other.holder in found.holders and other.holder != own.holder
        }
        words = masked(words, roster, own.holder, state.seeds, keys)
        self._state = state.model_copy(update={"phase": "masked", "held": held})
        head = Masked(session=own.session, holder=own.holder)
        return head.to_bytes(words.astype("<u4", copy=False).tobytes())

    def unmask(self, survivors: bytes) -> bytes:
        """Shares of what hides the survivors' sum: never both secrets of one device."""
        state, own = self._in("masked")
        roster, _ = Roster.from_bytes(state.roster)
        found, _ = self._checked(Survivors, survivors, roster, frozenset(state.held))
        alive = frozenset(found.holders)
        kept, shares = roster.kept(alive), []
        for holder in sorted(state.held):
            held = state.held[holder]
            if holder not in alive:
                shares.append(held[:SHARE_BYTES])
                continue
            for number, cell in enumerate(roster.cells_of(holder), 1):
                if cell in kept:
                    shares.append(held[number * SHARE_BYTES : (number + 1) * SHARE_BYTES])
        self._state = _State()
        return Reveal(session=own.session, holder=own.holder).to_bytes(*shares)

    def _in(self, phase: Phase) -> tuple[_State, Advert]:
        if self._state.phase != phase or self._state.advert is None:
            raise SecrecyError("phase", f"a device that is {self._state.phase} is asked for more")
        return self._state, self._state.advert

    def _checked(
        self, kind: type[L], data: bytes, roster: Roster, among: frozenset[int]
    ) -> tuple[L, memoryview]:
        """A letter that lists devices: enough of them, known ones, this one too."""
        found, tail = kind.from_bytes(data)
        _, own = self._in(self._state.phase)
        if found.session != own.session:
            raise SecrecyError("session", "the letter is of another session")
        listed = frozenset(found.holders)
        if not ascending(found.holders) or not listed <= among or own.holder not in listed:
            raise SecrecyError("survivors", "it lists unknown devices, or this one is missing")
        if len(listed) < roster.threshold:
            raise SecrecyError(
                "threshold", f"{len(listed)} devices are left; {roster.threshold} are needed"
            )
        return found, tail

    def _opened(
        self, state: _State, roster: Roster, senders: tuple[int, ...], letters: memoryview
    ) -> dict[int, bytes]:
        _, own = self._in("shared")
        binding, at, held = Roster.binding(state.roster), 0, {}
        for other in roster.adverts:
            if other.holder == own.holder or other.holder not in senders:
                continue
            size = SHARE_BYTES * (1 + len(roster.cells_of(other.holder))) + SEAL_BYTES
            key = _letter_key(state, other, binding, (other.holder, own.holder))
            try:
                held[other.holder] = opened(key, bytes(letters[at : at + size]))
            except ValueError as error:
                raise SecrecyError("share", f"device {other.name}: {error}") from None
            at += size
        if at != len(letters):
            raise SecrecyError("size", f"letters of {len(letters)} bytes; {at} expected")
        return held


def _letter_key(state: _State, other: Advert, binding: bytes, way: tuple[int, int]) -> bytes:
    with _naming(other):
        return letter_key(state.seal_private, other.seal_key, binding, way)


def _pair_key(state: _State, other: Advert, binding: bytes) -> bytes:
    with _naming(other):
        return pair_key(state.mask_private, other.mask_key, binding)


@contextmanager
def _naming(other: Advert) -> Iterator[None]:
    """A key that gives everybody the same secret is its sender's fault."""
    try:
        yield
    except ValueError:
        raise SecrecyError("key", f"device {other.name} sent a key that everybody knows") from None
