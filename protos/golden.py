"""How far a file's golden output may lie from its reference."""

import numpy as np
from numpy.typing import NDArray

# A golden test must pass on another processor's arithmetic too.
GOLDEN_MARGIN, GOLDEN_FLOOR = 2.0, 1e-4


LEAST_STEPS = 2
"""What a file that ends in integers may be off by: another processor may round otherwise."""


def allowed(output: NDArray[np.float32], reference: NDArray[np.float32], told: float) -> float:
    """What was seen here or on devices, twice.

    `told`, the devices' largest difference, counts up to half the range of the reference's logits:
    with more, the test would accept nearly anything, and one device's word would be enough.
    """
    seen = float(np.abs(output - reference).max())
    return GOLDEN_MARGIN * max(seen, min(told, float(np.ptp(reference)) / 2)) + GOLDEN_FLOOR
