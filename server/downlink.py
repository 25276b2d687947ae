"""What each device holds of the shared weights, and the difference that brings it up to date.

A device says what it holds in its profile, and again with each update. Where the server has the very
same state (equal digests), the coming values travel as the encoded difference from it; where it has
not, since the device is new, lost its memory or was longest not asked, they travel as they are. The
server packs and unpacks, and so knows to the bit what its device starts from. What a code loses is
part of the next difference: no other error feedback is needed.

A state's base is always of an earlier round than the state (`held`), and stays beside it on both
sides. So a resumed run finds the states that it had after its checkpoint's round, and gives the bits
of a run that was never stopped.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..protos.codec.difference import decode_difference, encode_difference
from ..protos.codec.errors import CodecError
from ..protos.held import HeldStates
from ..protos.holding import Held, Holding
from ..protos.messages import TrainReply
from ..supernet.axes import layout
from ..supernet.patches import UNKNOWN, Patches, digest, gathered, scattered
from ..supernet.randomness import stream
from ..supernet.space import Space
from ..supernet.weights import Flat, Shapes, shapes_of
from .codec_config import DownlinkSection
from .exchange import Answer
from .fleet import Member
from .intake import Asked
from .train_request import Parcel

MOST_FAILURES = 2
"""A device that fails so often in turn on a difference is sent values as they are from then on."""


@dataclass(slots=True)
class _Said:
    """What a device, reached at a node, last said that it holds."""

    node: int
    holds: tuple[Held, ...]
    on_difference: bool = False
    failures: int = 0


class Downlink:
    """Packs values for devices of one run; what they hold is in `folder`, one folder a device."""

    def __init__(
        self, section: DownlinkSection, run: str, seed: int, space: Space, folder: Path
    ) -> None:
        self._codec, self._most = section.codec(), section.devices
        self._run, self._seed, self._space, self._folder = run, seed, space, folder
        self._said: dict[str, _Said] = {}

    def pack(self, asked: Asked, now: Flat) -> Parcel:
        """The subnet's values for the device that is asked, and what it will have of them."""
        states, said = self._states(asked.member.name), self._said_by(asked.member)
        base, before = self._base(states, said, asked.number)
        where = asked.assigned.regions(self._space)
        parcel = Parcel(now, now)
        if base is not None:
            seed = stream(self._seed, asked.number, asked.member.name, "downlink").getrandbits(32)
            parcel = self._packed(gathered(before, where, UNKNOWN), now, shapes_of(where), seed)
        said.on_difference = parcel.array is not now
        after = scattered(before, where, parcel.values, UNKNOWN)
        self._make_room(asked.member.name)
        states.keep(asked.number, after, base)
        holding = Holding(codec=self._codec, base=base, digest=digest(after))
        return Parcel(parcel.array, parcel.values, holding)

    def answered(self, asked: Asked, answer: Answer[TrainReply]) -> None:
        """Note what a device says it holds; of one that failed nothing is expected any more."""
        said = self._said_by(asked.member)
        if answer.silent:
            return
        said.holds = answer.body.holds if answer.body is not None else ()
        if said.on_difference:
            said.failures = said.failures + 1 if answer.body is None else 0

    def _said_by(self, member: Member) -> _Said:
        said = self._said.get(member.name)
        # A device that came back as another node told its profile anew.
        if said is None or said.node != member.node:
            said = self._said[member.name] = _Said(member.node, member.profile.holds)
        return said

    def _base(self, states: HeldStates, said: _Said, number: int) -> tuple[Held | None, Patches]:
        if said.failures < MOST_FAILURES:
            for held in sorted(said.holds, key=lambda one: one.round, reverse=True):
                state = states.find(held) if held.round < number else None
                if state is not None:
                    return held, state
        return None, {}

    def _packed(self, held: Flat, now: Flat, shapes: Shapes, seed: int) -> Parcel:
        """The values as a difference; as they are where that takes less room, or cannot be made."""
        try:
            data = encode_difference(held, now, shapes, self._codec, seed)
            values = decode_difference(held, data, shapes, self._codec)
        except CodecError:
            return Parcel(now, now)
        return Parcel(data, values) if data.nbytes < now.nbytes else Parcel(now, now)

    def _states(self, device: str) -> HeldStates:
        return HeldStates(self._folder / device, self._run, layout(self._space))

    def _make_room(self, device: str) -> None:
        """Before a new device's states are kept, forget those of others beyond the limit."""
        if not self._folder.exists() or (self._folder / device).exists():
            return
        others = [path.name for path in self._folder.iterdir()]
        others.sort(key=lambda name: (self._states(name).latest, name))
        for name in others[: max(len(others) + 1 - self._most, 0)]:
            shutil.rmtree(self._folder / name, ignore_errors=True)
