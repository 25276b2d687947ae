"""Which shared weights some devices cannot train: beyond the largest subnet of each of them."""

from collections.abc import Iterable

import torch

from ...supernet.axes import layout, put, regions
from ...supernet.space import Space
from ..limits import Limits
from ..samplers.drawing import largest_fit
from ..sharing import shown


def untrained(space: Space, limits: Iterable[Limits], seed: int) -> tuple[float, str]:
    """The share of the shared values outside all devices' largest subnets, and in which tensors.

    An estimate where budgets bind: another subnet that fits may hold some of them.
    """
    shared = layout(space)
    missed = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in shared.items()}
    for arch in {largest_fit(space, bounds, seed) for bounds in dict.fromkeys(limits)}:
        for name, region in regions(space, arch).items():
            put(missed[name], region, values=False)
    names = [name for name, mask in missed.items() if mask.any()]
    share = sum(int(mask.sum()) for mask in missed.values()) / sum(
        m.numel() for m in missed.values()
    )
    return share, shown(names)
