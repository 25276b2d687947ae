"""Arrays by name with a text, as one safetensors file: the same ones always give the same bytes."""

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..supernet.errors import ArtifactError

_TEXT = "fedofa"


def packed(arrays: Mapping[str, NDArray[np.float32]], text: str) -> bytes:
    """The file's content; ArtifactError for values that `unpacked` would refuse."""
    from safetensors.numpy import save

    # Not `ascontiguousarray`, which gives a number a dimension.
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    for name, array in ordered.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ArtifactError(f"{name[:80]} is not finite float32")
    return bytes(save(ordered, {_TEXT: text}))


def unpacked(content: bytes, name: str) -> tuple[dict[str, NDArray[np.float32]], str]:
    """Arrays and text; ArtifactError begins with the file's name.

    Every array is finite float32: nothing else is written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        text = head["__metadata__"][_TEXT]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{name}: no file that fedofa wrote ({first})") from None
    for key, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ArtifactError(f"{name}: {key[:80]} is not finite float32")
    return arrays, str(text)
