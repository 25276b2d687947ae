"""Which rule merges a round's updates, and what goes before it: the [aggregation] table."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...supernet.weights import Shapes
from .bit_aware import BitAwareMean
from .clipping import MEDIAN_SIZES, Clipping
from .fedlaw import FedLaw, Lesson, Pace
from .krum import Krum, least_updates
from .order_statistics import Median, TrimmedMean
from .overlap_mean import OverlapMean
from .update import Fold
from .weighing import Holder, Weighed, by_discrepancy, by_examples, uniform

ONLY = {
    "trim": ("rule", "trimmed_mean"),
    "liars": ("rule", "krum"),
    "keep": ("rule", "krum"),
    "disco_a": ("weights", "disco"),
    "disco_b": ("weights", "disco"),
    "law_epochs": ("rule", "fedlaw"),
    "law_lr": ("rule", "fedlaw"),
    "law_shrink": ("rule", "fedlaw"),
}
"""Fields that only one value of another field uses."""
USED_BY = {
    "weights": ("mean", "trimmed_mean", "krum", "fedlaw"),
    "size_power": ("mean", "trimmed_mean", "krum", "fedlaw"),
    "accumulate": ("mean",),
    "low_bits": ("mean",),
}
"""Fields that some rules leave unread: who gives one there expects what will not happen."""
TRIM, DISCO_A, DISCO_B = 0.2, 0.5, 0.1
LAW = Pace(epochs=20, lr=0.01, shrink=True)


class AggregationConfig(BaseModel):
    """How updates are weighed, clipped and merged.

    `rule`: `mean`, the overlap-aware weighted mean; `trimmed_mean` without the share `trim` of the
    lowest and highest values (None: 0.2); `median`; `krum` against `liars` liars, of which the
    nearest `keep` are merged (None: all but `liars`); `fedlaw`, the mean with weights and, with
    `law_shrink`, a shrink factor learned on the [proxy] set in `law_epochs` epochs at the rate `law_lr`
    (None: 20, 0.01 and true), from the weights that `weights` says. `clip` bounds each update to so many times the
    fleet's median size of change. `weights`: by `examples`, `uniform`, or `disco` (None: a = 0.5,
    b = 0.1). `size_power` p multiplies weights by (values of the subnet / values of the largest)^p,
    for the largest subnets to count more. With the mean, clients that train in at most `low_bits`
    bits count where they agree with the others (0: always). `accumulate` is the sums' precision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rule: Literal["mean", "trimmed_mean", "median", "krum", "fedlaw"] = "mean"
    trim: float | None = Field(None, ge=0, lt=0.5)
    liars: int | None = Field(None, ge=0)
    keep: int | None = Field(None, ge=1)
    clip: float | None = Field(None, ge=1)
    weights: Literal["examples", "uniform", "disco"] = "examples"
    disco_a: float | None = Field(None, ge=0)
    disco_b: float | None = Field(None, ge=0)
    law_epochs: int | None = Field(None, ge=1)
    law_lr: float | None = Field(None, ge=0)
    law_shrink: bool | None = None
    size_power: float = Field(0.0, ge=0, le=4)
    low_bits: int = Field(4, ge=0, le=32)
    accumulate: Literal["float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _uses_its_fields(self) -> Self:
        for name, (field, value) in ONLY.items():
            given = getattr(self, name)
            if given is not None and getattr(self, field) != value:
                raise ValueError(
                    f"aggregation.{name} = {given} is used with {field} = {value} only; "
                    f"{field} is {getattr(self, field)}"
                )
        if self.rule == "krum" and self.liars is None:
            raise ValueError("aggregation.liars is needed with rule = krum: how many may lie")
        return self

    @model_validator(mode="after")
    def _rule_uses_its_fields(self) -> Self:
        for name, rules in USED_BY.items():
            given, default = getattr(self, name), type(self).model_fields[name].default
            # All alike is what a rule that knows no weights does.
            idle = given != default and given != "uniform"
            if idle and self.rule not in rules:
                raise ValueError(
                    f"aggregation.{name} = {given} does nothing with rule = "
                    f"{self.rule}; it is used with {', '.join(rules)}"
                )
        return self

    def needs(self) -> int:
        """How many updates a round must have for the rule's claim to hold."""
        return least_updates(self.liars or 0) if self.rule == "krum" else 1

    def fold(self, shapes: Shapes, memory: Mapping[str, Any], lesson: Lesson | None = None) -> Fold:
        """A new round's rule; `memory` is what the last round's result said to remember.

        `lesson` is what fedlaw learns from.
        """
        rule = self._rule(shapes, lesson)
        if self.clip is None:
            return rule
        return Clipping(rule, shapes, self.clip, memory.get(MEDIAN_SIZES, ()))

    def weigh(self, holders: Sequence[Holder]) -> Weighed:
        """The weight of each client of a round."""
        if self.weights == "uniform":
            return uniform(holders)
        if self.weights == "examples":
            return by_examples(holders)
        a = DISCO_A if self.disco_a is None else self.disco_a
        b = DISCO_B if self.disco_b is None else self.disco_b
        return by_discrepancy(holders, a, b)

    def _rule(self, shapes: Shapes, lesson: Lesson | None) -> Fold:
        dtype = torch.float64 if self.accumulate == "float64" else torch.float32
        if self.rule == "trimmed_mean":
            return TrimmedMean(shapes, TRIM if self.trim is None else self.trim)
        if self.rule == "median":
            return Median(shapes)
        if self.rule == "krum":
            return Krum(shapes, self.liars or 0, self.keep)
        if self.rule == "fedlaw":
            if lesson is None:
                raise ValueError("fedlaw learns from a proxy set, and none was given")
            return FedLaw(shapes, lesson, self._pace(), dtype)
        if self.low_bits:
            return BitAwareMean(shapes, self.low_bits, dtype)
        return OverlapMean(shapes, dtype)

    def _pace(self) -> Pace:
        return Pace(
            LAW.epochs if self.law_epochs is None else self.law_epochs,
            LAW.lr if self.law_lr is None else self.law_lr,
            LAW.shrink if self.law_shrink is None else self.law_shrink,
        )
