"""Splitting one data set between clients, for experiments and demonstrations."""

import numpy as np
from numpy.typing import NDArray

from ..supernet.errors import UsageError

Rows = NDArray[np.int64]


def dirichlet(
    labels: NDArray[np.int64], clients: int, alpha: float, seed: int, least: int = 10
) -> list[Rows]:
    """Rows per client: each class is divided by shares drawn from Dirichlet(alpha).

    The usual label-skewed split (Hsu, Qi and Brown 2019). Clients left with fewer than `least`
    rows get some from the richest. Every row goes to exactly one client; depends on the arguments
    only.
    """
    if clients * least > len(labels):
        raise UsageError(f"{len(labels)} examples cannot give {clients} clients {least} each")
    if alpha <= 0:
        raise UsageError(f"alpha = {alpha}; must be greater than 0")
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(int(row) for row in piece)
    for part in parts:
        while len(part) < least:
            richest = max(parts, key=len)
            part.append(richest.pop(int(rng.integers(len(richest)))))
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def long_tail(labels: NDArray[np.int64], ratio: float, seed: int) -> Rows:
    """Rows of a long-tailed data set: the first class keeps all, the last 1 / `ratio` of its rows.

    In between classes shrink geometrically (Cui et al. 2019).
    """
    if ratio < 1:
        raise UsageError(f"tail = {ratio}; how many times fewer the last class has: at least 1")
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    kept = []
    for place, label in enumerate(classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        share = ratio ** (-place / max(len(classes) - 1, 1))
        kept.append(rows[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(kept))


def held_out(count: int, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """(kept, held out) rows of `count`, drawn without replacement."""
    order = np.random.default_rng(seed).permutation(count)
    out = round(count * fraction)
    return np.sort(order[out:]), np.sort(order[:out])
