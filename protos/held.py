"""What a device holds of a run's shared weights, on the device and in the server's copy of it.

A device is sent another subnet every round; what it holds is the last value that it was sent of each
weight, kept where it belongs in the shared weights. Every request makes a new state of one that both
sides have, its base. A state is known by its digest, the round only says where to look: what a device
says it holds is used where the server has the very same, and nothing else is.

The base stays beside the new state, on both sides. So whether a request or its reply is lost, the
device is late, or the server resumes an earlier round, there is a state that both have.
"""

from pathlib import Path

from ..supernet.axes import Layout
from ..supernet.patches import UNKNOWN, Patches, digest
from .holding import MOST_HELD, Held
from .patch_files import Owner, PatchFiles


class HeldStates:
    """One device's states in one run, in a folder of their own, or in memory only without one."""

    def __init__(self, folder: Path | None, run: str, layout: Layout) -> None:
        self._files = PatchFiles(folder, Owner("held values", run, layout, UNKNOWN))

    def all(self) -> tuple[Held, ...]:
        """What there is, the latest last."""
        rounds = self._files.rounds()[-MOST_HELD:]
        states = [(number, self._files.read(number)) for number in rounds]
        return tuple(
            Held(round=n, digest=digest(state)) for n, state in states if state is not None
        )

    @property
    def latest(self) -> int:
        """The round of the latest state; 0 where there is none."""
        return max(self._files.rounds(), default=0)

    def find(self, held: Held) -> Patches | None:
        """This very state; None where it is not there."""
        state = self._files.read(held.round)
        return state if state is not None and digest(state) == held.digest else None

    def keep(self, round_number: int, state: Patches, base: Held | None) -> None:
        """Put the state after a round beside its base; others are removed.

        ArtifactError where it cannot be written.
        """
        self._files.write(round_number, state, [] if base is None else [base.round])
