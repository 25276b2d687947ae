"""The manifest: what a stranger needs to use an artifact, as JSON beside its files.

Importable without torch: devices read it.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..supernet.errors import ArtifactError

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
TRAINABLE = "trainable"
"""What the registry calls the file to train on, where the others go by their kind."""
FileKind = Literal[
    "tflite_int8", "onnx_int8", "tflite_int4", "onnx_int4", "tflite_fp32", "onnx_fp32"
]
FILE_NAMES: dict[FileKind, str] = {
    "tflite_int8": "model.int8.tflite",
    "onnx_int8": "model.int8.onnx",
    "tflite_int4": "model.int4.tflite",
    "onnx_int4": "model.int4.onnx",
    "tflite_fp32": "model.fp32.tflite",
    "onnx_fp32": "model.fp32.onnx",
}
"""Of each kind, in the order in which a device takes them where it is not told."""
FLOATS: dict[str, FileKind] = {"tflite": "tflite_fp32", "onnx": "onnx_fp32"}
INTS: dict[str, FileKind] = {"tflite": "tflite_int8", "onnx": "onnx_int8"}
INT4S: dict[str, FileKind] = {"tflite": "tflite_int4", "onnx": "onnx_int4"}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorSpec(_Record):
    """One input or output of a file. A quantized tensor holds round(real / scale) + zero_point."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int8", "uint8", "int16"]
    scale: float | None = None
    zero_point: int | None = None


class BareFile(_Record):
    """A file of the artifact. `name` is a bare file name; `sha256` is 64 hex digits."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    size_bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FileEntry(BareFile):
    """A file that a runtime loads."""

    kind: FileKind
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)


class Normalization(_Record):
    """What to do with raw data before the model: (raw - mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Golden(_Record):
    """One real input and the reference output (float32, row-major) with the allowed difference.

    `input` is normalized and in `layout`; `tolerance` gives, per file kind, the largest allowed
    absolute difference between the file's (dequantized) output and `output`. Files of 4 bits have
    references of their own in `outputs`: those of the network with its kernels rounded.
    """

    input_shape: tuple[int, ...]
    input: tuple[float, ...]
    output: tuple[float, ...]
    tolerance: dict[FileKind, float]
    outputs: dict[FileKind, tuple[float, ...]] = Field(default_factory=dict)

    def reference(self, kind: FileKind) -> tuple[float, ...]:
        """What a file of that kind is to give, within its tolerance."""
        return self.outputs.get(kind, self.output)


class Finished(_Record):
    """That a subnet was trained further, for itself: from which checkpoint, for how many rounds.

    `round` and `supernet_sha256` are of the checkpoint of `run` that it was finished from, of which
    the class had `version`. `gain` in accuracy over that, a fraction of 1, with its standard error, is
    paired on the devices' validation examples.
    """

    run: str
    round: int = Field(ge=0)
    supernet_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: int = Field(ge=1)
    rounds: int = Field(ge=1)
    gain: float
    standard_error: float


class Personal(_Record):
    """That a device made this model of a published one, for itself alone: it is in no registry.

    `base_sha256` is of the published manifest, `adapter_sha256` of the file with what was changed,
    `layers` what that touches. Accuracies, fractions of 1, are of the two files on as many of the
    device's own examples, which it did not train on; None where it has none.
    """

    base_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    method: str
    layers: tuple[str, ...]
    examples: int = Field(ge=0)
    base_accuracy: float | None
    accuracy: float | None


class Manifest(_Record):
    """Everything a device or a stranger must know about one published model.

    `supernet_sha256` is of the weights that it was cut from; where it is `finished`, those are the
    finishing's, and the run's are named in there. `trainable` is for devices that train the model
    further for themselves (`protos.trainable`), `personal` says that one did.
    """

    schema_version: int = SCHEMA
    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    version: int = Field(ge=1)
    device_class: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    layout: Literal["NCHW", "NHWC", "NC", "NCT"]
    normalization: Normalization
    classes: tuple[str, ...]
    space: dict[str, object]
    arch: dict[str, int | float]
    supernet_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    cost: dict[str, int]
    budget: dict[str, int | float]
    metrics: dict[str, float] = Field(default_factory=dict)
    golden: Golden
    files: tuple[FileEntry, ...]
    finished: Finished | None = None
    trainable: BareFile | None = None
    personal: Personal | None = None

    @model_validator(mode="after")
    def _files_are_distinct(self) -> Self:
        kinds = {entry.kind for entry in self.files}
        names = {entry.name for entry in self.named().values()} - {MANIFEST_NAME}
        if not self.files or len(kinds) != len(self.files) or len(names) != len(self.named()):
            raise ValueError(
                f"files: at least one, each of its own kind and name, none named {MANIFEST_NAME}"
            )
        return self

    def file(self, kind: str) -> FileEntry:
        """The entry of that kind; ArtifactError names the kinds there are."""
        for entry in self.files:
            if entry.kind == kind:
                return entry
        known = ", ".join(entry.kind for entry in self.files)
        raise ArtifactError(f"manifest of {self.model}: no file of kind {kind!r}; it has {known}")

    def named(self) -> dict[str, BareFile]:
        """All files that belong to the artifact: those to run by kind, and what else there is."""
        found: dict[str, BareFile] = {entry.kind: entry for entry in self.files}
        return found if self.trainable is None else {**found, TRAINABLE: self.trainable}

    def to_json(self) -> bytes:
        """Canonical bytes: the same manifest always gives the same sha256."""
        import json

        # A device of an older version refuses a name that it does not know.
        optional = ("finished", "trainable", "personal")
        left_out: dict[str, Any] = {n: True for n in optional if getattr(self, n) is None}
        if not self.golden.outputs:
            left_out["golden"] = {"outputs"}
        fields = self.model_dump(mode="json", exclude=left_out)
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse and check; ArtifactError names the first wrong field."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise ArtifactError(f"manifest: {where}: {first['msg']}") from None
