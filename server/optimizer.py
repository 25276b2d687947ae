"""Server optimizers on the pseudo-gradient of the shared weights (Reddi et al. 2021).

The pseudo-gradient is Δ = merged − previous, on the weights that somebody trained this round;
weights and optimizer state elsewhere stay as they are.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..supernet.axes import Weights

ROUNDS_A_MEMORY, MOST_MOMENTUM = 10, 0.8
Trained = Mapping[str, Tensor | bool]


class ServerOptimizerConfig(BaseModel):
    """`none` takes the mean; `momentum` is FedAvgM; `adam` is FedAdam with adaptivity `tau`.

    `momentum` = None suits it to the run: see `momentum_of`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    optimizer: Literal["none", "momentum", "adam"] = "none"
    lr: float = Field(1.0, gt=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)

    def momentum_of(self, rounds: int) -> float:
        """The momentum of a run of so many rounds.

        Where none is given, what it remembers, 1 / (1 - momentum) rounds, is a tenth of the run and
        at most five rounds: in a run of ten rounds a longer memory overshoots.
        """
        if self.momentum is not None:
            return self.momentum
        return min(max(1 - ROUNDS_A_MEMORY / rounds, 0.0), MOST_MOMENTUM)


class ServerOptimizer:
    """Steps from the previous weights to the next; `state` is what a checkpoint must keep.

    `rounds` is the length of the whole run.
    """

    def __init__(
        self, config: ServerOptimizerConfig, rounds: int, state: Weights | None = None
    ) -> None:
        self._config, self._momentum = config, config.momentum_of(rounds)
        self.state: Weights = state or {}

    def step(
        self, previous: Mapping[str, Tensor], merged: Mapping[str, Tensor], trained: Trained
    ) -> Weights:
        """The next shared weights."""
        if self._config.optimizer == "none":
            return dict(merged)
        return {
            name: old
            if trained[name] is False
            else self._next(name, old, merged[name], trained[name])
            for name, old in previous.items()
        }

    def _next(self, name: str, old: Tensor, mean: Tensor, mask: Tensor | bool) -> Tensor:
        delta, config = mean - old, self._config
        if config.optimizer == "momentum":
            move = self._decayed("m", name, delta, mask, self._momentum, 1.0)
        else:
            first = self._decayed("m", name, delta, mask, config.beta1, 1 - config.beta1)
            squares = delta.square()
            second = self._decayed("v", name, squares, mask, config.beta2, 1 - config.beta2)
            move = first / (second.sqrt() + config.tau)
        new = old + config.lr * move
        return new if mask is True else torch.where(torch.as_tensor(mask), new, old)

    def _decayed(
        self, kind: str, name: str, value: Tensor, mask: Tensor | bool, keep: float, gain: float
    ) -> Tensor:
        key = f"{kind}/{name}"
        old = self.state.get(key)
        new = gain * value if old is None else keep * old + gain * value
        if mask is not True:
            before = torch.zeros_like(value) if old is None else old
            new = torch.where(torch.as_tensor(mask), new, before)
        self.state[key] = new
        return new
