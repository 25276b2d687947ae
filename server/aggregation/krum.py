"""Multi-Krum on the covered part: the clients that are nearest to their neighbours are averaged.

Blanchard et al. 2017. With n updates and at most f liars, the score of an update is the sum of its
squared distances to the n - f - 2 nearest others; the n - f best are merged by the weighted mean
(`keep` = 1 is Krum itself). It asks for n ≥ 2f + 3. Deviation: regions are unequal, so two updates
are compared on the values that both have, by the mean square of their difference there. A value
that only rejected clients trained keeps what it was.
"""

import numpy as np
from numpy.typing import NDArray

from ...supernet.weights import Shapes
from .overlap_mean import OverlapMean
from .spool import Spool
from .update import Merged, Update


def least_updates(liars: int) -> int:
    """How many updates Krum needs to tolerate so many liars."""
    return 2 * liars + 3


class Krum:
    """Multi-Krum against `liars` liars; keeps `keep` updates, or all but as many as may lie."""

    def __init__(self, shapes: Shapes, liars: int, keep: int | None) -> None:
        self._shapes, self._liars, self._keep = dict(shapes), liars, keep
        self._spool = Spool(shapes)

    def add(self, update: Update) -> None:
        """Keep one client's update on disk until the end of the round."""
        self._spool.add(update)

    def result(self) -> Merged:
        """The mean of the chosen updates; the others are suspects.

        With too few updates for the claim as many liars as can be are tolerated, and a note says so.
        """
        count = len(self._spool)
        notes: tuple[str, ...] = ()
        liars = max(0, min(self._liars, (count - 3) // 2))
        if liars < self._liars:
            notes = (f"{count} updates: only {liars} of {self._liars} liars are tolerated",)
        keep = min(self._keep or count - liars, count)
        # In the order of names, so that equal scores do not hang on who came first.
        named = sorted(range(count), key=lambda place: self._spool.light()[place].device)
        order = np.argsort(scores(self._distances(named), liars), kind="stable")
        chosen = frozenset(named[place] for place in order[:keep])
        mean, suspects = OverlapMean(self._shapes), {}
        for place, update in enumerate(self._spool.updates()):
            if place in chosen:
                mean.add(update)
            else:
                suspects[update.device] = "krum"
        self._spool.close()
        merged = mean.result()
        # Who is left out by `keep` alone is not suspected of anything.
        left_out = suspects if self._keep is None else {}
        return Merged(merged.delta, merged.trained, left_out, notes)

    def _distances(self, order: list[int]) -> NDArray[np.float64]:
        """Mean square difference of each pair over the values that both have, (K, K)."""
        count = len(order)
        squares, products, common = (np.zeros((count, count)) for _ in range(3))
        for block in self._spool.blocks():
            v_kb = block.values.reshape(count, -1)[order]
            has_kb = (~np.isnan(v_kb)).astype(np.float32)
            v_kb = np.nan_to_num(v_kb, copy=False)
            squares += (v_kb * v_kb) @ has_kb.T
            products += v_kb @ v_kb.T
            common += has_kb @ has_kb.T
        with np.errstate(invalid="ignore"):
            apart = np.maximum(squares + squares.T - 2 * products, 0) / common
        return np.where(common > 0, apart, np.inf)


def scores(distance_kk: NDArray[np.float64], liars: int) -> NDArray[np.float64]:
    """Krum's score of each update: lower is more trusted."""
    count = len(distance_kk)
    neighbours = max(1, count - liars - 2)
    others = np.sort(distance_kk + np.diag(np.full(count, np.inf)), axis=1)
    score_k: NDArray[np.float64] = others[:, :neighbours].sum(axis=1)
    return score_k
