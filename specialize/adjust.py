"""A temperature and a shift of the classes, folded into a network's last layer: no operator more.

Logits become logits / T + shift. Temperature scaling (Guo et al. 2017) never changes an answer; the
shift of a changed prior (Menon et al. 2021) does.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..supernet.called_layers import called_layers
from ..supernet.errors import ExportError, UsageError

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Adjustment:
    """logits / temperature + shift; the default changes nothing. An empty shift is none."""

    temperature: float = 1.0
    shift: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.temperature, *self.shift)))
        if not (self.temperature > 0 and finite):
            raise UsageError(
                f"temperature = {self.temperature}, shift = {self.shift}; a temperature above 0 and "
                "finite shifts are expected"
            )

    def __bool__(self) -> bool:
        return self.temperature != 1 or bool(self.shift)

    def applied(self, logits_bc: Tensor) -> Tensor:
        """What the adjusted network gives in place of these logits."""
        found = logits_bc / self.temperature
        return found + found.new_tensor(self.shift) if self.shift else found


AS_TRAINED = Adjustment()


def adjusted(module: nn.Module, example: Tensor, adjustment: Adjustment) -> nn.Module:
    """A copy in evaluation mode with the adjustment in the weights of the layer that runs last.

    `example` is an input (1, …). ExportError when that layer is not what gives the logits: the
    result is compared with the adjusted logits of random inputs.
    """
    if not adjustment:
        return module
    found = copy.deepcopy(module).eval()
    layers = list(called_layers(found, example).values())
    if not layers:
        raise ExportError(
            "temperature and prior: the network has no linear layer to fold them into"
        )
    last = layers[-1]
    with torch.no_grad():
        classes = last.weight.shape[0]
        if adjustment.shift and len(adjustment.shift) != classes:
            raise ExportError(
                f"prior: {len(adjustment.shift)} shares; the network's last layer has {classes} outputs"
            )
        last.weight /= adjustment.temperature
        bias = torch.zeros(classes) if last.bias is None else last.bias
        last.bias = nn.Parameter(adjustment.applied(bias[None])[0])
        x = torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0))
        wanted, got = adjustment.applied(module(x)), found(x)
        if not torch.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE):
            raise ExportError(
                "temperature and prior cannot be folded: the last layer that runs does not give the "
                "logits. Leave out export.temperature and export.prior, or end the network with a "
                "linear layer"
            )
    return found
