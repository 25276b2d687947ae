"""What a float file's activations are over given inputs: ranges and histograms. No torch in here."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..supernet.errors import ArtifactError, UsageError
from .histograms import Histogram
from .inference import ACTIVATION, Floats, Ranges
from .manifest import FileKind
from .runtimes import load_onnx, load_tflite

OBSERVED_AT_ONCE = 64


def observe_ranges(content: bytes, kind: FileKind, x: Floats) -> Ranges:
    """The ranges of a float file's activations over inputs `x` (n, …), n at least 1.

    Exact minima and maxima: merging two devices' ranges gives those of all their inputs together.
    UsageError without inputs; ArtifactError when the file does not load or a value is not finite.
    """
    seen: Ranges = {}
    for name, values in _activations(content, kind, x):
        low, high = seen.get(name, (np.inf, -np.inf))
        # numpy's minimum keeps a NaN, Python's may lose it.
        seen[name] = (
            float(np.minimum(low, values.min())),
            float(np.maximum(high, values.max())),
        )
    for name, bounds in seen.items():
        if not np.isfinite(bounds).all():
            raise ArtifactError(f"{kind}: activation {name} is not finite: {bounds}")
    return seen


def observe_histograms(
    content: bytes, kind: FileKind, x: Floats, bins: int
) -> dict[str, Histogram]:
    """The same with histograms of at most so many bins, which merge as exactly."""
    seen: dict[str, Histogram] = {}
    for name, values in _activations(content, kind, x):
        try:
            found = Histogram.of(values, bins)
        except UsageError as error:
            raise ArtifactError(f"{kind}: activation {name}: {error}") from None
        seen[name] = seen[name] + found if name in seen else found
    return seen


def _activations(content: bytes, kind: FileKind, x: Floats) -> Iterator[tuple[str, Floats]]:
    """Name and values of each activation, a few inputs at a time."""
    if not len(x):
        raise UsageError("activation ranges: no example to observe; at least one is needed")
    if kind.startswith("tflite"):
        return _tflite(load_tflite(content, 1, observe=True), x)
    return _onnx(load_onnx(content, 1), x)


def _tflite(interpreter: Any, x: Floats) -> Iterator[tuple[str, Floats]]:
    names = {
        detail["index"]: detail["name"]
        for detail in interpreter.get_tensor_details()
        if _is_activation(detail["name"]) and detail["dtype"] == np.float32
    }
    entry = interpreter.get_input_details()[0]["index"]
    for at in range(len(x)):
        interpreter.set_tensor(entry, np.ascontiguousarray(x[at : at + 1], np.float32))
        interpreter.invoke()
        for index, name in names.items():
            yield name, interpreter.get_tensor(index)


def _onnx(session: Any, x: Floats) -> Iterator[tuple[str, Floats]]:
    entry = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs() if output.type == "tensor(float)"]
    for at in range(0, len(x), OBSERVED_AT_ONCE):
        batch = np.ascontiguousarray(x[at : at + OBSERVED_AT_ONCE], np.float32)
        found = {entry: batch, **dict(zip(names, session.run(names, {entry: batch}), strict=True))}
        yield from found.items()


def _is_activation(name: str) -> bool:
    return name[:1] == ACTIVATION and name[1:].isdigit()
