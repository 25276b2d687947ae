"""The layers with weights in the order in which a network runs them: that of its files."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fake_quant import least_bits
from .space import Arch, Space

WeightLayer = nn.Conv1d | nn.Conv2d | nn.Linear
PROJECTIONS = (
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"
)  # fmt: skip
"""Of an attention, those that it has."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A weight that a file holds as a kernel, and the layer that it is of."""

    weight: Tensor
    layer: WeightLayer | nn.MultiheadAttention


def called_layers(module: nn.Module, example: Tensor) -> dict[str, WeightLayer]:
    """Name → layer, by running an input (1, …); one that runs twice stands where it runs first."""
    called = _called(module, example)
    return {name: layer for name, layer in called.items() if isinstance(layer, WeightLayer)}


def kernels(space: Space, arch: Arch) -> dict[str, Kernel]:
    """Each kernel by its name, in the order in which the architecture runs them.

    PyTorch's attention has its projections in itself and runs no layer for them.
    """
    module, found = space.build(arch).eval(), dict[str, Kernel]()
    for name, layer in _called(module, torch.zeros(1, *space.input_shape(arch))).items():
        for weight in PROJECTIONS if isinstance(layer, nn.MultiheadAttention) else ("weight",):
            owner, _, last = f"{name}.{weight}".rpartition(".")
            if (value := getattr(module.get_submodule(owner), last)) is not None:
                found[f"{owner}.{last}"] = Kernel(value, layer)
    return found


def _called(module: nn.Module, example: Tensor) -> dict[str, WeightLayer | nn.MultiheadAttention]:
    called: dict[str, WeightLayer | nn.MultiheadAttention] = {}
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, WeightLayer | nn.MultiheadAttention):

            def note(layer: nn.Module, _x: object, _y: object, name: str = name) -> None:
                called.setdefault(name, layer)  # type: ignore[arg-type]

            hooks.append(layer.register_forward_hook(note))
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return called


def narrow(space: Space, arch: Arch) -> dict[str, int]:
    """Each kernel as narrow as a file of 4 bits holds it: what `fake_quant.rounded` is to round."""
    return {n: least_bits(tuple(k.weight.shape)) for n, k in kernels(space, arch).items()}
