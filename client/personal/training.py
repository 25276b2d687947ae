"""Training the changes of a network on a device's own examples."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from ...protos.data import Examples
from ...supernet.batch import shuffled
from ...supernet.errors import RunError, UsageError
from ...supernet.optimizers import Sgd
from ...supernet.randomness import array_stream
from .adapter import Change
from .methods import METHODS, Method, parts
from .network import Network

MOMENTUM = 0.9
CLIP_NORM = 1.0
"""Folded norm layers leave large weights: without a bound one step may undo the network."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How changes are trained: SGD with momentum, `epochs` passes in batches.

    `penalty` is λ of TAPS, counted after the first `free_epochs`; the other methods have none.
    UsageError names a value that is not allowed.
    """

    method: Method = "taps"
    epochs: int = 30
    lr: float = 0.01
    batch_size: int = 32
    penalty: float = 1.0
    free_epochs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r}: allowed: {', '.join(METHODS)}")
        for name, least in (("epochs", 1), ("batch_size", 2), ("free_epochs", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)}; at least {least}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr = {self.lr}; a number above 0 is expected")
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise UsageError(f"penalty = {self.penalty}; a number of at least 0 is expected")


def trained(
    network: Network,
    examples: Examples,
    schedule: Schedule,
    limits: tuple[float, float] | None = None,
    tell: Callable[[int, float], None] = lambda _epoch, _loss: None,
) -> dict[str, Change]:
    """Changes by layer, learned on normalized examples at any resolution.

    Logits beyond `limits` count as the limit, as in a file that cannot give more; their gradient passes
    as it is. `tell` gets each epoch and its mean loss. RunError when it diverges.
    """
    moving = parts(network, schedule.method)
    optimizer = Sgd(moving.leaves(), schedule.lr, MOMENTUM)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    size = min(schedule.batch_size, len(y))
    # As far as a constant gradient of this size would move a score with momentum.
    strength = schedule.lr / (1 - MOMENTUM) * schedule.penalty
    for epoch in range(schedule.epochs):
        if 3 * epoch >= 2 * schedule.epochs:
            moving.settle()
        losses = []
        rng = array_stream(schedule.seed, "personal", epoch)
        for batch in shuffled(x, y, size, rng):
            logits = network.logits(batch.inputs(network.input_shape), moving.tensors())
            if limits is not None:
                logits = logits + (logits.clamp(*limits) - logits).detach()
            loss = cross_entropy(logits, batch.labels_b)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(moving.values(), CLIP_NORM)
            optimizer.step()
            moving.shrink(strength if epoch >= schedule.free_epochs else 0.0)
            losses.append(float(loss.detach()))
        mean = sum(losses) / len(losses)
        finite = all(bool(leaf.isfinite().all()) for leaf in moving.leaves())
        if not (finite and math.isfinite(mean)):
            raise RunError(f"personalization diverged in epoch {epoch + 1}; give a smaller --lr")
        tell(epoch, mean)
    return moving.changes()
