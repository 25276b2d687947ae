"""What a run's configuration says of its device classes, their search, and the files that are made."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..protos.manifest import INT4S, FileKind
from ..specialize.estimators import Estimator
from ..specialize.filesize import largest_bytes
from ..specialize.scheme import NARROW, WIDE
from ..supernet.cost import Budget
from ..supernet.errors import UsageError
from ..supernet.space import Space

SHARES_TOLERANCE = 1e-3


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

    def check(self, field: str, export: "ExportConfig", space: Space) -> None:
        """UsageError, beginning with the field, where no file that is made keeps the bounds."""
        form = self.kind.partition("_")[0]
        matters = self.latency_ms is not None or self.file_bits == NARROW
        if matters and form not in export.formats:
            raise UsageError(
                f"{field}: kind = {self.kind}, and export.formats = {', '.join(export.formats)}; add "
                f"{form} there, or choose another kind"
            )
        if self.file_bits == NARROW and not export.int4:
            raise UsageError(
                f"{field}: kind = {self.kind}, and no such file is made; set export.int4 = true"
            )
        size_bytes = largest_bytes(export.formats, space.layers(space.smallest()), self.file_bits)
        if self.file_bytes is not None and size_bytes > self.file_bytes:
            raise UsageError(
                f"{field}: file_bytes = {self.file_bytes}; the smallest subnet's int{self.file_bits} "
                f"file has about {size_bytes}. Raise the bound or choose a smaller space"
            )

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
    `int4_bytes` of their bytes in int8: those that lose most otherwise. With `int4_compensate`
    the errors of rounded weights are made up for by others; for that devices send second moments of what
    kernels multiply. Left out, they do unless a run is private or its sums are secure.
    """

    formats: tuple[Literal["tflite", "onnx"], ...] = Field(("tflite", "onnx"), min_length=1)
    calibration_examples: int = Field(256, ge=2)
    max_accuracy_drop: float = Field(0.05, ge=0, le=1)
    max_float_difference: float = Field(1e-3, gt=0)
    int4: bool = False
    int4_bytes: float | None = Field(None, gt=0.5, lt=1)
    int4_compensate: bool | None = None
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

    @model_validator(mode="after")
    def _bytes_are_of_something(self) -> Self:
        if self.int4_bytes is not None and not self.int4:
            raise ValueError(
                "int4_bytes is of files of 4-bit weights; set int4 = true, or leave it out"
            )
        return self

    @property
    def adjusts(self) -> bool:
        """Whether files are to give other logits than their subnets."""
        return self.temperature or self.prior is not None
