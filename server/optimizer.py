"""Server optimizers on the pseudo-gradient of the shared weights (Reddi et al. 2021).

The pseudo-gradient is Δ, the merged change, on the weights that somebody trained this round; weights
and optimizer state elsewhere stay as they are.
"""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ..supernet.axes import Weights
from .aggregation.update import Merged

RATES = {"none": 1.0, "momentum": 1.0, "adam": 0.03, "yogi": 0.03}
ROUNDS_A_MEMORY, MOST_MOMENTUM = 10, 0.8

ADAPTIVE = ("adam", "yogi")
USED_BY = {"momentum": ("momentum",), "beta1": ADAPTIVE, "beta2": ADAPTIVE, "tau": ADAPTIVE}
"""Fields that only some optimizers read."""


class ServerOptimizerConfig(BaseModel):
    """`none` adds Δ; `momentum` is FedAvgM; `adam` and `yogi` are FedAdam and FedYogi.

    What is None is chosen: `momentum` to suit the run, see `momentum_of`; `lr` is 0.03 with adam and
    yogi, whose first step is else a hundred times what devices moved, and 1 with momentum. `tau` is
    the adaptivity of adam and yogi. Weights that were trained are multiplied by `shrink` after each
    step: the factor γ of FedLAW (Li et al. 2023) as a constant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    optimizer: Literal["none", "momentum", "adam", "yogi"] = "none"
    lr: float | None = Field(None, gt=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)
    shrink: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _uses_its_rate(self) -> Self:
        if self.optimizer == "none" and self.lr is not None:
            raise ValueError(
                f"server.lr = {self.lr} is not used with optimizer = none, which takes the mean; "
                "allowed with momentum, adam, yogi"
            )
        for name, users in USED_BY.items():
            given, default = getattr(self, name), type(self).model_fields[name].default
            if given != default and self.optimizer not in users:
                raise ValueError(
                    f"server.{name} = {given} is not used with optimizer = "
                    f"{self.optimizer}; allowed with {', '.join(users)}"
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

    def step(self, previous: Mapping[str, Tensor], merged: Merged) -> Weights:
        """The next shared weights; may take the memory of the merged changes."""
        shrink = self._config.shrink * merged.shrink
        return {
            name: old
            if merged.trained[name] is False
            else self._next(name, old, merged.delta[name], merged.trained[name], shrink)
            for name, old in previous.items()
        }

    def ahead(self, previous: Mapping[str, Tensor]) -> tuple[Weights, float]:
        """(base, gain): a step by the change Δ leads to base + gain · Δ, before it is shrunk.

        ValueError with adam and yogi, whose step is no such sum.
        """
        config = self._config
        if config.optimizer == "none":
            return dict(previous), 1.0
        if config.optimizer != "momentum":
            raise ValueError(f"server.optimizer = {config.optimizer}: its step is not linear")
        by = config.rate * self._momentum
        return {
            name: old if (m := self.state.get(f"m/{name}")) is None else old + by * m
            for name, old in previous.items()
        }, config.rate

    def _next(
        self, name: str, old: Tensor, delta: Tensor, mask: Tensor | bool, shrink: float
    ) -> Tensor:
        config = self._config
        if config.optimizer == "none":
            new = delta.add_(old)
        elif config.optimizer == "momentum":
            new = old + config.rate * self._decayed("m", name, delta, mask, self._momentum, 1.0)
        else:
            first = self._decayed("m", name, delta, mask, config.beta1, 1 - config.beta1)
            second = self._squares(name, delta, mask)
            new = old + config.rate * first / (second.sqrt() + config.tau)
        if shrink != 1:
            new.mul_(shrink)
        return new if mask is True else torch.where(torch.as_tensor(mask), new, old, out=new)

    def _squares(self, name: str, delta: Tensor, mask: Tensor | bool) -> Tensor:
        config, squares = self._config, delta.square()
        if config.optimizer == "adam":
            return self._decayed("v", name, squares, mask, config.beta2, 1 - config.beta2)
        # Yogi moves its estimate by at most a share of the new square, in the square's direction.
        old = self.state.get(f"v/{name}")
        before = torch.zeros_like(squares) if old is None else old
        new = before - (1 - config.beta2) * squares * torch.sign(before - squares)
        return self._kept("v", name, new, before, mask)

    def _decayed(
        self, kind: str, name: str, value: Tensor, mask: Tensor | bool, keep: float, gain: float
    ) -> Tensor:
        old = self.state.get(f"{kind}/{name}")
        before = torch.zeros_like(value) if old is None else old
        return self._kept(kind, name, keep * before + gain * value, before, mask)

    def _kept(
        self, kind: str, name: str, new: Tensor, before: Tensor, mask: Tensor | bool
    ) -> Tensor:
        """The new state where the mask is, the state before elsewhere; remembered."""
        found = new if mask is True else torch.where(torch.as_tensor(mask), new, before)
        self.state[f"{kind}/{name}"] = found
        return found
