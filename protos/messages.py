"""The messages between server and device: typed bodies, and one flat array of values.

A message is one JSON body and at most one array; `protos/flower.py` puts that into Flower's
records. What comes in is checked here: an unknown field, a wrong type or a missing value raises
MessageError, and nothing else is ever raised for bad input. Importable without torch or flwr.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..supernet.errors import FedofaError
from ..supernet.precision import FLOAT_BITS, Bits
from .codec.config import CodecConfig
from .histograms import MOST_BINS
from .holding import Holding, Holds
from .manifest import FileEntry, FileKind, Normalization
from .probes import Measurements, Seconds
from .recipe import ArchValues, Recipe

TensorShapes = tuple[tuple[str, tuple[int, ...]], ...]
# What a device reports is bounded, so that sums and products of such numbers stay numbers.
Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(ge=-1e300, le=1e300)]
Counts = tuple[Count, ...]
CalibrationSums = tuple[Counts, Counts, tuple[Finite, ...], Finite, Finite]
"""As `calibration.Calibration` has them, in its order."""
Speed = Annotated[float, Field(gt=0, le=1e18)]


class MessageError(FedofaError):
    """A message from the other side does not have the agreed form."""


class Body(BaseModel):
    """Base of every message body: frozen, no unknown fields, no conversion of types."""

    # A loss that is not a number must arrive as one, to be refused by its name.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants"
    )
    action: ClassVar[str]

    def to_json(self) -> str:
        """The body as JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse and check; MessageError names the first wrong field."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise MessageError(f"{cls.__name__}: {where}: {first['msg']}") from None


FRACTIONAL = ("latency_ms",)
"""Bounds of a budget that need not be whole numbers."""


class Declared(BaseModel):
    """What a device's profile file may declare; a declared value overrides the measured one.

    `train_bits` and `infer_bits` are the widths of the weights that it trains and infers with.
    `share_labels` is its owner's consent that the server learns how many examples of each class it
    has. `measurements` is the file that `fedofa-device profile --probes` wrote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device_class: str | None = None
    share_labels: bool = False
    cores: Count | None = Field(None, ge=1)
    memory_bytes: Count | None = Field(None, ge=1)
    train_macs_per_s: Speed | None = None
    infer_macs_per_s: Speed | None = None
    train_bits: Bits = FLOAT_BITS
    infer_bits: Bits = FLOAT_BITS
    budget: dict[str, int | float] = Field(default_factory=dict)
    measurements: str | None = None


class DeviceProfile(Body):
    """What a device is and can do, and what its data look like (never the data).

    `labels` are its training examples of each class, given with its owner's consent only; `holds` is
    what it holds of the run's weights, where it was asked; `measurements` are its timings of
    probes.
    """

    device: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    device_class: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    cores: Count = Field(ge=1)
    memory_bytes: Count = Field(ge=1)
    train_macs_per_s: Speed
    infer_macs_per_s: Speed
    train_bits: Bits = FLOAT_BITS
    infer_bits: Bits = FLOAT_BITS
    budget: dict[str, int | float]
    measurements: Measurements | None = None
    runtimes: tuple[str, ...]
    examples: Count = Field(ge=1)
    validation_examples: Count
    input_shape: tuple[Count, ...]
    classes: tuple[str, ...]
    normalization: Normalization
    labels: tuple[Count, ...] | None = None
    holds: Holds = ()

    @field_validator("budget")
    @classmethod
    def _counts_are_whole(cls, budget: dict[str, int | float]) -> dict[str, int | float]:
        for name, bound in budget.items():
            if isinstance(bound, float) and not (name in FRACTIONAL and 0 < bound < math.inf):
                raise ValueError(f"{name} = {bound}: a whole number is expected")
        return budget

    @model_validator(mode="after")
    def _labels_are_the_examples(self) -> Self:
        if self.labels is not None and (
            len(self.labels) != len(self.classes) or sum(self.labels) != self.examples
        ):
            raise ValueError(
                f"labels = {self.labels}: a count for each of {len(self.classes)} classes, "
                f"{self.examples} together, is expected"
            )
        return self


class ProfileRequest(Body):
    """Ask a device for its profile; the space tells it what a typical subnet is.

    With a `run` it is asked, too, what it holds of that run's weights.
    """

    action: ClassVar[str] = "query.profile"
    space: dict[str, object]
    run: str | None = None


class OwnNoise(BaseModel):
    """What a device does to its change before it sends it: L2 norm at most `clip`, then noise.

    Independent normal noise of standard deviation `std` on each value, by its own randomness.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    clip: float = Field(gt=0)
    std: float = Field(ge=0)


