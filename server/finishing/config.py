"""The [finish] table: how `fedofa finish` trains one class's subnet further."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FinishConfig(BaseModel):
    """How a finishing trains: by `surgery` inside expansions of the target, or the target alone.

    `surgery`: each device trains the largest subnet that it can afford, of at most `expansion` times
    the target's MACs, and the target on the same weights, which learns from the larger one by `learn`
    and, times `label_weight`, from labels. `plain`: every device trains the target on labels.

    The first round's learning rate is the recipe's times `lr_share`: the run's own has fallen by its
    end, and the whole of it would undo what was learned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["surgery", "plain"] = "surgery"
    expansion: float = Field(3.0, ge=1)
    learn: Literal["kl", "alpha"] = "kl"
    label_weight: float = Field(1.0, ge=0)
    lr_share: float = Field(0.25, gt=0, le=1)
