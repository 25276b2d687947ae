"""Server optimizers on the pseudo-gradient of the shared weights (Reddi et al. 2021).

The pseudo-gradient is Δ = merged − previous, on the weights that somebody trained this round;
weights and optimizer state elsewhere stay as they are.
"""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ..supernet.axes import Weights

RATES = {"none": 1.0, "momentum": 1.0, "adam": 0.03}
ROUNDS_A_MEMORY, MOST_MOMENTUM = 10, 0.8
Trained = Mapping[str, Tensor | bool]


class ServerOptimizerConfig(BaseModel):
    """`none` takes the mean; `momentum` is FedAvgM; `adam` is FedAdam with adaptivity `tau`.

    What is None is chosen: `momentum` to suit the run, see `momentum_of`; `lr` is 0.03 with adam,
    whose first step is else a hundred times what devices moved, and 1 with momentum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    optimizer: Literal["none", "momentum", "adam"] = "none"
    lr: float | None = Field(None, gt=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _uses_its_rate(self) -> Self:
        if self.optimizer == "none" and self.lr is not None:
            raise ValueError(
                f"server.lr = {self.lr} is not used with optimizer = none, which takes the mean; "
                "allowed with momentum, adam"
            )
        return self

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.lr if self.lr is not None else RATES[self.optimizer]

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
        new = old + config.rate * move
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
