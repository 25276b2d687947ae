"""Local training of one assigned subnet, Flower-free: values in, values out."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..protos.recipe import Recipe
from ..supernet.fake_quant import quantized
from ..supernet.precision import FLOAT_BITS
from ..supernet.randomness import stream
from ..supernet.space import Arch, Space
from .allocator import keep_freed_memory
from .batches import steps
from .data import Floats, Labels
from .local_step import LocalStep
from .optimizers import local_optimizer
from .students import Students


@dataclass(frozen=True, slots=True)
class Trained:
    """What one device did: steps, mean loss on labels, multiply-accumulates spent."""

    steps: int
    loss: float
    train_macs: int


@dataclass(frozen=True, slots=True)
class LocalTask:
    """One round's work: which subnet, by which recipe, at which learning rate.

    `key` = (seed, round, device) names the random streams; `bits` is the width of the weights that
    the device trains with; tensors named `frozen` are not trained.
    """

    space: Space
    arch: Arch
    recipe: Recipe
    lr: float
    key: tuple[object, ...]
    bits: int = FLOAT_BITS
    frozen: frozenset[str] = frozenset()


def train(task: LocalTask, values: dict[str, Tensor], x: Floats, y: Labels) -> Trained:
    """Train `values`, the assigned subnet's tensors, in place on (x, y).

    What a step trains and minimizes is the recipe's. With few bits `values` become the rounded
    weights, unless the recipe wants the float ones: those exist on the device for this round only,
    which begins with what it received. UsageError where it cannot train this space or subnet.
    """
    keep_freed_memory()
    recipe, losses = task.recipe, []
    local = LocalStep(task.space, task.arch, recipe, values, torch.from_numpy(y), task.bits)
    local.freeze(task.frozen)
    students = Students(task.space, task.arch, recipe, task.key)
    optimizer = local_optimizer(recipe, local.trained.values(), task.lr)
    sampled = recipe.sample_bits if task.bits == FLOAT_BITS else ()
    for step in steps(x, y, recipe, task.key):
        if sampled:
            local.hold(stream(*task.key, "bits", step.number).choice(sampled))
        drawn = students.of(step, partial(local.rate, step.batch))
        losses.append(local.fill(step.batch, drawn))
        optimizer.step()
    bits = task.bits if recipe.return_quantized else FLOAT_BITS
    for name, value in quantized(local.leaves, bits).items():
        values[name].copy_(value.detach())
    return Trained(len(losses), float(np.mean(losses)), local.macs)
