"""Channels scaled so that neighbouring layers share their ranges; the function stays the same.

Cross-layer equalization (Nagel et al. 2019, Data-Free Quantization): where a layer's output goes
through a ReLU to one other layer and nowhere else, channel c may be divided by s_c in the one and
multiplied by it in the other. s_c = √(r1_c / r2_c), the largest weights of channel c in both, gives
both the range √(r1_c · r2_c). Over a chain it is repeated until nothing changes.

It serves weights in steps of a whole tensor. In steps of a channel each output channel has a range
of its own anyway; the other layer's input channels still gain or lose.
"""

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..supernet.called_layers import WeightLayer as Layer
from ..supernet.fx_folding import traced

HOMOGENEOUS = (
    nn.ReLU, nn.Identity, nn.Dropout, nn.Flatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d,
)  # fmt: skip
"""Layers f with f(s · x) = s · f(x) for s > 0, channel by channel."""
FUNCTIONS = (torch.relu, nn.functional.relu, "relu")
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
ROUNDS, DONE = 40, 1e-3
LARGEST_SCALE = 2.0**10


@dataclass(frozen=True, slots=True)
class Equalized:
    """The network, and how many pairs of layers were equalized."""

    module: nn.Module
    pairs: int


def equalized(module: nn.Module) -> Equalized:
    """A copy in evaluation mode that computes the same; batch normalization must be folded.

    Nothing is changed where the network cannot be traced, or has no such pair.
    """
    found = copy.deepcopy(module).eval()
    pairs = _pairs(found)
    with torch.no_grad():
        for _ in range(ROUNDS):
            moved = max((_equalize(*pair) for pair in pairs), default=0.0)
            if moved < DONE:
                break
    return Equalized(found, len(pairs))


def _pairs(module: nn.Module) -> list[tuple[Layer, Layer]]:
    if (graph := traced(module)) is None:
        return []
    modules = dict(module.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")

    def called(node: fx.Node) -> nn.Module | None:
        return modules[str(node.target)] if node.op == "call_module" else None

    found = []
    for node in graph.nodes:
        first, after = called(node), node
        while isinstance(first, LAYERS) and len(after.users) == 1:
            (after,) = after.users
            second = called(after)
            if isinstance(second, LAYERS):
                once = calls[str(node.target)] == calls[str(after.target)] == 1
                if once and _fits(first, second):
                    found.append((first, second))
                break
            if not isinstance(second, HOMOGENEOUS) and after.target not in FUNCTIONS:
                break
    return found


def _fits(first: Layer, second: Layer) -> bool:
    """The same channels on both sides: a flattened map has more inputs than channels."""
    groups = _groups(second)
    inside = groups * second.weight.shape[1]
    return first.weight.shape[0] == inside and groups in (1, inside)


def _groups(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _equalize(first: Layer, second: Layer) -> float:
    """Returns the largest change of a channel's scale, as |log₂ s|."""
    depthwise = _groups(second) > 1
    mine = _largest(first.weight, 0)
    theirs = _largest(second.weight, 0 if depthwise else 1)
    scale = (mine / theirs).sqrt().clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
    # A channel without weights on one side stays: any scale would do, and 0 or ∞ would not.
    scale = torch.where((mine > 0) & (theirs > 0), scale, 1.0)
    first.weight.div_(_along(scale, first.weight, 0))
    if first.bias is not None:
        first.bias.div_(scale)
    second.weight.mul_(_along(scale, second.weight, 0 if depthwise else 1))
    return float(scale.log2().abs().max())


def _largest(weight: Tensor, dim: int) -> Tensor:
    return weight.detach().abs().movedim(dim, 0).flatten(1).amax(1)


def _along(scale: Tensor, weight: Tensor, dim: int) -> Tensor:
    shape = [1] * weight.dim()
    shape[dim] = -1
    return scale.view(shape)
