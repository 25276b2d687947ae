"""A data function for any input shape: noisy copies of one random pattern a class."""

import numpy as np
from fedofa.client.data import ClientData, Examples
from fedofa.protos.manifest import Normalization

EXAMPLES, VALIDATION = 96, 24
NOISE = 0.5


def load(root: str | None, *, client: int, clients: int, shape: str, classes: int) -> ClientData:
    """One client's examples, `shape` as in "3,32,32"; the patterns are the same for every client."""
    size = tuple(int(part) for part in shape.split(","))
    patterns = np.random.default_rng(0).normal(size=(classes, *size))
    rng = np.random.default_rng([1, client])
    y = rng.integers(0, classes, EXAMPLES + VALIDATION)
    x = (patterns[y] + NOISE * rng.normal(size=(len(y), *size))).astype(np.float32)
    everything = Examples(x, y.astype(np.int64))
    names = tuple(str(c) for c in range(classes))
    rows = np.arange(len(y))
    normalization = Normalization(mean=(0.0,) * size[0], std=(1.0,) * size[0])
    return ClientData(
        everything.take(rows[:EXAMPLES]), everything.take(rows[EXAMPLES:]), names, normalization
    )
