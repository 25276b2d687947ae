"""Second moments of what kernels multiply, from which errors of their weights can be made up for.

Each output of a convolution or linear layer is a row of its kernel times x, a patch of the layer's
inputs. An error e of the row changes it by e · x, in the mean of squares by eᵀ E[x xᵀ] e: the measure
of Optimal Brain Surgeon (Hassibi & Stork 1993) and GPTQ (Frantar et al. 2023), layer by layer. Sums of
x xᵀ add up over devices, like norm statistics.

Of the matrix only blocks on the diagonal are kept: a kernel over d inputs has at most
(BLOCK + 1) / 2 · d numbers to send instead of (d + 1) / 2 · d, and errors are made up for within a block.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .called_layers import WeightLayer, kernels
from .fake_quant import least_bits
from .folding import folded
from .space import Arch, Space

BLOCK = 128
"""Inputs in a block at most: of whole channels, or a part of one that has more."""
AT_ONCE = 2**20
"""Numbers of patches in memory at once, at least one example's."""

Matrix = NDArray[np.float64]
SecondMoments = Mapping[str, tuple[Matrix, ...]]
"""Kernel → the blocks in the order of its inputs, (b, b) each, of one size but for the last."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A kernel whose inputs can be observed: its shape, and how many patches one example has."""

    shape: tuple[int, ...]
    patches: int

    @property
    def macs(self) -> int:
        """What the sums of one example cost."""
        return self.patches * sum(size * size for size in blocks(self.shape))


def blocks(kernel_shape: Sequence[int]) -> list[int]:
    """The sizes of a kernel's blocks; (outputs, inputs, …)."""
    inputs, taps = math.prod(kernel_shape[1:]), math.prod(kernel_shape[2:])
    each = BLOCK // taps * taps or BLOCK
    return [min(each, inputs - at) for at in range(0, inputs, each)]


@lru_cache(maxsize=1024)
def observed(space: Space, arch: Arch) -> Mapping[str, Observed]:
    """The kernels that a file of 4 bits narrows and whose inputs can be observed, in called order.

    None of a network in which a normalization stays: LiteRT's converter multiplies its scales into the
    kernels behind it, whose levels are others then.
    """
    if any(_scales(layer) for layer in folded(space.build(arch).eval()).modules()):
        return {}
    held = kernels(space, arch)
    mine = {
        name: kernel
        for name, kernel in held.items()
        if least_bits(tuple(kernel.weight.shape)) == 4 and _plain(kernel.layer)
    }
    with torch.device("meta"):
        module, x = space.build(arch).eval(), torch.empty(1, *space.input_shape(arch))
    patches = dict.fromkeys(mine, 0)
    handles = []
    for name in mine:

        def note(layer: Any, _x: object, y: Tensor, name: str = name) -> None:
            patches[name] += y.numel() // layer.weight.shape[0]

        handles.append(_layer(module, name).register_forward_hook(note))
    with torch.no_grad():
        module(x)
    return {n: Observed(tuple(k.weight.shape), patches[n]) for n, k in mine.items()}


def collect(
    module: nn.Module, names: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, tuple[Matrix, ...]]:
    """Kernel → sums of x xᵀ over all patches of these batches, as the module runs them."""
    found: dict[str, tuple[Matrix, ...]] = {}
    handles = []
    for name in names:
        layer = _layer(module, name)
        sizes = blocks(layer.weight.shape)
        found[name] = tuple(np.zeros((size, size)) for size in sizes)

        def note(
            layer: nn.Module,
            inputs: tuple[Tensor, ...],
            named: dict[str, Tensor],
            name: str = name,
            sizes: list[int] = sizes,
        ) -> None:
            x = inputs[0] if inputs else named["input"]
            for rows in _patches(layer, x.detach()):
                for total, part in zip(found[name], torch.split(rows, sizes, 1), strict=True):
                    total += (part.T @ part).double().numpy()

        handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with torch.no_grad():
            for x in batches:
                module(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def flat(moments: SecondMoments) -> list[NDArray[np.float32]]:
    """As they travel: each block's upper triangle, row by row."""
    return [
        block[np.triu_indices(len(block))].astype(np.float32)
        for mine in moments.values()
        for block in mine
    ]


def whole(triangle: NDArray[np.float32], size: int) -> Matrix:
    """A block of its upper triangle."""
    found = np.zeros((size, size))
    found[np.triu_indices(size)] = triangle
    return found + np.triu(found, 1).T


def merge(parts: Sequence[SecondMoments]) -> dict[str, tuple[Matrix, ...]]:
    """Sums of several devices' sums of the same kernels."""
    return {
        name: tuple(
            np.sum(same, axis=0) for same in zip(*(part[name] for part in parts), strict=True)
        )
        for name in parts[0]
    }


def _scales(layer: nn.Module) -> bool:
    norms = nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase
    return isinstance(layer, norms) and layer.weight is not None


def _plain(layer: WeightLayer | nn.MultiheadAttention) -> bool:
    """Whether patches can be cut from its inputs, all of them for each output."""
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return isinstance(layer, nn.Linear)
    return (
        layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )


def _layer(module: nn.Module, kernel: str) -> Any:
    return module.get_submodule(kernel.removesuffix(".weight"))


def _patches(layer: Any, x: Tensor) -> Iterable[Tensor]:
    """The layer's inputs as rows, (patches, inputs of an output), some examples at a time."""
    if isinstance(layer, nn.Linear):
        yield x.reshape(-1, x.shape[-1])
        return
    geometry = [layer.kernel_size, layer.dilation, layer.padding, layer.stride]
    if isinstance(layer, nn.Conv1d):  # an image of one line
        x = x.unsqueeze(2)
        geometry = [
            (neutral, each[0]) for neutral, each in zip((1, 1, 0, 1), geometry, strict=True)
        ]
    inputs = math.prod(layer.weight.shape[1:])
    size = max(1, AT_ONCE // (inputs * x[0, 0].numel()))
    for some in torch.split(x, size):
        yield F.unfold(some, *geometry).transpose(1, 2).reshape(-1, inputs)
