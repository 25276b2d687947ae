"""Which few candidates serve all devices: facility location, first by coverage, then by accuracy.

Devices are clients, candidates (an architecture as one kind of file) are facilities, and a device that
can take none of the opened ones is not served. To be maximised over sets S of at most N candidates,
one after the other in the sense of a dictionary,

    served(S) = Σ devices that can take one of S,
    value(S)  = Σ weight · accuracy of the best of S that the device can take,

a device that is not served counting as the least accurate candidate. Both are monotone and submodular:
taking the candidate of the largest gain again and again reaches 1 − 1/e of the best value where
coverage decides nothing (Nemhauser, Wolsey, Fisher 1978); gains are worked out only when an old one is
still the largest (Minoux 1978). Then single candidates are swapped while that gains anything
(PAM, Kaufman and Rousseeuw 1990), each candidate tried against all opened ones in one pass over the
devices that can take it (FasterPAM, Schubert and Rousseeuw 2021).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .table import Mask, Vector

GAIN = 1e-9
"""What a swap must bring at least, in weighted accuracy: below it is rounding."""
PASSES = 6

Place = tuple[int, int]
"""A market and a candidate in it."""


@dataclass(frozen=True, slots=True)
class Market:
    """The devices that run one kind of file, in groups of equal needs (G), and its candidates (C).

    `fits` (C, G); `accuracy` (C,), the best first; `count` (G,) devices; `weight` (G,) of all of them.
    """

    fits: Mask
    accuracy: Vector
    count: Vector
    weight: Vector


class _Served:
    """What the opened candidates of one market give its groups: the best and the second best."""

    def __init__(self, market: Market, low: float) -> None:
        self.market, self.low = market, low
        groups = len(market.count)
        self.first, self.second = np.full(groups, low), np.full(groups, low)
        self.owner = np.full(groups, -1)
        self.by_two = np.zeros(groups, dtype=bool)
        self.places = np.empty(0, dtype=np.intp)
        self.closing = np.empty((0, 2))

    def set(self, opened: Sequence[int]) -> None:
        """Look up everything anew for these candidates.

        `closing` (K, 2) is what closing each of them (`places`, ascending) changes: devices no longer
        served, and weighted accuracy; 0 or below.
        """
        order = sorted(opened)  # the best first
        market, groups = self.market, np.arange(len(self.market.count))
        fits = np.vstack([market.fits[order], np.ones((1, len(groups)), dtype=bool)])
        values = np.append(market.accuracy[order], self.low)
        owners = np.append(np.array(order, dtype=np.intp), -1)
        first = fits.argmax(axis=0)
        fits[first, groups] = False
        fits[-1] = True
        second = fits.argmax(axis=0)
        self.first, self.second, self.owner = values[first], values[second], owners[first]
        self.by_two = owners[second] >= 0
        self.places = np.array(order, dtype=np.intp)
        mine = self.owner >= 0
        slot = np.searchsorted(self.places, self.owner[mine])
        alone = np.where(self.by_two[mine], 0.0, -market.count[mine])
        change = (self.second - self.first)[mine] * market.weight[mine]
        self.closing = np.stack(
            [np.bincount(slot, part, len(order)) for part in (alone, change)], axis=1
        )

    def gain(self, candidate: int) -> tuple[float, float]:
        """Devices newly served, and weighted accuracy, of opening one more."""
        at = np.flatnonzero(self.market.fits[candidate])
        better = np.maximum(self.market.accuracy[candidate] - self.first[at], 0.0)
        new = self.market.count[at][self.owner[at] < 0].sum()
        return float(new), float(better @ self.market.weight[at])

    def amends(self, candidate: int) -> Vector:
        """(K, 2): how much less closing each opened one costs where `candidate` is open instead."""
        at = np.flatnonzero(self.market.fits[candidate])
        owner, value = self.owner[at], self.market.accuracy[candidate]
        at, owner = at[owner >= 0], owner[owner >= 0]
        slot = np.searchsorted(self.places, owner)
        first, second = self.first[at], self.second[at]
        without = np.maximum(value, second) - np.maximum(value, first) - (second - first)
        kept = np.where(self.by_two[at], 0.0, self.market.count[at])
        parts = (kept, without * self.market.weight[at])
        return np.stack([np.bincount(slot, part, len(self.places)) for part in parts], axis=1)


def opened(markets: Sequence[Market], most: int) -> list[Place]:
    """At most so many candidates, in order of market and preference; the same every time."""
    low = min((float(m.accuracy.min()) for m in markets if len(m.accuracy)), default=0.0)
    served = [_Served(market, low) for market in markets]
    chosen = _greedy(served, most)
    for _ in range(PASSES):
        if not _swapped(served, chosen):
            break
    return sorted(chosen)


def _greedy(served: Sequence[_Served], most: int) -> list[Place]:
    chosen: list[Place] = []
    waiting = [
        (-new, -gain, (number, candidate), 0)
        for number, one in enumerate(served)
        for candidate in range(len(one.market.accuracy))
        for new, gain in [one.gain(candidate)]
    ]
    heapq.heapify(waiting)
    while waiting and len(chosen) < most:
        _, _, place, when = heapq.heappop(waiting)
        new, gain = served[place[0]].gain(place[1])
        if new <= 0 and gain <= 0:
            continue  # gains only shrink
        if when != len(chosen):
            heapq.heappush(waiting, (-new, -gain, place, len(chosen)))
            continue
        chosen.append(place)
        _look_up(served, chosen, place[0])
    return chosen


def _look_up(served: Sequence[_Served], chosen: Sequence[Place], market: int) -> None:
    served[market].set([candidate for number, candidate in chosen if number == market])


def _swapped(served: Sequence[_Served], chosen: list[Place]) -> bool:
    """Try every candidate in the place of the opened one whose closing costs least; in place."""
    changed = False
    for number, one in enumerate(served):
        for candidate in range(len(one.market.accuracy)):
            if (number, candidate) in chosen:
                continue
            out = _worth_closing(served, (number, candidate))
            if out is None:
                continue
            chosen.remove(out)
            chosen.append((number, candidate))
            for market in {out[0], number}:
                _look_up(served, chosen, market)
            changed = True
    return changed


def _worth_closing(served: Sequence[_Served], new: Place) -> Place | None:
    """The opened candidate whose swap for the new one gains most; None where none gains."""
    more, gain = served[new[0]].gain(new[1])
    if more <= 0 and gain <= GAIN:
        return None
    best: tuple[float, float] = (0.0, GAIN)
    found = None
    for number, one in enumerate(served):
        change = one.closing + np.array([more, gain])
        if number == new[0]:
            change = change + one.amends(new[1])
        for place, (cover, value) in zip(one.places, change.tolist(), strict=True):
            if (cover, value) > best:
                best, found = (cover, value), (number, int(place))
    return found
