"""The sampling methods by name, and their settings."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...protos.recipe import Recipe
from ...supernet.errors import UsageError
from ...supernet.space import Space
from .assigned import Sampler
from .budget_bins import BudgetBins
from .cover import Cover
from .delayed import Delayed
from .expanded import Expanded
from .growing import Growing
from .importance import Importance
from .maxnet import MaxNet
from .nested import Nested
from .preselect import Preselect
from .ramp import Ramp
from .rolling import Rolling
from .sandwich import Sandwich
from .single import Single
from .tiers import Tiers
from .uniform import Uniform

Kind = Literal[
    "growing", "cover", "uniform", "budget_bins", "sandwich", "spread_sandwich", "importance",
    "ramp", "preselect", "tiers", "nested", "rolling", "maxnet", "delayed", "single", "expanded",
]  # fmt: skip

NEEDS_WIDTHS = ("tiers", "nested", "rolling")
DRAWS_STUDENTS = ("random", "sandwich", "listed")
NEEDS_STUDENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "nested": DRAWS_STUDENTS,
        "preselect": DRAWS_STUDENTS,
        "sandwich": ("smallest", *DRAWS_STUDENTS),
        "delayed": ("smallest", *DRAWS_STUDENTS),
        "expanded": ("listed",),
    }
)
"""Methods that say which students a device trains, and the recipe.students that train them."""

ONE_NETWORK = ("single", "expanded")
"""Methods that are about one network, and train what else is in the space only beside it."""
FROM_OUTCOMES = ("importance", "budget_bins")
"""Methods whose choices follow from the updates of former rounds."""
WEIGHING = ("importance", "maxnet")
"""Methods that give updates weights."""


class SamplerConfig(BaseModel):
    """Which subnets the clients train: the method, and the settings of those that have some.

    `coverage_floor`: no weight waits longer than so many rounds while some client could train it;
    None leaves it to the method. `elastic` (growing): the share of random subnets. `candidates`
    (cover, preselect): subnets looked at for a client or a budget. `bins` and `bin_floor`:
    budget_bins. `warm` (a share of the rounds) and `ramp_rounds`: delayed. `share`: maxnet.
    `stride`: rolling. `arch`: single, expanded. `most`, a multiple of the target's MACs: expanded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind = "cover"
    coverage_floor: int | None = Field(None, ge=1)
    candidates: int = Field(4, ge=1)
    elastic: float = Field(0.25, ge=0, le=1)
    bins: int = Field(5, ge=1, le=20)
    bin_floor: float = Field(0.05, ge=0, le=0.05)
    warm: float = Field(0.25, ge=0, le=1)
    ramp_rounds: int = Field(3, ge=1)
    share: float = Field(0.9, gt=0, lt=1)
    stride: int = Field(1, ge=1)
    arch: dict[str, int | float] | None = None
    most: float = Field(3.0, ge=1)

    def check(self, space: Space, recipe: Recipe) -> None:
        """UsageError where the method cannot serve the space, or the recipe not the method."""
        allowed = NEEDS_STUDENTS.get(self.kind)
        if allowed and recipe.students not in allowed:
            raise UsageError(
                f"sampler.kind = {self.kind!r} has devices train students, and recipe.students = "
                f"{recipe.students!r}; allowed: {', '.join(allowed)}. A named recipe sets both, "
                "see docs/recipes.md"
            )
        if self.kind == "delayed" and not recipe.train_assigned:
            raise UsageError(
                "sampler.kind = 'delayed' begins with the assigned subnet alone, and "
                "recipe.train_assigned = false leaves it out; set it to true"
            )
        if self.arch is not None and self.kind not in ONE_NETWORK:
            raise UsageError(
                "sampler.arch is used with sampler.kind = 'single' or 'expanded' only, not "
                f"{self.kind!r}"
            )
        if self.kind in ONE_NETWORK and self.coverage_floor is not None:
            raise UsageError(
                f"sampler.coverage_floor = {self.coverage_floor}: sampler.kind = {self.kind!r} "
                "trains one network on purpose; leave the floor out"
            )
        if self.kind in NEEDS_WIDTHS and not any(
            gene.role == "width" and len(gene.options) > 1 for gene in space.genes
        ):
            raise UsageError(
                f"sampler.kind = {self.kind!r} scales widths, and this {space.family} space has no "
                "elastic width; use another space, or cover, sandwich, uniform"
            )
        if self.kind == "rolling" and not space.rolls:
            raise UsageError(
                f"sampler.kind = 'rolling': this {space.family} space cannot roll its channels "
                "(heads, normalization groups or joined channels would be torn apart); use tiers"
            )
        if self.arch is not None:
            space.arch(self.arch)


Ages = Mapping[str, Tensor]

SAMPLERS: Mapping[str, Callable[[SamplerConfig, Ages], Sampler]] = MappingProxyType(
    {
        "growing": lambda config, _ages: Growing(config.elastic),
        "cover": lambda config, ages: Cover(config.candidates, ages),
        "uniform": lambda _config, _ages: Uniform(),
        "budget_bins": lambda config, _ages: BudgetBins(config.bins, config.bin_floor),
        "sandwich": lambda _config, _ages: Sandwich(),
        "spread_sandwich": lambda _config, _ages: Sandwich(spread=True),
        "importance": lambda _config, _ages: Importance(),
        "ramp": lambda _config, _ages: Ramp(),
        "preselect": lambda config, _ages: Preselect(config.candidates),
        "tiers": lambda _config, _ages: Tiers(),
        "nested": lambda _config, _ages: Nested(),
        "rolling": lambda config, _ages: Rolling(config.stride),
        "maxnet": lambda config, _ages: MaxNet(config.share),
        "single": lambda config, _ages: Single(config.arch),
        "delayed": lambda config, _ages: Delayed(config.warm, config.ramp_rounds),
        "expanded": lambda config, _ages: Expanded(config.arch, config.most),
    }
)


def sampler(config: SamplerConfig, ages: Ages) -> Sampler:
    """The method that a configuration names."""
    return SAMPLERS[config.kind](config, ages)
