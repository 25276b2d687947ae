"""How an artifact's file runs: with whichever runtime the device has. No torch in here.

TFLite files run in ai-edge-litert or tflite-runtime, ONNX files in onnxruntime. Inputs and outputs
are float32 here; a quantized file's are converted as its manifest says.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..supernet.errors import ArtifactError, UsageError
from .manifest import FILE_NAMES, FileEntry, FileKind, Manifest, TensorSpec
from .runtimes import LITERT, ONNX, TFLITE, available_runtimes, load_onnx, load_tflite

__all__ = [
    "ACTIVATION",
    "Floats",
    "InferenceModel",
    "Ranges",
    "available_kinds",
    "available_runtimes",
    "dequantized",
    "first_available_kind",
    "open_model",
    "quantized",
    "runtimes_of",
]

Floats = NDArray[np.float32]
Ranges = dict[str, tuple[float, float]]
"""Activation tensor → (least, greatest) value seen."""

ACTIVATION = "a"
"""Exported files name activations a0, a1, … and constants otherwise, so a device can tell them."""
PREFERENCE: tuple[FileKind, ...] = tuple(FILE_NAMES)


class InferenceModel(Protocol):
    """A loaded file."""

    @property
    def runtime(self) -> str:
        """The Python package that runs it."""

    def run(self, x: Floats) -> Floats:
        """Outputs (n, …) for normalized inputs `x` (n, …) in the manifest's layout."""


def available_kinds() -> tuple[FileKind, ...]:
    """Kinds of file that an installed runtime can run, the preferred first."""
    installed = available_runtimes()
    return tuple(kind for kind in PREFERENCE if set(runtimes_of(kind)) & set(installed))


def first_available_kind(manifest: Manifest, preferred: FileKind | None = None) -> FileKind:
    """The file to use: the preferred one, or the first that exists and can run here.

    Raises ArtifactError when there is none, saying what to install.
    """
    offered = [entry.kind for entry in manifest.files]
    for kind in (preferred,) if preferred else PREFERENCE:
        if kind in offered and kind in available_kinds():
            return kind
    wanted = preferred or " or ".join(offered)
    raise ArtifactError(
        f"model {manifest.model}: no runtime here for {wanted} (installed: "
        f"{', '.join(available_runtimes()) or 'none'}); pip install ai-edge-litert or onnxruntime"
    )


def open_model(path: Path, entry: FileEntry, threads: int = 1) -> InferenceModel:
    """Load a file.

    ArtifactError when no runtime is installed, the file does not load, or its input or output is
    not what the manifest's entry says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
    if entry.kind.startswith("tflite"):
        return _TfliteModel(load_tflite(content, threads), entry)
    return _OnnxModel(load_onnx(content, threads), entry)


class _TfliteModel:
    def __init__(self, interpreter: Any, entry: FileEntry) -> None:
        self._interpreter = interpreter
        self._spec = entry.inputs[0], entry.outputs[0]
        source, sink = interpreter.get_input_details(), interpreter.get_output_details()
        for spec, details in zip(self._spec, (source, sink), strict=True):
            shape = tuple(int(size) for size in details[0]["shape"])
            _check_tensor(
                entry, spec, details[0]["name"], shape, np.dtype(details[0]["dtype"]).name
            )
        self._input, self._output = source[0]["index"], sink[0]["index"]
        self.runtime = type(interpreter).__module__.partition(".")[0]

    def run(self, x: Floats) -> Floats:
        """One example after the other: the file is made for a batch of one."""
        _check_input(x, self._spec[0])
        if not len(x):
            return np.empty((0, *self._spec[1].shape[1:]), np.float32)
        return np.concatenate([self._one(x[at : at + 1]) for at in range(len(x))])

    def _one(self, x: Floats) -> Floats:
        self._interpreter.set_tensor(self._input, quantized(x, self._spec[0]))
        self._interpreter.invoke()
        return dequantized(self._interpreter.get_tensor(self._output), self._spec[1])


class _OnnxModel:
    runtime = ONNX

    def __init__(self, session: Any, entry: FileEntry) -> None:
        self._session = session
        self._spec = entry.inputs[0], entry.outputs[0]
        for spec, found in zip(
            self._spec, (session.get_inputs()[0], session.get_outputs()[0]), strict=True
        ):
            # A free dimension has a text instead of a size; the manifest counts it 1.
            shape = tuple(size if isinstance(size, int) else 1 for size in found.shape)
            _check_tensor(entry, spec, found.name, shape, _ONNX_DTYPES.get(found.type, found.type))

    def run(self, x: Floats) -> Floats:
        """The whole batch at once."""
        _check_input(x, self._spec[0])
        feed = {self._spec[0].name: quantized(x, self._spec[0])}
        found = self._session.run([self._spec[1].name], feed)[0]
        return dequantized(found, self._spec[1])


_ONNX_DTYPES = {"tensor(float)": "float32", "tensor(int8)": "int8", "tensor(uint8)": "uint8"}


def _check_tensor(
    entry: FileEntry, spec: TensorSpec, name: str, shape: tuple[int, ...], dtype: str
) -> None:
    if (spec.name, spec.shape, spec.dtype) != (name, shape, dtype):
        raise ArtifactError(
            f"{entry.name} has a tensor {name} {dtype}{shape} where the manifest says "
            f"{spec.name} {spec.dtype}{spec.shape}"
        )


def _check_input(x: Floats, spec: TensorSpec) -> None:
    if x.shape[1:] != spec.shape[1:]:
        raise UsageError(f"input {x.shape}; the model takes (n, *{spec.shape[1:]})")


def quantized(x: Floats, spec: TensorSpec) -> NDArray[Any]:
    """Real numbers as the file's input holds them."""
    if spec.scale is None or spec.zero_point is None:
        return np.ascontiguousarray(x, dtype=np.float32)
    info = np.iinfo(spec.dtype)
    steps = np.round(x / np.float32(spec.scale)) + spec.zero_point
    found: NDArray[Any] = np.clip(steps, info.min, info.max).astype(spec.dtype)
    return found


def dequantized(y: NDArray[Any], spec: TensorSpec) -> Floats:
    """A file's output as real numbers."""
    if spec.scale is None or spec.zero_point is None:
        return y.astype(np.float32, copy=True)
    real: Floats = (y.astype(np.float32) - spec.zero_point) * np.float32(spec.scale)
    return real


def runtimes_of(kind: FileKind) -> tuple[str, ...]:
    """The packages that can run a kind of file."""
    if kind == "tflite_int4":
        return (LITERT,)  # tflite-runtime 2.14 has no kernels for 4-bit weights
    return (LITERT, TFLITE) if kind.startswith("tflite") else (ONNX,)
