"""Parts of the samples that are held out in turn."""

import numpy as np
from numpy.typing import NDArray

from ...supernet.randomness import array_stream


def folds_of(count: int, folds: int) -> list[NDArray[np.intp]]:
    """The places 0…count-1 in up to `folds` parts, mixed in an order that hangs on the count."""
    order = array_stream("folds", count).permutation(count)
    return [part for part in np.array_split(order, min(folds, count)) if len(part)]
