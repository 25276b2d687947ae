"""Multi-Krum on the covered part: the clients that are nearest to their neighbours are averaged.

Blanchard et al. 2017. With n updates and at most f liars, the score of an update is the sum of its
squared distances to the n - f - 2 nearest others; the n - f best are merged by the weighted mean
(`keep` = 1 is Krum itself). It asks for n ≥ 2f + 3. Deviation: regions are unequal, so two updates
are compared on the values that both have, by the mean square of their difference there. A value
that only rejected clients trained keeps what it was.

Somebody is left out in every round, whether anybody lies or not. That alone is no suspicion: a client
is suspected whose score is more than `SUSPECT_RATIO` times the median score of those that were kept.
"""

import numpy as np
from numpy.typing import NDArray

from ...supernet.weights import Shapes
from .overlap_mean import OverlapMean
from .spool import Spool
from .update import Merged, Update

SUSPECT_RATIO = 4.0
"""Scores are squared distances: twice as far from its neighbours as the typical client is."""


def least_updates(liars: int) -> int:
    """How many updates Krum needs to tolerate so many liars."""
    return 2 * liars + 3


class Krum:
    """Multi-Krum against `liars` liars; keeps `keep` updates, at most all but as many as may lie."""

    def __init__(self, shapes: Shapes, liars: int, keep: int | None) -> None:
        self._shapes, self._liars, self._keep = dict(shapes), liars, keep
        self._spool = Spool(shapes)

    def add(self, update: Update) -> None:
        """Keep one client's update on disk until the end of the round."""
        self._spool.add(update)

    def result(self) -> Merged:
        """The mean of the chosen updates; of the others, those that are far away are suspects.

        With too few updates for the claim as many liars as can be are tolerated, and a note says so.
        """
        count = len(self._spool)
        notes: tuple[str, ...] = ()
        liars = max(0, min(self._liars, (count - 3) // 2))
        if liars < self._liars:
            notes = (f"{count} updates: only {liars} of {self._liars} liars are tolerated",)
        keep = min(self._keep or count, max(count - liars, 1))
        # In the order of names, so that equal scores do not hang on who came first.
        named = sorted(range(count), key=lambda place: self._spool.light()[place].device)
        score_k = scores(self._distances(named), liars)
        order = np.argsort(score_k, kind="stable")
        chosen = frozenset(named[place] for place in order[:keep])
        far = SUSPECT_RATIO * float(np.median(score_k[order[:keep]])) if count else 0.0
        suspects = {
            self._spool.light()[named[place]].device: "krum"
            for place in order[keep:]
            if score_k[place] > far
        }
        mean, counted = OverlapMean(self._shapes), {}
        for place, update in enumerate(self._spool.updates()):
            if place in chosen:
                mean.add(update)
            else:
                counted[update.device] = 0.0
        self._spool.close()
        merged = mean.result()
        return Merged(merged.delta, merged.trained, suspects, notes, counted=counted)

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
