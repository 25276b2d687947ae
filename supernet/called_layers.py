"""The layers with weights in the order in which a network runs them: that of its files."""

import torch
from torch import Tensor, nn

from .fake_quant import least_bits
from .space import Arch, Space

WeightLayer = nn.Conv1d | nn.Conv2d | nn.Linear


def called_layers(module: nn.Module, example: Tensor) -> dict[str, WeightLayer]:
    """Name → layer, by running an input (1, …); one that runs twice stands where it runs first."""
    called: dict[str, WeightLayer] = {}
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, WeightLayer):

            def note(layer: nn.Module, _x: object, _y: object, name: str = name) -> None:
                called.setdefault(name, layer)  # type: ignore[arg-type]

            hooks.append(layer.register_forward_hook(note))
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return called


def kernels(space: Space, arch: Arch) -> dict[str, WeightLayer]:
    """Each kernel's name and its layer, in the order in which the architecture runs them."""
    example = torch.zeros(1, *space.input_shape(arch))
    found = called_layers(space.build(arch).eval(), example)
    return {f"{name}.weight": layer for name, layer in found.items()}


def narrow(space: Space, arch: Arch) -> dict[str, int]:
    """Each kernel as narrow as a file of 4 bits holds it: what `fake_quant.rounded` is to round."""
    return {n: least_bits(tuple(k.weight.shape)) for n, k in kernels(space, arch).items()}
