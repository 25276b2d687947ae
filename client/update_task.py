"""The work of a round on a device: train the assigned subnet, and what that changed."""

import time
from dataclasses import dataclass

import numpy as np

from ..protos.device import Device
from ..protos.flower import Values
from ..protos.holding import Held
from ..protos.messages import MessageError, TrainRequest, tensor_shapes
from ..supernet.axes import Regions, regions, rolled_regions, without
from ..supernet.families.catalogue import space_from_dict
from ..supernet.space import Arch, Space
from ..supernet.weights import Flat, part, shapes_of, split
from .codec.held import received
from .device import data, declared
from .local_tensors import local_tensors
from .training import LocalTask, Trained, train


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """The values that leave the device, `before` and `after` training; `leaving` says where they lie.

    `holds` is what the device holds of the run's weights now.
    """

    space: Space
    arch: Arch
    leaving: Regions
    before: Flat
    after: Flat
    done: Trained
    examples: int
    seconds: float
    holds: tuple[Held, ...]


def local_update(device: Device, body: TrainRequest, values: Values | None) -> LocalUpdate:
    """Train the assigned subnet; tensors that are to stay, stay. MessageError for a wrong request."""
    begin = time.perf_counter()
    space = space_from_dict(body.space)
    arch = space.arch(body.arch)
    where = rolled_regions(space, arch, body.offset) if body.offset else regions(space, arch)
    shapes, staying = shapes_of(where), {*body.local, *body.frozen}
    if body.tensors != tensor_shapes(shapes) or not staying <= shapes.keys():
        raise MessageError("the manifest does not list the tensors of the assigned subnet")
    sent, holds = received(device, body, space, where, values)
    own = local_tensors(device, body.run, space) if body.local else None
    flat = own.begin(body.round, sent, where, body.local) if own else sent.copy()
    examples = data(device)
    key, bits = (body.seed, body.round, device.name), declared(device).train_bits
    task = LocalTask(space, arch, body.recipe, body.lr, key, bits, frozenset(body.frozen))
    x = examples.normalized(examples.train.x)
    done = train(task, split(flat, shapes), x, examples.train.y)
    if own:
        own.keep(body.round, flat, where, body.local)
    leaving = without(where, staying)
    before, after = (part(values, shapes, leaving.keys()) for values in (sent, flat))
    seconds = time.perf_counter() - begin
    count = len(examples.train)
    return LocalUpdate(space, arch, leaving, before, after, done, count, seconds, holds)


def floats(values: Values | None) -> Flat:
    """A message's array of weights; MessageError where it holds something else."""
    if values is None or values.dtype != np.float32:
        raise MessageError("a float32 array of weights is expected")
    return values  # type: ignore[return-value]


def octets(values: Values | None, what: str) -> bytes:
    """A message's array of bytes; MessageError where it holds something else."""
    if values is None or values.dtype != np.uint8:
        raise MessageError(f"a uint8 array of {what} is expected")
    return values.tobytes()
