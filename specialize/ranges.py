"""Activation ranges from many devices, merged exactly, and made fit to quantize with."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..protos.inference import Ranges
from ..supernet.errors import ExportError

M = TypeVar("M", bound=Mapping[str, Any])
NEVER_ACTIVE = 1e-6


def agreeing(parts: Sequence[M]) -> list[M]:
    """The parts that name the same tensors as most of them do: one odd device costs its own only."""
    names = Counter(frozenset(part) for part in parts)
    return [part for part in parts if part.keys() == names.most_common(1)[0][0]]


def merge(parts: Sequence[Ranges]) -> Ranges:
    """Least minimum and greatest maximum per tensor: what one place would see over all inputs.

    ExportError when there are none, when they name different tensors, or when one is not finite.
    """
    if not parts:
        raise ExportError("activation ranges: no device returned any")
    merged: Ranges = {}
    for part in parts:
        if differing := sorted(part.keys() ^ parts[0].keys()):
            raise ExportError(f"activation ranges name other tensors: {', '.join(differing[:3])}")
        for name, (low, high) in part.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ExportError(f"activation range of {name} is {low} to {high}")
            least, most = merged.get(name, (math.inf, -math.inf))
            merged[name] = (min(least, low), max(most, high))
    return merged


def with_width(ranges: Ranges) -> Ranges:
    """The same, but 0 to 1 for a tensor that is 0 all the time: a layer that is never active.

    Quantizers divide by the width. Any scale holds a 0 exactly; one of ordinary size also leaves
    the neighbouring layers' scales in bounds.
    """
    return {
        name: (0.0, 1.0) if max(abs(low), abs(high)) < NEVER_ACTIVE else (low, high)
        for name, (low, high) in ranges.items()
    }
