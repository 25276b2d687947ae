"""The run's configuration: one frozen model, read from a TOML file, unknown keys refused."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from ..protos.recipe import Recipe
from ..supernet.errors import UsageError
from ..supernet.families.catalogue import PRESETS, preset, space_from_dict
from ..supernet.space import Space
from . import proxy_config
from .aggregation.catalogue import AggregationConfig
from .branches.config import BranchesConfig
from .codec_config import CodecSection, DownlinkSection, by_name, rounded_to_nearest
from .finishing.config import FinishConfig
from .groups import demands as group_demands
from .limits import require_fit
from .optimizer import ServerOptimizerConfig
from .privacy import demands, secure_demands
from .privacy.config import PrivacyConfig, SecureConfig
from .proxy_config import ProxyConfig
from .recipes import with_recipe
from .reputation import ReputationConfig
from .round_config import RoundConfig
from .samplers.catalogue import SamplerConfig
from .sharing import ShareConfig
from .specialize_config import ClassConfig, ExportConfig, SearchConfig

# It becomes part of file names and of devices' profiles.
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SimulationConfig(_Section):
    """The clients of `fedofa simulate`: how many of each class, and where their data come from.

    `profile` is a profile file for all of them, as a device has one.
    """

    data: str = "fedofa.client.datasets:digits"
    data_root: str | None = None
    arguments: dict[str, str | int | float] = Field(default_factory=dict)
    clients: dict[str, int] = Field(default_factory=dict)
    profile: str | None = None


class RunConfig(_Section):
    """Everything that decides a run. The same configuration and clients give the same supernet."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = 0
    space: dict[str, Any] = Field(default_factory=lambda: {"preset": "digits"})
    round: RoundConfig = RoundConfig()
    recipe: Recipe = Recipe()
    sampler: SamplerConfig = SamplerConfig()
    server: ServerOptimizerConfig = ServerOptimizerConfig()
    aggregation: AggregationConfig = AggregationConfig()
    reputation: ReputationConfig = ReputationConfig()
    codec: CodecSection | None = None
    downlink: DownlinkSection | None = None
    share: ShareConfig = ShareConfig()
    privacy: PrivacyConfig | None = None
    branches: BranchesConfig | None = None
    proxy: ProxyConfig | None = None
    secure: SecureConfig | None = None
    classes: dict[ClassName, ClassConfig]
    search: SearchConfig = SearchConfig()
    export: ExportConfig = ExportConfig()
    finish: FinishConfig = FinishConfig()
    simulation: SimulationConfig = SimulationConfig()

    @field_validator("codec", mode="before")
    @classmethod
    def _codec_by_name(cls, value: object) -> object:
        return by_name("codec", value)

    @field_validator("downlink", mode="before")
    @classmethod
    def _downlink_by_name(cls, value: object) -> object:
        return rounded_to_nearest(by_name("downlink", value))

    @field_validator("classes")
    @classmethod
    def _some_class(cls, classes: dict[str, ClassConfig]) -> dict[str, ClassConfig]:
        if not classes:
            raise ValueError("at least one device class is needed, for instance [classes.phone]")
        return classes

    @property
    def compensates(self) -> bool:
        """Whether devices are asked for second moments, to round kernels of 4 bits by them."""
        if self.export.int4_compensate is None:
            return self.privacy is None and self.secure is None
        return self.export.int4_compensate

    def build_space(self) -> Space:
        """The search space: a preset with fields replaced, or a family with all its fields."""
        fields = dict(self.space)
        if "preset" not in fields:
            return space_from_dict(fields)
        base = preset(fields.pop("preset")).to_dict()
        for key in fields:
            if key not in base:
                raise UsageError(_suggest("space", key, base))
        return space_from_dict({**base, **fields})

    def check(self) -> None:
        """UsageError when a class's budget fits no subnet, or the method cannot serve the space."""
        space = self.build_space()
        self.sampler.check(space, self.recipe)
        self.share.plan(space)
        if self.round.min_replies < self.aggregation.needs():
            raise UsageError(
                f"round.min_replies = {self.round.min_replies}: aggregation.rule = "
                f"{self.aggregation.rule} against {self.aggregation.liars} liars needs at least "
                f"{self.aggregation.needs()} updates a round; raise it, or lower aggregation.liars"
            )
        if self.branches is not None:
            self.branches.check(self, space)
        if self.round.groups is not None:
            group_demands.check(self)
        proxy_config.check(self)
        if self.privacy is not None:
            demands.check(self, self.privacy)
        if self.secure is not None:
            secure_demands.check(self, self.secure)
        for name, bounds in self.classes.items():
            require_fit(space, bounds.budget(), self.recipe.batch_size, f"classes.{name}")
            bounds.check(f"classes.{name}", self.export, space)


def read_config(path: Path) -> RunConfig:
    """Read and check a TOML file; UsageError names file, field, value and what is allowed."""
    try:
        fields = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"config {path} does not exist; `fedofa init` writes one") from None
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}: {error}") from None
    try:
        return parse_config(fields)
    except UsageError as error:
        raise UsageError(f"config {path}: {error}") from None


def parse_config(fields: Mapping[str, Any]) -> RunConfig:
    """Check the fields; UsageError names the first wrong one."""
    try:
        config = RunConfig.model_validate(with_recipe(fields))
    except ValidationError as error:
        # A misspelt key explains a missing one.
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        first = errors[0]
        where = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            raise UsageError(
                _suggest(".".join(where[:-1]), where[-1], _allowed(where[:-1]))
            ) from None
        given = f" = {first['input']!r}" if not isinstance(first["input"], Mapping) else ""
        raise UsageError(
            f"{'.'.join(where)}{given}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    config.check()
    return config


def _allowed(path: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in path:
        field = model.model_fields.get(part)
        kind = field.annotation if field else ClassConfig
        # A table that may be left out is one of two types.
        kinds = [one for one in (kind, *get_args(kind)) if isinstance(one, type)]
        model = next((one for one in kinds if issubclass(one, BaseModel)), ClassConfig)
    return list(model.model_fields)


def _suggest(section: str, key: str, allowed: "Mapping[str, object] | list[str]") -> str:
    near = difflib.get_close_matches(key, list(allowed), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    place = f"[{section}]" if section else "the top level"
    return f"unknown key {key!r} in {place}{hint or '.'} Allowed: {', '.join(allowed)}"


PRESET_NAMES = tuple(PRESETS)