class TrainRequest(Body):
    """Train one subnet from the values in the array; `tensors` says what lies where in it.

    `offset` is how far the subnet's window of channels is rolled inside the shared weights. With a
    `codec` the reply's array is the encoded change, with an error memory if `error_memory`; with
    `noise` it holds the sent values plus the noised change. Tensors named `local` are trained from
    the device's own values, where it has some, and stay with it; `frozen` ones are not trained.
    Neither is sent back. With `holding` the device keeps the values for a later round's difference.
    """

    action: ClassVar[str] = "train"
    run: str
    round: int = Field(ge=1)
    seed: int
    lr: float = Field(gt=0)
    deadline_s: float = Field(gt=0)
    space: dict[str, object]
    arch: ArchValues
    offset: int = Field(0, ge=0)
    recipe: Recipe
    tensors: TensorShapes
    codec: CodecConfig | None = None
    error_memory: bool = True
    local: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    noise: OwnNoise | None = None
    holding: Holding | None = None

    @model_validator(mode="after")
    def _base_is_earlier(self) -> Self:
        base = None if self.holding is None else self.holding.base
        if base is not None and base.round >= self.round:
            raise ValueError(f"holding.base is of round {base.round}, not before {self.round}")
        return self

    @model_validator(mode="after")
    def _noise_travels_as_it_is(self) -> Self:
        if self.noise is not None and self.codec is not None:
            raise ValueError("noise does not go with a codec")
        return self


class TrainReply(Body):
    """A device's update and how many examples weigh in.

    The array holds the new values of those tensors that are to be sent back, float32, or, where a
    codec was asked for, the bytes of the encoded change. `holds` is what the device holds now.
    """

    action: ClassVar[str] = "train"
    run: str
    round: int
    device: str
    arch: ArchValues
    examples: int
    steps: Count
    loss: float
    train_macs: Count
    seconds: float
    tensors: TensorShapes
    holds: Holds = ()


class SubnetGroup(BaseModel):
    """Some subnets and the hull whose values contain them all, in the array from `offset` on.

    `widths`, where any are given, has for each subnet the kernels that are rounded before anything is
    measured, and to how many bits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hull: ArchValues
    offset: int = Field(ge=0)
    archs: tuple[ArchValues, ...]
    widths: tuple[dict[str, int], ...] = ()


class MomentsRequest(Body):
    """Ask for batch-norm moments of some subnets over the device's training examples."""

    action: ClassVar[str] = "query.moments"
    space: dict[str, object]
    batch_size: int = Field(ge=2)
    max_examples: int | None = Field(default=None, ge=2)
    groups: tuple[SubnetGroup, ...]


class MomentsReply(Body):
    """Per subnet and norm layer the count; the array holds Σx then Σx² of each, float64."""

    action: ClassVar[str] = "query.moments"
    device: str
    counts: tuple[dict[str, Count], ...]


class InputsRequest(Body):
    """Ask for second moments of kernels' inputs over up to so many of the device's training examples.

    `kernels` are each subnet's; the array is as in `EvaluateRequest`.
    """

    action: ClassVar[str] = "query.inputs"
    space: dict[str, object]
    batch_size: int = Field(ge=1)
    max_examples: int = Field(ge=2)
    groups: tuple[SubnetGroup, ...]
    kernels: tuple[tuple[str, ...], ...]


class InputsReply(Body):
    """The array holds, per subnet, kernel and block, the sums' upper triangle row by row, float32."""

    action: ClassVar[str] = "query.inputs"
    device: str
    examples: Count


