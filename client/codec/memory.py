"""Error feedback (Seide et al. 2014; Karimireddy et al. 2019): what a device still owes the server.

What an encoded update loses is kept and added to a later one, so that over the rounds everything
arrives: the sum of what was decoded is the sum of the true updates less the last residual. A device
trains another subnet every round; what it owes is therefore kept where it belongs in the shared
weights, and waits until a round covers it again.

The residual after each of the last two rounds is kept: a round that is asked for again, since its
reply did not arrive, begins from the residual before it. Each appears as a whole new file; whenever
the process dies, the device finds the ones before or the new one.
"""

import logging
import math
import re
from pathlib import Path

from ...protos import durable
from ...supernet.axes import Layout, Regions, shape_of
from ...supernet.errors import ArtifactError
from ...supernet.weights import Flat, shapes_of, size_of
from .owed import Owed, Residual, from_file, places_of, to_bytes

_log = logging.getLogger(__name__)

_FILE = re.compile(r"([0-9]{1,18})\.safetensors")


class ErrorMemory:
    """What a device owes in one run, in a folder of its own, or in memory only without one.

    A round is `add`, encode, decode, `keep`. A folder with another run's residual, or a damaged one,
    counts as empty. `layout` is that of the run's space.
    """

    def __init__(self, folder: Path | None, run: str, layout: Layout) -> None:
        self._folder, self._run, self._layout = folder, run, layout
        self._after: dict[int, Residual] = {}

    def add(self, round_number: int, delta: Flat, where: Regions) -> Flat:
        """The update with what was owed before this round added, of the weights in `where`."""
        _check(delta, where)
        before, total, begin = self._before(round_number), delta.copy(), 0
        for name, region in where.items():
            end = begin + math.prod(shape_of(region))
            if name in before:
                total[begin:end] += before[name].read(places_of(region)).reshape(-1)
            begin = end
        return total

    def keep(self, round_number: int, residual: Flat, where: Regions) -> None:
        """Remember what this round's update lost; what is owed of other weights stays as it is.

        ArtifactError where it cannot be written: without it the next round would count twice.
        """
        _check(residual, where)
        after, begin = dict(self._before(round_number)), 0
        for name, region in where.items():
            shape = shape_of(region)
            end = begin + math.prod(shape)
            owed = after.get(name, Owed.nothing(len(shape)))
            after[name] = owed.replaced(places_of(region), residual[begin:end].reshape(shape))
            begin = end
        self._store(round_number, after)

    def _before(self, round_number: int) -> Residual:
        """What was owed before a round: after the last one that was earlier."""
        rounds = self._rounds()
        earlier = [number for number in rounds if number < round_number]
        if earlier:
            return self._load(earlier[-1])
        if any(number > round_number for number in rounds):
            _log.warning("error memory: nothing from before round %d; it begins anew", round_number)
        return {}

    def _rounds(self) -> list[int]:
        """The rounds whose residual is there, ascending."""
        if self._folder is None:
            return sorted(self._after)
        found = [_FILE.fullmatch(path.name) for path in self._folder.glob("*.safetensors")]
        return sorted(int(match[1]) for match in found if match)

    def _load(self, round_number: int) -> Residual:
        # Always from the disk: another process may have answered the last round.
        if self._folder is None:
            return self._after[round_number]
        try:
            return from_file(_path(self._folder, round_number), self._run, self._layout) or {}
        except ArtifactError as error:
            _log.warning("error memory: %s; it begins anew", error)
            return {}

    def _store(self, round_number: int, after: Residual) -> None:
        """Later rounds belong to a past that the server has left; of earlier ones the last stays."""
        rounds = self._rounds()
        later = [number for number in rounds if number > round_number]
        earlier = [number for number in rounds if number < round_number]
        if self._folder is None:
            self._after = {n: r for n, r in self._after.items() if n in earlier[-1:]}
            self._after[round_number] = after
            return
        try:
            durable.make_folder(self._folder)
            _remove(self._folder, later)
            durable.write(_path(self._folder, round_number), to_bytes(after, self._run))
            _remove(self._folder, earlier[:-1])
        except OSError as error:
            raise ArtifactError(f"error memory {self._folder}: {error.strerror}") from None


def _path(folder: Path, round_number: int) -> Path:
    return folder / f"{round_number}.safetensors"


def _remove(folder: Path, rounds: list[int]) -> None:
    for number in rounds:
        _path(folder, number).unlink(missing_ok=True)


def _check(values: Flat, where: Regions) -> None:
    if values.shape != (size := size_of(shapes_of(where)),):
        raise ValueError(f"array of {values.shape}; these weights have {size} values")
