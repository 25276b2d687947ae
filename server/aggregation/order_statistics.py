"""Robust rules value by value: trimmed mean and median over the clients that cover a weight.

Yin et al. 2018, "Byzantine-robust distributed learning", carried over to unequal regions: what is
trimmed is a share of the clients that hold a value, not of the fleet. Of n clients that hold it,
`tolerated(n, trim)` = min(⌈trim·n⌉, ⌊(n-1)/2⌋) lowest and as many highest values are dropped, and the
weighted mean of the others taken: with at most so many liars among the n, whatever they send, the
result lies between the honest values. Values equal to the last one kept are all kept. Where one or
two clients hold a value nothing can be tolerated; only clipping bounds what those send.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...supernet.axes import Weights
from ...supernet.weights import Shapes
from .spool import Spool, Values
from .update import Merged, Update

EDGE_OF_MEDIAN, MOST_EDGE = 0.25, 0.35
"""What share of lowest and of highest values is the edge, by which clients are judged.

The trimmed mean's is what it drops, up to `MOST_EDGE`. A median drops of twenty alike clients each one's
values nineteen times in twenty, and would name all of them.
"""
Combine = Callable[[Values, "NDArray[np.float32]", Values, Values], Values]


def tolerated(holders: int, trim: float) -> int:
    """How many liars among so many holders of a value the trimmed mean tolerates."""
    # The product is rounded first: 0.2 · 5 must not become 2 by an error in the last place.
    return min(math.ceil(round(trim * holders, 9)), (holders - 1) // 2) if holders else 0


def suspicious(edge: float) -> float:
    """Beyond which share of its values at the edge a client is suspected: 0.8 for a fifth.

    Alike clients are there with twice the share `edge`; one whose changes are twice as large with
    less than this.
    """
    return 1 - (1 - 2 * edge) / 3


class TrimmedMean:
    """The weighted mean of each value without its extremes; `trim` in [0, 0.5)."""

    def __init__(self, shapes: Shapes, trim: float) -> None:
        self._shapes, self._trim, self._spool = dict(shapes), trim, Spool(shapes)

    def add(self, update: Update) -> None:
        """Keep one client's update on disk until the end of the round."""
        self._spool.add(update)

    def result(self) -> Merged:
        """The trimmed mean, made block by block; names the clients that were mostly at the edge."""
        dropped = [tolerated(n, self._trim) for n in range(len(self._spool) + 1)]
        edge = min(self._trim, MOST_EDGE)
        return _merged(self._spool, self._shapes, np.asarray(dropped), edge, _weighted_mean)


class Median:
    """The middle value of each weight over the clients that hold it, without regard to weights."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes, self._spool = dict(shapes), Spool(shapes)

    def add(self, update: Update) -> None:
        """Keep one client's update on disk until the end of the round."""
        self._spool.add(update)

    def result(self) -> Merged:
        """The median, made block by block; names the clients that were mostly at the edge."""
        dropped = [max(n - 1, 0) // 2 for n in range(len(self._spool) + 1)]
        return _merged(self._spool, self._shapes, np.asarray(dropped), EDGE_OF_MEDIAN, _middle)


def _weighted_mean(v_kb: Values, weight_k: Any, low_b: Values, high_b: Values) -> Values:
    kept_kb = (v_kb >= low_b) & (v_kb <= high_b)
    total_b = weight_k @ np.where(kept_kb, v_kb, np.float32(0))
    of_b = np.maximum(weight_k @ kept_kb.astype(np.float32), np.finfo(np.float32).tiny)
    # Rounding must not carry the mean beyond the values that it is made of.
    mean_b: Values = np.clip(total_b / of_b, low_b, high_b)
    return mean_b


def _middle(v_kb: Values, weight_k: Any, low_b: Values, high_b: Values) -> Values:
    middle_b: Values = low_b + (high_b - low_b) * np.float32(0.5)
    return middle_b


def _merged(
    spool: Spool,
    shapes: Shapes,
    dropped_n: NDArray[np.int64],
    edge: float,
    combine: Combine,
) -> Merged:
    """`dropped_n[n]`: how many of n holders' lowest and highest values are left out.

    Clients are judged by how often theirs are among the share `edge` of lowest or highest ones.
    """
    edge_n = np.asarray([tolerated(n, edge) for n in range(len(spool) + 1)])
    light = spool.light()
    # Of the largest: so small a weight that float32 does not hold it would divide 0 by 0.
    heaviest = max((update.weight for update in light), default=1.0)
    weight_k = np.asarray([update.weight / heaviest for update in light], np.float32)
    delta: Weights = {}
    masks: dict[str, Tensor] = {}
    extreme, judged = np.zeros(len(light)), np.zeros(len(light))
    for block in spool.blocks():
        v_kb = block.values.reshape(len(light), -1)
        holders_b = np.count_nonzero(~np.isnan(v_kb), axis=0)
        held_b = holders_b > 0
        v_kb, n_b = v_kb[:, held_b], holders_b[held_b]
        drop_b, edge_b = dropped_n[n_b], edge_n[n_b]
        # NaN sorts to the end: of n holders' values the last is at n - 1.
        ordered_bk = np.sort(np.ascontiguousarray(v_kb.T), axis=1)
        row_b = np.arange(len(drop_b))
        low_b = ordered_bk[row_b, drop_b]
        high_b = ordered_bk[row_b, n_b - 1 - drop_b]
        name, shape = block.name, shapes[block.name]
        if name not in delta:
            delta[name] = torch.zeros(shape)
            masks[name] = torch.zeros(shape, dtype=torch.bool)
        merged_b = np.zeros(len(held_b), np.float32)
        merged_b[held_b] = combine(v_kb, weight_k, low_b, high_b)
        delta[name][block.region].view(-1).copy_(torch.from_numpy(merged_b))
        masks[name][block.region].view(-1).copy_(torch.from_numpy(held_b))
        some_b = edge_b > 0
        least_b, most_b = ordered_bk[row_b, edge_b], ordered_bk[row_b, n_b - 1 - edge_b]
        outside_kb = ((v_kb < least_b) | (v_kb > most_b)) & some_b
        extreme += np.count_nonzero(outside_kb, axis=1)
        judged += np.count_nonzero(~np.isnan(v_kb) & some_b, axis=1)
    spool.close()
    suspects = {
        update.device: "trimmed"
        for update, out, of in zip(light, extreme, judged, strict=True)
        if of and out > suspicious(edge) * of
    }
    trained: dict[str, Tensor | bool] = {
        name: (True if bool(masks[name].all()) else masks[name]) if name in masks else False
        for name in shapes
    }
    return Merged(delta, trained, suspects)
