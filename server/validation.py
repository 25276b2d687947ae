"""Every update is checked before it counts; a bad one is refused with a stable reason code."""

import math
from dataclasses import dataclass

import numpy as np

from ..protos.codec.config import CodecConfig
from ..protos.codec.errors import CodecError
from ..protos.codec.wire import decode
from ..protos.flower import Values
from ..protos.messages import OwnNoise, TensorShapes, TrainReply
from ..protos.noise import longest
from ..protos.secure_requests import LetterReply, MaskedReply
from ..supernet.errors import RefusedUpdate
from ..supernet.space import Arch
from ..supernet.weights import Flat

SHOWN, LONGEST_NAME = 3, 80
LARGEST_LOSS = 1e6
"""Losses are weighted and added up over the devices: one must not make all of them infinite."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What was asked of one device: run, round, subnet, the values it got, limits.

    `tensors` and `sent` are of what it is to send back. `examples` is what its profile stated. A
    device that adds `noise` moves its values by no more than that does, in place of
    `max_update_ratio` times what was sent.
    """

    run: str
    round: int
    device: str
    arch: Arch
    tensors: TensorShapes
    sent: Flat
    examples: int
    max_update_ratio: float
    codec: CodecConfig | None = None
    noise: OwnNoise | None = None

    @property
    def longest(self) -> float:
        """The largest L2 norm of a change that is accepted."""
        if self.noise is not None:
            return longest(self.noise.clip, self.noise.std, len(self.sent))
        return self.max_update_ratio * max(float(np.linalg.norm(self.sent)), 1.0)


def checked(expected: Expected, reply: TrainReply, values: Values | None) -> Flat:
    """The update's change of each value; RefusedUpdate names the first reason to refuse it.

    Codes: stale_round, device, assignment_mismatch, schema, loss, dtype, shape, codec, non_finite,
    norm, bad_weight.
    """
    _check_header(expected, reply)
    delta = _change(expected, values) if expected.codec is None else _decoded(expected, values)
    _check_norm(expected, delta)
    if reply.examples < 1 or reply.examples != expected.examples:
        raise RefusedUpdate(
            "bad_weight", f"{reply.examples} examples; its profile says {expected.examples}"
        )
    return delta


def check_sender(
    reply: TrainReply | MaskedReply | LetterReply, run: str, number: int, device: str
) -> None:
    """RefusedUpdate for another run's, round's or device's reply."""
    if (reply.run, reply.round) != (run, number):
        raise RefusedUpdate("stale_round", f"it is for run {reply.run}, round {reply.round}")
    if reply.device != device:
        raise RefusedUpdate("device", f"it calls itself {reply.device!r}")


def check_arch(reply: TrainReply | MaskedReply, arch: Arch) -> None:
    """RefusedUpdate for another architecture than was assigned."""
    if dict(reply.arch) != dict(arch):
        raise RefusedUpdate("assignment_mismatch", "it trained another architecture than assigned")


def capped_examples(examples: int, typical_examples: float, max_examples_ratio: float) -> float:
    """How many examples count: no client has more than so many times the fleet's median."""
    return min(float(examples), max_examples_ratio * typical_examples)


def _check_header(expected: Expected, reply: TrainReply) -> None:
    check_sender(reply, expected.run, expected.round, expected.device)
    check_arch(reply, expected.arch)
    if reply.tensors != expected.tensors:
        asked = dict(expected.tensors)
        # Quoted and cut: a stranger's words, which end up on a terminal.
        more = [repr(name[:LONGEST_NAME]) for name, _ in reply.tensors if name not in asked]
        hint = f": it was not to send {', '.join(more[:SHOWN])}" if more else ""
        raise RefusedUpdate("schema", f"its tensors are not those that were asked for{hint}")
    if not 0 <= reply.loss <= LARGEST_LOSS:  # not so either where it is no number
        raise RefusedUpdate("loss", f"it is {reply.loss:g}; 0 to {LARGEST_LOSS:g} is accepted")


def _decoded(expected: Expected, values: Values | None) -> Flat:
    if values is None or values.dtype != np.uint8 or expected.codec is None:
        raise RefusedUpdate("dtype", f"{None if values is None else values.dtype}; uint8 expected")
    try:
        return decode(values.data, dict(expected.tensors), expected.codec)
    except CodecError as error:
        raise RefusedUpdate("codec", str(error)) from None


def _change(expected: Expected, values: Values | None) -> Flat:
    if values is None or values.dtype != np.float32:
        raise RefusedUpdate(
            "dtype", f"{None if values is None else values.dtype}; float32 expected"
        )
    if values.shape != expected.sent.shape:
        raise RefusedUpdate("shape", f"{values.shape}; {expected.sent.shape} expected")
    flat: Flat = values.astype(np.float32, copy=False)
    if not np.isfinite(flat).all():
        raise RefusedUpdate("non_finite", _where(expected, int(np.argmin(np.isfinite(flat)))))
    with np.errstate(over="ignore"):
        return flat - expected.sent


def _check_norm(expected: Expected, delta: Flat) -> None:
    with np.errstate(over="ignore"):  # squares of huge values are infinite, and refused
        moved = float(np.linalg.norm(delta))
        limit = expected.longest
    if not moved <= limit < math.inf:
        raise RefusedUpdate("norm", f"moved by {moved:.3g}; at most {limit:.3g} is accepted")


def _where(expected: Expected, position: int) -> str:
    for name, shape in expected.tensors:
        position -= math.prod(shape)
        if position < 0:
            return name
    return "beyond the last tensor"
