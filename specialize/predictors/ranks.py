"""Kendall's rank correlation, with ties."""

import numpy as np

from .contract import Vector


def kendall_tau(a: Vector, b: Vector) -> float:
    """Tau-b of two scores of the same things (N,): −1 reversed … 1 the same order.

    (concordant − discordant) / √(pairs untied in a · pairs untied in b); 0 where either has no
    order at all.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    upper = np.triu_indices(len(a), 1)
    da, db = (np.sign(v[:, None] - v[None])[upper] for v in (a, b))
    untied = float(np.abs(da).sum()) * float(np.abs(db).sum())
    return float((da * db).sum() / untied**0.5) if untied else 0.0
