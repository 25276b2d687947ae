"""Activation ranges from many devices, merged exactly."""

import math
from collections.abc import Sequence

from ..protos.inference import Ranges
from ..supernet.errors import ExportError


def merge(parts: Sequence[Ranges]) -> Ranges:
    """Least minimum and greatest maximum per tensor: what one place would see over all inputs.

    ExportError when there are none, when they name different tensors, or when one is not finite.
    """
    if not parts:
        raise ExportError("activation ranges: no device returned any")
    merged: Ranges = {}
    for part in parts:
        if merged and part.keys() != merged.keys():
            raise ExportError(
                f"activation ranges name other tensors: {sorted(part.keys() ^ merged.keys())[:3]}"
            )
        for name, (low, high) in part.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ExportError(f"activation range of {name} is {low} to {high}")
            least, most = merged.get(name, (math.inf, -math.inf))
            merged[name] = (min(least, low), max(most, high))
    return merged
