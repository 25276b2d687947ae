"""What is kept of the shared weights after each of the last rounds, in a folder or in memory.

Each round's state appears as a whole new file; whenever the process dies, the ones before or the new
one are found. A folder with another run's files, or a damaged one, counts as empty.
"""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..supernet.axes import Layout
from ..supernet.errors import ArtifactError
from ..supernet.patches import Patches, from_file, to_bytes
from . import durable

_log = logging.getLogger(__name__)

_FILE = re.compile(r"([0-9]{1,18})\.safetensors")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose states: what they are called in messages, the run, its layout, what stands for nothing."""

    what: str
    run: str
    layout: Layout
    fill: float


class PatchFiles:
    """States after rounds, in a folder of their own, or in memory only without one."""

    def __init__(self, folder: Path | None, owner: Owner) -> None:
        self._folder, self._owner = folder, owner
        self._states: dict[int, Patches] = {}

    def rounds(self) -> list[int]:
        """The rounds whose state is there, ascending."""
        if self._folder is None:
            return sorted(self._states)
        found = [_FILE.fullmatch(path.name) for path in self._folder.glob("*.safetensors")]
        return sorted(int(match[1]) for match in found if match)

    def read(self, round_number: int) -> Patches | None:
        """The state after a round; None where it is not there, another run's, or damaged."""
        # Always from the disk: another process may have answered the last round.
        if self._folder is None:
            return self._states.get(round_number)
        path, owner = _path(self._folder, round_number), self._owner
        if not path.exists():
            return None
        try:
            return from_file(path, owner.run, owner.layout, owner.fill)
        except ArtifactError as error:
            _log.warning("%s: %s; it begins anew", owner.what, error)
            return None

    def before(self, round_number: int) -> Patches:
        """The state before a round: after the last one that was earlier."""
        rounds = self.rounds()
        earlier = [number for number in rounds if number < round_number]
        if earlier:
            return self.read(earlier[-1]) or {}
        if any(number > round_number for number in rounds):
            what = self._owner.what
            _log.warning("%s: nothing from before round %d; it begins anew", what, round_number)
        return {}

    def write(self, round_number: int, after: Patches, keep: Collection[int] | None = None) -> None:
        """Put the state after a round beside those of the rounds `keep`; all others are removed.

        None keeps the last one that is earlier. ArtifactError where it cannot be written.
        """
        others = [number for number in self.rounds() if number != round_number]
        # Later rounds belong to a past that the server has left: gone before anything else.
        later = [number for number in others if number > round_number]
        earlier = [number for number in others if number < round_number]
        kept = earlier[-1:] if keep is None else keep
        old = [number for number in earlier if number not in kept]
        if self._folder is None:
            self._states = {n: s for n, s in self._states.items() if n not in (*later, *old)}
            self._states[round_number] = after
            return
        try:
            durable.make_folder(self._folder)
            _remove(self._folder, later)
            durable.write(_path(self._folder, round_number), to_bytes(after, self._owner.run))
            _remove(self._folder, old)
        except OSError as error:
            what = self._owner.what
            raise ArtifactError(f"{what} {self._folder}: {error.strerror}") from None


def _path(folder: Path, round_number: int) -> Path:
    return folder / f"{round_number}.safetensors"


def _remove(folder: Path, rounds: Collection[int]) -> None:
    for number in rounds:
        _path(folder, number).unlink(missing_ok=True)
