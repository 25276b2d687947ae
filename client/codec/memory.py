"""Error feedback (Seide et al. 2014; Karimireddy et al. 2019): what a device still owes the server.

What an encoded update loses is kept and added to a later one, so that over the rounds everything
arrives: the sum of what was decoded is the sum of the true updates less the last residual. A device
trains another subnet every round; what it owes is therefore kept where it belongs in the shared
weights, and waits until a round covers it again.

The residual after each of the last two rounds is kept: a round that is asked for again, since its
reply did not arrive, begins from the residual before it.
"""

from pathlib import Path

from ...protos.patch_files import Owner, PatchFiles
from ...supernet.axes import Layout, Regions
from ...supernet.patches import NOTHING, gathered, scattered
from ...supernet.weights import Flat, shapes_of, size_of


class ErrorMemory:
    """What a device owes in one run, in a folder of its own, or in memory only without one.

    A round is `add`, encode, decode, `keep`. A folder with another run's residual, or a damaged one,
    counts as empty. `layout` is that of the run's space.
    """

    def __init__(self, folder: Path | None, run: str, layout: Layout) -> None:
        self._files = PatchFiles(folder, Owner("error memory", run, layout, NOTHING))

    def add(self, round_number: int, delta: Flat, where: Regions) -> Flat:
        """The update with what was owed before this round added, of the weights in `where`."""
        if delta.shape != (size := size_of(shapes_of(where)),):
            raise ValueError(f"array of {delta.shape}; these weights have {size} values")
        return delta + gathered(self._files.before(round_number), where, NOTHING)

    def keep(self, round_number: int, residual: Flat, where: Regions) -> None:
        """Remember what this round's update lost; what is owed of other weights stays as it is.

        ArtifactError where it cannot be written: without it the next round would count twice.
        """
        before = self._files.before(round_number)
        self._files.write(round_number, scattered(before, where, residual, NOTHING))
