"""What of a layer may change, and how: the parts that training moves.

TAPS (Wallingford et al. 2022, Task Adaptive Parameter Sharing): each layer has a change and a score;
the change counts where the score is at least τ, and the loss holds λ/L · Σ|score|, so that a layer is
changed only where that pays. The gradient passes the step straight through. Deviations: the penalty is
a proximal step (soft threshold) after each step, since its subgradient leaps over 0 where λ is large;
scores stand still for the last third, since a layer that drops out late leaves the others fitted to it; the
last layer always changes, and L counts the others; gradients of changes are clipped, and a step is taken for
each batch; where a norm layer would have statistics for each task, here it is folded, and the bias takes
its part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ...supernet.called_layers import WeightLayer
from .adapter import Change
from .network import Network

Method = Literal["taps", "norm", "head", "full"]
METHODS: tuple[Method, ...] = ("taps", "norm", "head", "full")
THRESHOLD, FIRST_SCORE = 0.1, 0.15


class Part(Protocol):
    """One layer in training."""

    def values(self) -> list[Tensor]:
        """The changes that are learned."""

    def tensors(self) -> dict[str, Tensor]:
        """`weight` and `bias` as they count now."""

    def score(self) -> Tensor | None:
        """What shrinks; None: nothing."""

    def change(self) -> Change | None:
        """What came of it; None: the layer is as published."""


class Whole:
    """Every value of a layer may change."""

    def __init__(self, layer: WeightLayer) -> None:
        self._layer = layer
        self._kernel = torch.zeros_like(layer.weight).requires_grad_()
        self._bias = None if layer.bias is None else torch.zeros_like(layer.bias).requires_grad_()

    def values(self) -> list[Tensor]:
        """Changes of kernel and bias."""
        return [self._kernel] if self._bias is None else [self._kernel, self._bias]

    def tensors(self) -> dict[str, Tensor]:
        """Published values and changes, added."""
        return self._added(1)

    def score(self) -> Tensor | None:
        """None: there is no penalty."""
        return None

    def _added(self, share: Tensor | int) -> dict[str, Tensor]:
        found = {"weight": self._layer.weight + share * self._kernel}
        if self._bias is not None and self._layer.bias is not None:
            found["bias"] = self._layer.bias + share * self._bias
        return found

    def change(self) -> Change | None:
        """The changes."""
        bias = None if self._bias is None else self._bias.detach().numpy()
        return Change(kernel=self._kernel.detach().numpy(), bias=bias)


class Gated(Whole):
    """Every value may change, and does as long as the layer's score is at least the threshold."""

    def __init__(self, layer: WeightLayer) -> None:
        super().__init__(layer)
        self._score = torch.tensor(FIRST_SCORE).requires_grad_()

    def tensors(self) -> dict[str, Tensor]:
        """Published values and changes times 1 or 0, whose gradient goes to the score as it is."""
        step = (self._score >= THRESHOLD).to(self._score.dtype)
        gate = step + self._score - self._score.detach()
        return self._added(gate)

    def score(self) -> Tensor | None:
        """The layer's score."""
        return self._score

    def change(self) -> Change | None:
        """The changes, where they count."""
        return super().change() if float(self._score.detach()) >= THRESHOLD else None


class Scaled:
    """A gain and a bias of each output channel: what a norm layer's own affine values would do."""

    def __init__(self, layer: WeightLayer) -> None:
        self._layer = layer
        self._gain = torch.zeros(len(layer.weight)).requires_grad_()
        self._bias = None if layer.bias is None else torch.zeros_like(layer.bias).requires_grad_()

    def values(self) -> list[Tensor]:
        """Gains and changes of the bias."""
        return [self._gain] if self._bias is None else [self._gain, self._bias]

    def tensors(self) -> dict[str, Tensor]:
        """Kernel times (1 + gain), bias and its change added."""
        weight = self._layer.weight
        shape = (-1, *(1,) * (weight.dim() - 1))
        found = {"weight": weight * (1 + self._gain).view(shape)}
        if self._bias is not None and self._layer.bias is not None:
            found["bias"] = self._layer.bias + self._bias
        return found

    def score(self) -> Tensor | None:
        """None: there is no penalty."""
        return None

    def change(self) -> Change | None:
        """The gains and the bias's changes."""
        bias = None if self._bias is None else self._bias.detach().numpy()
        return Change(gain=self._gain.detach().numpy(), bias=bias)


@dataclass(frozen=True, slots=True)
class Parts:
    """The layers in training, by name."""

    by_layer: Mapping[str, Part]

    def values(self) -> list[Tensor]:
        """All changes."""
        return [value for part in self.by_layer.values() for value in part.values()]

    def leaves(self) -> list[Tensor]:
        """All that the optimizer moves: changes and scores."""
        scores = [part.score() for part in self.by_layer.values()]
        return [*self.values(), *(score for score in scores if score is not None)]

    def tensors(self) -> dict[str, Tensor]:
        """What stands in place of the published tensors, by their names."""
        return {
            f"{layer}.{name}": tensor
            for layer, part in self.by_layer.items()
            for name, tensor in part.tensors().items()
        }

    def settle(self) -> None:
        """From now on which layers change stands."""
        for score in self._scores():
            score.requires_grad_(False).grad = None

    def shrink(self, strength: float) -> None:
        """Move each score that still moves towards 0 by its share of the strength, and not beyond."""
        scores = self._scores()
        with torch.no_grad():
            for score in scores:
                score.copy_(torch.nn.functional.softshrink(score, strength / len(scores)))

    def _scores(self) -> list[Tensor]:
        found = [part.score() for part in self.by_layer.values()]
        return [score for score in found if score is not None and score.requires_grad]

    def changes(self) -> dict[str, Change]:
        """What came of it, by layer."""
        found = {layer: part.change() for layer, part in self.by_layer.items()}
        return {layer: change for layer, change in found.items() if change is not None}


def parts(network: Network, method: Method) -> Parts:
    """The layers that a method trains. The head is always trained whole."""
    inner = {"taps": Gated, "norm": Scaled, "full": Whole, "head": None}[method]
    made: dict[str, Part] = {}
    for name, layer in network.layers.items():
        kind = Whole if name == network.head else inner
        if kind is not None:
            made[name] = kind(layer)
    return Parts(made)
