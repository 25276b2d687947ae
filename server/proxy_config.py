"""The [proxy] table: examples of the server's own, and what they may be used for."""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from ..supernet.errors import UsageError
from .sharing import shown

if TYPE_CHECKING:
    from .config import RunConfig

LINEAR = ("none", "momentum")
"""Optimizers whose step is a sum, so that a change's weight has a slope that is known."""


class ProxyConfig(BaseModel):
    """Where the server's examples come from: a data function, as devices have one.

    Its training part is used, in batches of `batch_size`. `aggregation.rule` = fedlaw learns clients'
    weights on it. With `tune_epochs` the shared weights themselves are trained on it after each
    round, by SGD with momentum 0.9 and the rate `tune_lr`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str
    data_root: str | None = None
    client: int = Field(0, ge=0)
    clients: int = Field(1, ge=1)
    arguments: dict[str, str | int | float] = Field(default_factory=dict)
    batch_size: int = Field(128, ge=2)
    tune_epochs: int = Field(0, ge=0)
    tune_lr: float = Field(0.01, gt=0)


def check(run: "RunConfig") -> None:
    """UsageError names what the proxy set cannot be used with, or that it is missing or idle."""
    learns, proxy = run.aggregation.rule == "fedlaw", run.proxy
    if proxy is None:
        if learns:
            raise UsageError(
                "aggregation.rule = fedlaw learns weights on examples of the server: name them in a "
                "[proxy] table, data = module:function as for devices; or use rule = mean"
            )
        return
    if not learns and not proxy.tune_epochs:
        raise UsageError(
            "[proxy] is not used: set aggregation.rule = fedlaw to learn weights on it, or "
            "proxy.tune_epochs to train on it; else leave it out"
        )
    kept = run.share.plan(run.build_space()).in_round(1).local
    if kept:
        raise UsageError(
            f"[proxy] with share: devices keep {shown(sorted(kept))}, so the server has no whole model "
            "whose loss it could tell; leave out one of the two"
        )
    if learns:
        _check_step(run)


def _check_step(run: "RunConfig") -> None:
    server = run.server
    if server.optimizer not in LINEAR:
        raise UsageError(
            f"server.optimizer = {server.optimizer} with aggregation.rule = fedlaw: what a client's "
            f"weight does to its step is not known beforehand; allowed: {', '.join(LINEAR)}"
        )
    if server.shrink != 1 and run.aggregation.law_shrink is not False:
        raise UsageError(
            f"server.shrink = {server.shrink} with aggregation.rule = fedlaw, which learns a shrink "
            "factor: leave it at 1, or set aggregation.law_shrink = false"
        )
