"""Parts of the samples that are held out in turn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...supernet.randomness import array_stream
from ...supernet.space import Arch


def folds_of(count: int, folds: int) -> list[NDArray[np.intp]]:
    """The places 0…count-1 in up to `folds` parts, mixed in an order that hangs on the count."""
    order = array_stream("folds", count).permutation(count)
    return [part for part in np.array_split(order, min(folds, count)) if len(part)]


def arch_folds(archs: Sequence[Arch], folds: int) -> list[NDArray[np.intp]]:
    """The places of measured subnets in up to `folds` parts, each subnet's all in one of them.

    A subnet that was measured twice, once held out and once learned from, would be remembered and not
    predicted.
    """
    number = {arch: place for place, arch in enumerate(dict.fromkeys(archs))}
    own = np.array([number[arch] for arch in archs], dtype=np.intp)
    return [np.flatnonzero(np.isin(own, part)) for part in folds_of(len(number), folds)]
