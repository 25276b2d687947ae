"""Local training of one assigned subnet, Flower-free: values in, values out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..protos.messages import Recipe
from ..supernet.cost import cost
from ..supernet.errors import UsageError
from ..supernet.losses import cross_entropy, distillation, logit_shift
from ..supernet.randomness import array_stream, stream
from ..supernet.space import Arch, Space
from ..supernet.subnet import Forward, on_views, static
from .data import Floats, Labels
from .optimizers import local_optimizer


@dataclass(frozen=True, slots=True)
class Trained:
    """What one device did: steps, mean loss on labels, multiply-accumulates spent."""

    steps: int
    loss: float
    train_macs: int


@dataclass(frozen=True, slots=True)
class LocalTask:
    """One round's work: which subnet, by which recipe, at which learning rate.

    `key` = (seed, round, device) names the random streams.
    """

    space: Space
    arch: Arch
    recipe: Recipe
    lr: float
    key: tuple[object, ...]


def train(task: LocalTask, values: dict[str, Tensor], x: Floats, y: Labels) -> Trained:
    """Train `values`, the assigned subnet's tensors, in place on (x, y).

    Without distillation each step is one static module on labels. With it, each step adds the
    smallest and `random_subnets` random subnets inside the assigned one, as views on the same
    values, each learning the assigned one's predictions; the gradients add up (sandwich rule and
    in-place distillation, Yu & Huang 2019, BigNAS, Yu et al. 2020, on the largest subnet that the
    device can afford).
    """
    largest, leaves = _trainable(task, values)
    optimizer = local_optimizer(task.recipe, leaves.values(), task.lr)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    classes = task.space.layers(task.arch)[-1].out_channels
    shift_c = logit_shift(labels, classes, task.recipe.logit_adjustment)
    macs, losses = 0, []
    for epoch, rows in _batches(len(y), task.recipe, task.key):
        x_bchw, y_b = resized(images[rows], task.space.input_shape(task.arch)), labels[rows]
        logits_bc = largest(x_bchw)
        loss = cross_entropy(logits_bc, y_b, task.recipe.label_smoothing, shift_c)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        macs += 3 * len(rows) * cost(task.space, task.arch).macs
        for inner in _students(task, epoch):
            x_small = resized(images[rows], task.space.input_shape(inner))
            student_bc = on_views(task.space, inner, leaves, task.arch)(x_small)
            distillation(student_bc, logits_bc).backward()  # type: ignore[no-untyped-call]
            macs += 3 * len(rows) * cost(task.space, inner).macs
        if task.recipe.clip_norm is not None:
            clip_grad_norm_(leaves.values(), task.recipe.clip_norm)
        optimizer.step()
    for name, leaf in leaves.items():
        values[name].copy_(leaf.detach())
    return Trained(len(losses), float(np.mean(losses)), macs)


def _trainable(task: LocalTask, values: Mapping[str, Tensor]) -> tuple[Forward, dict[str, Tensor]]:
    """The assigned subnet's forward pass, and the tensors that training changes."""
    if not task.recipe.distill:
        module = static(task.space, task.arch, values).train()
        parameters = dict(module.named_parameters())
        return module, {name: parameters[name] for name in values}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    return on_views(task.space, task.arch, leaves, task.arch), leaves


def _students(task: LocalTask, epoch: int) -> list[Arch]:
    """The smallest subnet, and random ones inside the assigned one.

    Drawn anew each epoch and not each step: a shape that a CPU's convolution library has not seen
    costs it twice the time of one that it has.
    """
    if not task.recipe.distill:
        return []
    rng = stream(*task.key, "subnets", epoch)
    drawn = [task.space.sample_within(task.arch, rng) for _ in range(task.recipe.random_subnets)]
    inner = dict.fromkeys([task.space.smallest(), *drawn])
    return [arch for arch in inner if arch != task.arch]


def _batches(
    examples: int, recipe: Recipe, key: tuple[object, ...]
) -> Iterator[tuple[int, Tensor]]:
    """(epoch, row numbers) batch by batch: `steps` of them, or `epochs` passes; none smaller than 2."""
    size = min(recipe.batch_size, examples)
    left = recipe.steps
    epoch = 0
    while left != 0 and (left is not None or epoch < recipe.epochs):
        order = torch.from_numpy(array_stream(*key, "batches", epoch).permutation(examples))
        for rows in torch.split(order, size):
            if len(rows) < 2 or left == 0:  # batch statistics need two examples
                continue
            yield epoch, rows
            left = None if left is None else left - 1
        epoch += 1


def resized(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (B, C, H, W) at a subnet's resolution: bilinear, half-pixel centres, no antialias."""
    if x.dim() == 4:
        # Twice as fast on CPUs as channels first for these small depthwise networks.
        x = x.contiguous(memory_format=torch.channels_last)
    if tuple(x.shape[1:]) == shape:
        return x
    if x.dim() != 4 or x.shape[1] != shape[0]:
        raise UsageError(f"examples have shape {tuple(x.shape[1:])}; the space needs {shape}")
    return torch.nn.functional.interpolate(x, size=shape[1:], mode="bilinear", align_corners=False)
