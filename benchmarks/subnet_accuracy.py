"""Accuracy of subnets of a trained supernet: norm statistics from training data, then a count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fedofa.client.data import Floats, Labels
from fedofa.server.samplers.assigned import Assigned
from fedofa.supernet.axes import take
from fedofa.supernet.batch import resized
from fedofa.supernet.batchnorm import collect, load
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import static
from torch import Tensor, nn

BATCH = 100


@dataclass(frozen=True, slots=True)
class Pooled:
    """Normalized examples of all clients together, a few of each: what merged statistics give."""

    x: Floats
    y: Labels


def recalibrated(
    space: Space, assigned: Assigned, weights: Mapping[str, Tensor], train: Pooled
) -> nn.Module:
    """The subnet as a static module, its norm statistics from the pooled training examples."""
    module = static(space, assigned.arch, take(weights, assigned.regions(space)))
    load(module, collect(module, _batches(space, assigned.arch, train.x)))
    return module.eval()


def accuracy(space: Space, arch: Arch, module: nn.Module, data: Pooled) -> float:
    """Share of right answers."""
    right = 0
    with torch.inference_mode():
        for place, x in enumerate(_batches(space, arch, data.x)):
            labels = torch.from_numpy(data.y[place * BATCH : (place + 1) * BATCH])
            right += int((module(x).argmax(1) == labels).sum())
    return right / len(data.y)


def _batches(space: Space, arch: Arch, x: Floats) -> Iterator[Tensor]:
    for begin in range(0, len(x), BATCH):
        if len(x) - begin >= 2:
            yield resized(torch.from_numpy(x[begin : begin + BATCH]), space.input_shape(arch))


def pooled(parts: Sequence[tuple[Floats, Labels]], each: int, seed: int) -> Pooled:
    """Up to `each` examples of every client, drawn without replacement."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(len(y))[:each] for _, y in parts]
    return Pooled(
        np.concatenate([x[r] for (x, _), r in zip(parts, rows, strict=True)]),
        np.concatenate([y[r] for (_, y), r in zip(parts, rows, strict=True)]),
    )
