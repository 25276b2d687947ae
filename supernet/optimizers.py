"""SGD and Adam: torch's own update functions, called without its optimizer classes.

Making a `torch.optim` object imports the compiler: 1.8 CPU seconds and 70 MB on a device that never
compiles anything. The functions below it do the same arithmetic without that.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Sgd:
    """Stochastic gradient descent with momentum and weight decay."""

    def __init__(
        self, leaves: list[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self.lr = lr
        self._leaves, self._momentum, self._decay = leaves, momentum, weight_decay
        self._momenta: list[Tensor | None] = [None] * len(leaves)

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        places = [i for i, leaf in enumerate(self._leaves) if leaf.grad is not None]
        momenta = [self._momenta[i] for i in places]
        sgd(
            [self._leaves[i] for i in places],
            _taken(self._leaves[i] for i in places),
            momenta,
            foreach=False,
            weight_decay=self._decay,
            momentum=self._momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for place, momentum in zip(places, momenta, strict=True):
            self._momenta[place] = momentum


class Adam:
    """Adam (Kingma & Ba 2015) with L2 weight decay."""

    def __init__(
        self,
        leaves: list[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = BETAS,
    ) -> None:
        self.lr = lr
        self._leaves, self._decay, self._betas = leaves, weight_decay, betas
        self._first = [torch.zeros_like(leaf) for leaf in leaves]
        self._second = [torch.zeros_like(leaf) for leaf in leaves]
        self._steps = [torch.zeros(()) for _ in leaves]

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        places = [i for i, leaf in enumerate(self._leaves) if leaf.grad is not None]
        adam(
            [self._leaves[i] for i in places],
            _taken(self._leaves[i] for i in places),
            [self._first[i] for i in places],
            [self._second[i] for i in places],
            [],
            [self._steps[i] for i in places],
            foreach=False,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=self.lr,
            weight_decay=self._decay,
            eps=EPSILON,
            maximize=False,
        )


def _taken(leaves: Iterable[Tensor]) -> list[Tensor]:
    """The gradients, taken off their leaves."""
    taken = []
    for leaf in leaves:
        if leaf.grad is not None:
            taken.append(leaf.grad)
            leaf.grad = None
    return taken