class Personal(BaseModel):
    """Which tensors a device is to replace by its own: those that it kept up to a run's round."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str
    round: int = Field(ge=0)
    tensors: tuple[str, ...]


class EvaluateRequest(Body):
    """Ask how many validation examples some subnets classify rightly.

    The array holds each group's hull values, and after all of them, per subnet in the order of
    the groups and per norm layer, the merged mean and variance. With `personal` the device measures
    its own model: its own tensors, and norm statistics over its own training examples. With
    `temperatures` it adds the summed negative log-likelihood with the logits divided by each. With
    `paired` it adds what each subnet gains over the first one.
    """

    action: ClassVar[str] = "evaluate"
    space: dict[str, object]
    batch_size: int = Field(ge=1)
    groups: tuple[SubnetGroup, ...]
    personal: Personal | None = None
    temperatures: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = ()
    paired: bool = False


class EvaluateReply(Body):
    """Right answers per subnet, of `examples` validation examples; `nll` per subnet and temperature.

    `gained`: per subnet, how many it classifies rightly that the first one does not.
    """

    action: ClassVar[str] = "evaluate"
    device: str
    examples: Count
    correct: tuple[Count, ...]
    nll: tuple[tuple[Finite, ...], ...] = ()
    gained: tuple[Count, ...] = ()


class RangesRequest(Body):
    """Ask for the activation ranges of exported float files.

    The array's bytes are the files, one after the other; `files` gives kind, input shape without the
    batch, and size in bytes of each. With `bins` above 0 histograms of at most so many bins are asked
    for, too.
    """

    action: ClassVar[str] = "query.ranges"
    max_examples: int = Field(ge=1)
    files: tuple[tuple[FileKind, tuple[int, ...], int], ...]
    bins: int = Field(0, ge=0, le=MOST_BINS)


class RangesReply(Body):
    """Per file the observed ranges: tensor → (minimum, maximum), and how many examples.

    `histograms`, where they were asked for: tensor → (exact zeros, counts of the bins that its range
    has, see `histograms.Histogram`).
    """

    action: ClassVar[str] = "query.ranges"
    device: str
    examples: Count
    ranges: tuple[dict[str, tuple[float, float]], ...]
    histograms: tuple[dict[str, tuple[Count, Counts]], ...] = ()


class VerifyItem(BaseModel):
    """One subnet and its exported files; the array holds their bytes, one item after the other.

    First `values` float32 numbers, the subnet's weights and norm statistics, then each file. The
    files give the subnet's logits divided by `temperature`, plus `shift`. `timed` asks for their
    latencies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    arch: ArchValues
    values: int = Field(ge=1)
    files: tuple[FileEntry, ...]
    temperature: float = Field(1.0, gt=0, le=1e6)
    shift: tuple[Finite, ...] = ()
    timed: bool = False


class VerifyRequest(Body):
    """Ask how exported files do on the device's validation examples, beside the subnet itself.

    With `calibration`, also how far the confidences of both may be trusted.
    """

    action: ClassVar[str] = "evaluate.files"
    space: dict[str, object]
    items: tuple[VerifyItem, ...]
    calibration: bool = False


class Verdict(BaseModel):
    """Right answers of a subnet in PyTorch and of each of its files, in order.

    `agree` counts equal top-1 answers, `max_difference` is the largest absolute difference of any
    logit, per file. `calibration`, where it was asked for, is that of the subnet, then of each file.
    `latency_s` is what one run on one example takes, per file; none where nobody asked.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants"
    )

    reference_correct: Count
    correct: tuple[Count, ...]
    agree: tuple[Count, ...]
    max_difference: tuple[float, ...]
    calibration: tuple[CalibrationSums, ...] = ()
    latency_s: tuple[Seconds, ...] = ()


class VerifyReply(Body):
    """One verdict per item, on `examples` validation examples."""

    action: ClassVar[str] = "evaluate.files"
    device: str
    examples: Count
    verdicts: tuple[Verdict, ...]


def tensor_shapes(shapes: Mapping[str, tuple[int, ...]]) -> TensorShapes:
    """The manifest of a flat array, from name → shape."""
    return tuple((name, tuple(shape)) for name, shape in shapes.items())
