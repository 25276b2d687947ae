"""The layers with weights in the order in which a network runs them: that of its files."""

import torch
from torch import Tensor, nn

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
