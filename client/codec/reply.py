"""What a device sends back: its trained values, noised ones, or its update as a codec's bytes."""

from pathlib import Path

import numpy as np

from ...protos.codec.wire import decode, encode
from ...protos.device import Device
from ...protos.flower import Values
from ...protos.messages import TrainRequest
from ...protos.noise import GaussianNoise
from ...supernet.axes import Regions, layout
from ...supernet.randomness import stream
from ...supernet.space import Space
from ...supernet.weights import Flat, shapes_of
from ..privacy.local_noise import noised
from .memory import ErrorMemory

_IN_MEMORY: dict[tuple[str, str, Space], ErrorMemory] = {}
"""By device without a folder, run and space, until the process ends: two rounds' residuals, at most
8 bytes for each shared value. A fleet that is too large for that needs folders."""


def reply_values(
    device: Device, body: TrainRequest, space: Space, where: Regions, sent: Flat, trained: Flat
) -> Values:
    """The array of a training reply: float32 values, or uint8 bytes of the encoded change.

    `where` are the weights that are sent back, `sent` and `trained` their values before and after.
    With an error memory, what former rounds' codes lost of these weights is added before, and what
    this one loses is kept. CodecError for values that cannot be encoded, ValueError for those that
    cannot be clipped: a diverged training.
    """
    if body.noise is not None:
        own = noised(trained - sent, body.noise.clip, body.noise.std, GaussianNoise())
        return sent + own
    if body.codec is None:
        return trained
    delta, shapes = trained - sent, shapes_of(where)
    memory = _memory(device.name, device.memory, body.run, space) if body.error_memory else None
    if memory is not None:
        delta = memory.add(body.round, delta, where)
    seed = stream(body.seed, body.round, device.name, "codec").getrandbits(32)
    data = encode(delta, shapes, body.codec, seed)
    if memory is not None:
        memory.keep(body.round, delta - decode(data, shapes, body.codec), where)
    return np.frombuffer(data, np.uint8)


def _memory(device: str, folder: str | None, run: str, space: Space) -> ErrorMemory:
    """A device's memory of a run; in this process only where the device has no folder for it."""
    if folder:
        return ErrorMemory(Path(folder), run, layout(space))
    return _IN_MEMORY.setdefault((device, run, space), ErrorMemory(None, run, layout(space)))
