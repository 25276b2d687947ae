"""Which of a device's examples each step of a round takes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..protos.recipe import Recipe
from ..supernet.batch import Batch, shuffled
from ..supernet.randomness import array_stream
from .data import Floats, Labels


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
        for batch in shuffled(examples, labels, size, array_stream(*key, "batches", epoch)):
            if number == recipe.steps:
                break
            yield Step(epoch, number, batch)
            number += 1
        epoch += 1
