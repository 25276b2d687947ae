"""A training request's values on the device: as they came, or added to what it holds of the run."""

import logging
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...protos.codec.difference import decode_difference
from ...protos.device import Device
from ...protos.flower import Values
from ...protos.held import HeldStates
from ...protos.holding import RUNS_HELD, Held, Holding
from ...protos.messages import MessageError, TrainRequest
from ...supernet.axes import Regions, layout
from ...supernet.errors import ArtifactError
from ...supernet.patches import UNKNOWN, Patches, cells, digest, gathered, scattered
from ...supernet.space import Space
from ...supernet.weights import Flat, shapes_of, size_of

_log = logging.getLogger(__name__)

FOLDER = "held"
REMEMBERED_RUNS = 64
MOST_VALUES = 2**27
"""Of a larger supernet, half a GB of values, a device holds nothing."""


def received(
    device: Device, body: TrainRequest, space: Space, where: Regions, values: Values | None
) -> tuple[Flat, tuple[Held, ...]]:
    """The values of the weights in `where` that a request brings, and what the device holds then.

    Whatever a request says, no more memory is taken than a small multiple of its own bytes and of
    what is held, `MOST_VALUES` at most. MessageError where the device does not hold what it is to
    add to, or ends with other values than the server: values as they are will do then. CodecError
    for bytes that are no difference.
    """
    if body.holding is None:
        return _whole(values, where), ()
    states = held_states(device, body.run, space)
    before = _base(device, states, body.holding)
    flat = _values(body.holding, before, where, values)
    if size_of({name: tensor.shape for name, tensor in layout(space).items()}) > MOST_VALUES:
        return flat, ()
    after = scattered(before, where, flat, UNKNOWN)
    if digest(after) != body.holding.digest:
        raise MessageError(f"device {device.name} would hold other values than the server thinks")
    return flat, _kept(device, body, states, after)


def held_states(device: Device, run: str, space: Space) -> HeldStates:
    """What a device holds of a run; in this process only where it has no folder."""
    return _of_run(device.memory_of(FOLDER, run), device.name, run, space)


@lru_cache(maxsize=REMEMBERED_RUNS)
def _of_run(folder: Path | None, device: str, run: str, space: Space) -> HeldStates:
    return HeldStates(folder, run, layout(space))


def _base(device: Device, states: HeldStates, holding: Holding) -> Patches:
    if holding.base is None:
        return {}
    found = states.find(holding.base)
    if found is None:
        raise MessageError(
            f"device {device.name} no longer holds what it was sent in round {holding.base.round}"
        )
    return found


def _values(holding: Holding, before: Patches, where: Regions, values: Values | None) -> Flat:
    if values is None or values.dtype != np.uint8:
        return _whole(values, where)
    # Few bytes can promise any number of values; honest ones change what is held, or bring the rest.
    size, most = size_of(shapes_of(where)), cells(before) + len(values) // 4
    if size > most:
        raise MessageError(f"difference of {size} values; {most} are held, or can be in it")
    held = gathered(before, where, UNKNOWN)
    return decode_difference(held, values.view(np.uint8), shapes_of(where), holding.codec)


def _whole(values: Values | None, where: Regions) -> Flat:
    size = size_of(shapes_of(where))
    if values is None or values.dtype != np.float32 or values.shape != (size,):
        found = "nothing" if values is None else f"{values.dtype} of {values.shape}"
        raise MessageError(f"float32 array of {size} weights expected, {found} came")
    return values.astype(np.float32, copy=False)


def _kept(
    device: Device, body: TrainRequest, states: HeldStates, after: Patches
) -> tuple[Held, ...]:
    """Keep the new state; what is held then, which is nothing where there is no room for it."""
    holding = body.holding
    if holding is None:
        return ()
    try:
        _make_room(device.memory_of(FOLDER, body.run))
        states.keep(body.round, after, holding.base)
    except ArtifactError as error:
        _log.warning("%s; the next values will come as they are", error)
        return ()
    base = () if holding.base is None else (holding.base,)
    return (*base, Held(round=body.round, digest=holding.digest))


def _make_room(folder: Path | None) -> None:
    """Remove what is held of runs that it was longest not asked in, before a new one's folder is made."""
    if folder is None or folder.exists() or not folder.parent.exists():
        return
    others = sorted(folder.parent.iterdir(), key=lambda other: other.stat().st_mtime)
    for old in others[: max(len(others) + 1 - RUNS_HELD, 0)]:
        shutil.rmtree(old, ignore_errors=True)
