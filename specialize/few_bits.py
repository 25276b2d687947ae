"""A subnet's kernels in 4 bits: which of them, and in which order its files hold them."""

from collections.abc import Mapping

import torch

from ..supernet.called_layers import WeightLayer, called_layers
from ..supernet.fake_quant import least_bits
from ..supernet.space import Arch, Space


def kernels(space: Space, arch: Arch) -> dict[str, WeightLayer]:
    """Each kernel's name and its layer, in the order in which the files hold them."""
    example = torch.zeros(1, *space.input_shape(arch))
    found = called_layers(space.build(arch).eval(), example)
    return {f"{name}.weight": layer for name, layer in found.items()}


def narrow(space: Space, arch: Arch) -> Mapping[str, int]:
    """Each kernel as narrow as it may be: what `fake_quant.rounded` is to round."""
    return {n: least_bits(tuple(k.weight.shape)) for n, k in kernels(space, arch).items()}
