"""An architecture as numbers: one column for each option of each gene, and log-MACs.

One-hot, since an integer code ranks far worse with so few samples; log-MACs is the one continuous
feature, and the one thing that says how large options are.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ...supernet.cost import cost
from ...supernet.space import Arch, Space
from .contract import Matrix


def encode(space: Space, archs: Sequence[Arch]) -> Matrix:
    """Features (N, options + 1). A gene that does not matter in an architecture has none set."""
    if not archs:
        return np.empty((0, _width(space)))
    return np.stack([_row(space, arch) for arch in archs])


@lru_cache(maxsize=65536)
def _row(space: Space, arch: Arch) -> Matrix:
    found = [
        float(arch.get(gene.name) == option) for gene in space.genes for option in gene.options
    ]
    return np.array([*found, math.log(cost(space, arch).macs)])


def _width(space: Space) -> int:
    return 1 + sum(len(gene.options) for gene in space.genes)
