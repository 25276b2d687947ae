"""Mini-batches of examples, at the resolution of whichever subnet asks."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError


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


def shuffled(
    examples: Tensor, labels: Tensor, size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """One pass over the examples in random order; a last batch of one is left out."""
    for rows in torch.split(torch.from_numpy(rng.permutation(len(labels))), size):
        if len(rows) >= 2:  # batch statistics need two examples
            yield Batch(examples[rows], labels[rows])


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
