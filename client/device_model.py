"""Run the model in use on a batch of raw inputs: predictions, accuracy, latency."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..protos.inference import InferenceModel, open_model
from ..protos.manifest import Manifest
from ..supernet.errors import UsageError
from .store import Installed

WARM_UP_RUNS = 10
TIMED_RUNS = 200
TIMED_S = 5.0
_BATCH = 64
_CHANNEL_DIMENSION = {"NCHW": 1, "NHWC": 3, "NC": 1, "NCT": 1}

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of single-example runs on one thread, after a warm-up."""

    median_ms: float
    p95_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a batch gave: a class index per example, the share that is right, the latency.

    `runtime` is the Python package that ran the file.
    """

    runtime: str
    predictions: tuple[int, ...]
    accuracy: float | None
    latency: Latency


def measure(installed: Installed, x: Floats, labels: Labels | None) -> Measured:
    """Normalize raw inputs `x` (N, ... as in the manifest's layout), run them, time single runs."""
    manifest = installed.manifest
    model = open_model(installed.model_path, manifest.file(installed.kind))
    normalized = normalize(manifest, x)
    batches = [normalized[at : at + _BATCH] for at in range(0, len(x), _BATCH)]
    predicted = np.concatenate([model.run(batch).argmax(axis=-1).ravel() for batch in batches])
    accuracy = None if labels is None else float((predicted == labels).mean())
    return Measured(model.runtime, tuple(predicted.tolist()), accuracy, _time(model, normalized))


def normalize(manifest: Manifest, x: Floats) -> Floats:
    """(raw - mean) / std per channel."""
    shape = [1] * x.ndim
    shape[_CHANNEL_DIMENSION[manifest.layout]] = -1
    mean = np.asarray(manifest.normalization.mean, np.float32).reshape(shape)
    std = np.asarray(manifest.normalization.std, np.float32).reshape(shape)
    scaled: Floats = np.ascontiguousarray((x - mean) / std, np.float32)
    return scaled


def _time(model: InferenceModel, x: Floats) -> Latency:
    times_ms: list[float] = []
    end = time.perf_counter() + TIMED_S
    for run in range(WARM_UP_RUNS + TIMED_RUNS):
        example = x[run % len(x)][None]
        start = time.perf_counter()
        model.run(example)
        now = time.perf_counter()
        if run >= WARM_UP_RUNS or now > end:
            times_ms.append((now - start) * 1e3)
        if now > end:
            break
    median_ms, p95_ms = np.percentile(times_ms, [50, 95])
    return Latency(float(median_ms), float(p95_ms), len(times_ms))


def read_inputs(path: Path, manifest: Manifest) -> Floats:
    """Raw inputs from an .npy file; UsageError unless they are (N, *shape) finite numbers."""
    array = _load(path, "input")
    shape = manifest.golden.input_shape[1:]
    wanted = f"(N{''.join(f', {size}' for size in shape)}) in layout {manifest.layout}"
    if array.dtype.kind not in "fiub" or array.shape[1:] != shape or not len(array):
        raise UsageError(f"input {path}: {array.dtype}{array.shape}; numbers {wanted} are needed")
    x = array.astype(np.float32)
    if not np.isfinite(x).all():
        raise UsageError(f"input {path}: it holds NaN or infinity (as float32)")
    return x


def read_labels(path: Path, examples: int, classes: int) -> Labels:
    """Class indices from an .npy file; UsageError unless they are (examples,) from 0."""
    array = _load(path, "labels")
    if array.dtype.kind not in "iu" or array.shape != (examples,):
        raise UsageError(f"labels {path}: {array.dtype}{array.shape}; integers ({examples},)")
    if array.min() < 0 or array.max() >= classes:
        raise UsageError(
            f"labels {path}: from {array.min()} to {array.max()}; allowed: 0 to {classes - 1}"
        )
    return array.astype(np.int64)


def _load(path: Path, field: str) -> NDArray[np.generic]:
    try:
        with path.open("rb") as file:
            array: NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        first = str(error).splitlines()[0] if str(error) else "empty file"
        raise UsageError(f"{field} {path}: {first}; give an .npy file of numbers") from None
    if array.ndim == 0:
        raise UsageError(f"{field} {path}: one number; give an array with the examples first")
    return array
