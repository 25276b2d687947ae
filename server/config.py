"""The run's configuration: one frozen model, read from a TOML file, unknown keys refused."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from ..protos.manifest import INT4S, FileKind
from ..protos.recipe import Recipe
from ..specialize.estimators import Estimator
from ..specialize.filesize import largest_bytes
from ..specialize.scheme import NARROW, WIDE
from ..supernet.cost import Budget
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

SHARES_TOLERANCE = 1e-3

# It becomes part of file names and of devices' profiles.
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassConfig(_Section):
    """One device class: upper bounds on its subnet; what is left out is not bounded.

    `latency_ms` is of the file `kind`, on the slowest of the class's devices that measured probes
    (`[search] probes`). `file_bytes` is of the int8 files, or where `kind` is one of 4-bit weights, of those.
    """

    macs: int | None = Field(None, gt=0)
    params: int | None = Field(None, gt=0)
    train_memory_bytes: int | None = Field(None, gt=0)
    peak_activation_bytes: int | None = Field(None, gt=0)
    file_bytes: int | None = Field(None, gt=0)
    latency_ms: float | None = Field(None, gt=0)
    kind: FileKind = "tflite_int8"

    @property
    def file_bits(self) -> int:
        """The width of the weights in the files that `file_bytes` is about."""
        return NARROW if self.kind in INT4S.values() else WIDE

    def budget(self) -> Budget:
        """The bounds as a budget."""
        return Budget(**self.model_dump(exclude={"kind"}))


class SearchConfig(_Section):
    """Search: how each class's best subnet is looked for (docs/search.md).

    `samples` subnets, shared out to the classes, and `finalists` more for each class are measured
    on the devices by `method`, `finalists` of a class at a time. The last of them, the largest that
    fits and `random_baseline` random ones that fit are measured together. `predicted` looks at
    `generations` of a `population` on its `predictor`'s word. `probes` is the folder of the probes that
    devices measured (`fedofa probes`); bounds on latency need it.
    """

    method: Literal[
        "mutation",
        "predicted",
        "evolution",
        "linas",
        "policy",
        "bandit",
        "soft",
        "preselect",
        "random",
    ] = "mutation"
    predictor: Literal["linear", "trees", "gaussian", "network"] = "linear"
    probes: str | None = None
    samples: int = Field(24, ge=8)
    population: int = Field(64, ge=4)
    generations: int = Field(20, ge=1)
    mutation: float = Field(0.15, gt=0, le=1)
    finalists: int = Field(3, ge=1)
    random_baseline: int = Field(3, ge=1)
    batch_size: int = Field(64, ge=2)


class ExportConfig(_Section):
    """Export: which formats, how they are quantized, and what an exported file may lose.

    `temperature` and `prior` (`equal`, or a share for each class) are folded into the last layer.
    `calibration` adds a report of what confidences are worth, as a temperature or a prior does.
    `trainable` publishes float values too, from which devices train a model of their own. `int4` makes
    files of 4-bit weights too, in which layers keep 8 bits as far as all weights together have
    `int4_bytes` of their bytes in int8: those that lose most otherwise.
    """

    formats: tuple[Literal["tflite", "onnx"], ...] = Field(("tflite", "onnx"), min_length=1)
    calibration_examples: int = Field(256, ge=2)
    max_accuracy_drop: float = Field(0.05, ge=0, le=1)
    max_float_difference: float = Field(1e-3, gt=0)
    int4: bool = False
    int4_bytes: float | None = Field(None, gt=0.5, lt=1)
    ranges: Estimator = "minmax"
    equalize: bool = False
    temperature: bool = False
    prior: Literal["equal"] | tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    calibration: bool = False
    trainable: bool = True

    @field_validator("formats")
    @classmethod
    def _formats_are_distinct(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(formats)) != len(formats):
            raise ValueError(f"{', '.join(formats)}: one stands twice")
        return formats

    @field_validator("prior")
    @classmethod
    def _shares_add_up(cls, prior: object) -> object:
        if isinstance(prior, tuple) and not abs(sum(prior) - 1) < SHARES_TOLERANCE:
            raise ValueError(f"the shares must add up to 1, these to {sum(prior):g}")
        return prior

    @property
    def adjusts(self) -> bool:
        """Whether files are to give other logits than their subnets."""
        return self.temperature or self.prior is not None


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
            if bounds.file_bits == NARROW and not self.export.int4:
                raise UsageError(
                    f"classes.{name}: kind = {bounds.kind}, and no such file is made; set "
                    "export.int4 = true"
                )
            plans, bits = space.layers(space.smallest()), bounds.file_bits
            size_bytes = largest_bytes(self.export.formats, plans, bits)
            if bounds.file_bytes is not None and size_bytes > bounds.file_bytes:
                raise UsageError(
                    f"classes.{name}: file_bytes = {bounds.file_bytes}; the smallest subnet's int{bits} "
                    f"file has about {size_bytes}. Raise the bound or choose a smaller space"
                )


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
