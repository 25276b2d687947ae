"""Scores of a subnet that need no evaluation and no data, from the shared weights alone.

- `macs`, `params`: its cost.
- `weight_norm`: Σ |w| over the subnet's weights.
- `saliency`: Σ |w·∂L/∂w| over the subnet's weights, of one gradient of the largest subnet on normal
  noise, L the sum of its outputs: the data-free variant of PreNAS (Wang et al., ICML 2023), which
  adds up over nested subnets, so compare it within a size only.

Every one of them is a sum over the selection, so a subnet's takes no forward pass.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..supernet.axes import Weights, regions, take
from ..supernet.cost import cost
from ..supernet.space import Arch, Space
from ..supernet.subnet import static

EXAMPLES = 64

Scores = Mapping[str, Callable[[Arch], float]]


def zero_cost_scores(space: Space, weights: Weights, seed: int) -> Scores:
    """Name → score; `seed` draws the noise that the gradient is taken on."""
    sizes = {name: value.detach().abs() for name, value in weights.items()}
    salient = saliencies(space, weights, seed)
    return {
        "macs": lambda arch: float(cost(space, arch).macs),
        "params": lambda arch: float(cost(space, arch).params),
        "weight_norm": lambda arch: total(space, arch, sizes),
        "saliency": lambda arch: total(space, arch, salient),
    }


def saliencies(space: Space, weights: Weights, seed: int) -> dict[str, Tensor]:
    """|w·∂L/∂w| of every shared weight, in its shape; 0 where the gradient does not reach."""
    largest = space.largest()
    module = static(space, largest, take(weights, regions(space, largest))).train()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, *space.input_shape(largest), generator=generator)
    module(x).sum().backward()
    found = {name: torch.zeros_like(value) for name, value in weights.items()}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            found[name] = (parameter * parameter.grad).detach().abs()
    return found


def total(space: Space, arch: Arch, values: Weights) -> float:
    """Sum of shared values over a subnet's selection."""
    return float(sum(part.sum() for part in take(values, regions(space, arch)).values()))
