"""Tensors that a device keeps to itself: trained there, never sent, its own from round to round.

A device trains another subnet every round, so what it has of such a tensor lies where it belongs in
the shared weights; where it has nothing yet, it begins with the values that the server sent.

The state after each of the last two rounds is kept, so that a round that is asked for again begins
where it began.
"""

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..protos.device import Device
from ..protos.messages import MessageError, Personal, SubnetGroup
from ..protos.patch_files import Owner, PatchFiles
from ..supernet.axes import Layout, Regions, layout, regions
from ..supernet.patches import UNKNOWN, Patches, gathered, scattered
from ..supernet.space import Space
from ..supernet.weights import Flat, part, shapes_of, size_of

_log = logging.getLogger(__name__)

FOLDER = "local"


class LocalTensors:
    """What a device keeps of one run, in a folder of its own, or in memory only without one."""

    def __init__(self, folder: Path | None, run: str, layout: Layout) -> None:
        self._files = PatchFiles(folder, Owner("local tensors", run, layout, UNKNOWN))

    def begin(self, round_number: int, sent: Flat, where: Regions, names: Collection[str]) -> Flat:
        """What a round trains from: the values sent, and in these tensors the device's own."""
        return _placed(_only(self._files.before(round_number), names), where, sent)

    def keep(
        self, round_number: int, trained: Flat, where: Regions, names: Collection[str]
    ) -> None:
        """Remember these tensors of what was trained; what the round did not train stays as it is.

        Of a training that diverged nothing is kept. ArtifactError where it cannot be written.
        """
        own = part(trained, shapes_of(where), names)
        if not np.isfinite(own).all():
            _log.warning("local tensors: round %d diverged; those before it stay", round_number)
            return
        before = _only(self._files.before(round_number), names)
        mine = {name: region for name, region in where.items() if name in names}
        self._files.write(round_number, scattered(before, mine, own, UNKNOWN))

    def after(self, round_number: int, names: Collection[str]) -> Patches:
        """What there is of these tensors after a round; empty where the device took no part."""
        return _only(self._files.before(round_number + 1), names)


def own_values(
    device: Device, personal: Personal, space: Space, groups: Collection[SubnetGroup], sent: Flat
) -> Flat:
    """The values of an evaluation with the device's own tensors in each group's hull.

    MessageError where it has none: then there is no model of its own to measure.
    """
    own = local_tensors(device, personal.run, space).after(personal.round, personal.tensors)
    if not own:
        raise MessageError(
            f"device {device.name} keeps no tensors of run {personal.run}: it has no model of its own"
        )
    found = sent.copy()
    for group in groups:
        where = regions(space, space.arch(group.hull))
        piece = slice(group.offset, group.offset + size_of(shapes_of(where)))
        found[piece] = _placed(own, where, found[piece])
    return found


_IN_MEMORY: dict[tuple[str, str, Space], LocalTensors] = {}
"""By device without a folder, run and space, until the process ends: two rounds' tensors, at most
8 bytes for each value that stays on the device. A fleet too large for that needs folders."""


def local_tensors(device: Device, run: str, space: Space) -> LocalTensors:
    """What a device keeps of a run; in this process only where it has no folder."""
    folder = device.memory_of(FOLDER, run)
    if folder is not None:
        return LocalTensors(folder, run, layout(space))
    made = LocalTensors(None, run, layout(space))
    return _IN_MEMORY.setdefault((device.name, run, space), made)


def _only(patches: Patches, names: Collection[str]) -> Patches:
    return {name: patch for name, patch in patches.items() if name in names}


def _placed(own: Patches, where: Regions, sent: Flat) -> Flat:
    mine = gathered(own, where, UNKNOWN)
    return np.where(np.isnan(mine), sent, mine)
