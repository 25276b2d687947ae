"""Mini-batches of a device's examples, at the resolution of whichever subnet asks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..protos.recipe import Recipe
from ..supernet.errors import UsageError
from ..supernet.randomness import array_stream
from .data import Floats, Labels


class Batch:
    """One mini-batch; inputs of a resolution are made once, however many subnets have it."""

    def __init__(self, examples_b: Tensor, labels_b: Tensor) -> None:
        self.labels_b = labels_b
        self._examples_b = examples_b
        self._resized: dict[tuple[int, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels_b)

    def inputs(self, shape: tuple[int, ...]) -> Tensor:
        """The examples as a subnet of this input shape takes them."""
        if shape not in self._resized:
            self._resized[shape] = resized(self._examples_b, shape)
        return self._resized[shape]


@dataclass(frozen=True, slots=True)
class Step:
    """A batch and its place: which epoch, and which step of the round, from 0."""

    epoch: int
    number: int
    batch: Batch


def steps(x: Floats, y: Labels, recipe: Recipe, key: tuple[object, ...]) -> Iterator[Step]:
    """A round's batches: `recipe.steps` of them or `recipe.epochs` passes; none smaller than 2."""
    examples, labels = torch.from_numpy(x), torch.from_numpy(y)
    size = min(recipe.batch_size, len(y))
    epoch = number = 0
    while number != recipe.steps and (recipe.steps is not None or epoch < recipe.epochs):
        order = torch.from_numpy(array_stream(*key, "batches", epoch).permutation(len(y)))
        for rows in torch.split(order, size):
            if len(rows) < 2 or number == recipe.steps:  # batch statistics need two examples
                continue
            yield Step(epoch, number, Batch(examples[rows], labels[rows]))
            number += 1
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
