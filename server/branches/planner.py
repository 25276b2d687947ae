"""Which devices share one supernet: coalitions by distance and quantity (FedCollab, Bao et al. 2023).

The expected error of device i in a coalition, with α_ij its members' shares of the coalition's
examples, β_j their shares of all m examples and D_ij ∈ [0, 1] how unlike their data are, is bounded
up to constants by

    C · sqrt(Σ_j α_ij² / (β_j m)) + Σ_j α_ij D_ij  =  C / sqrt(N) + Σ_j (n_j / N) D_ij

with n_j = β_j m examples, N of them in the coalition: few examples, and unlike ones. The mean over the
devices is minimised by coordinate moves: from singletons, device after device in a random order goes
where the sum becomes least, until none moves; the best of several starts counts.

Deviations: where no device's move gains, two whole coalitions that gain by it are merged, and devices move
again (a pair of pairs, of which no single device would go over, is no end). With `able` (whether a device can train the largest subnet) a coalition without such a member
costs more than any other error, so that there is none where that can be had.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...supernet.errors import UsageError
from ...supernet.randomness import array_stream

MOST_SWEEPS = 100
MOST_DEVICES = 4000
LEAST_GAIN = 1e-9
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Errors:
    """The two terms of a device's expected error in its coalition."""

    few_examples: float
    unlike_data: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.few_examples + self.unlike_data


@dataclass(frozen=True, slots=True)
class Plan:
    """Coalitions of devices (by place), the largest first, and what is expected of them.

    `errors` by device; `mean` over the devices, `alone` and `together`: the same with no coalition,
    and with one of all.
    """

    coalitions: tuple[tuple[int, ...], ...]
    errors: tuple[Errors, ...]
    mean: float
    alone: float
    together: float


def plan(
    sizes: Sequence[int],
    distances: Floats,
    c: float,
    restarts: int = 20,
    seed: int = 0,
    able: Sequence[bool] | None = None,
) -> Plan:
    """The coalitions of devices with so many examples each; `distances` (N, N), symmetric.

    UsageError for sizes below 1, distances that are none, or no device that is `able`. Time grows with
    restarts · N², memory with N².
    """
    n = np.asarray(sizes, dtype=np.float64)
    _check(n, distances)
    if able is not None and not any(able):
        raise UsageError(
            "branches.whole = true: no device can train the largest subnet, so no coalition has one "
            "that can; leave it out, or choose a smaller space"
        )
    best: tuple[float, list[list[int]]] | None = None
    for start in range(restarts):
        moves = _Moves(n, distances, c, able)
        moves.settle(array_stream(seed, "coalitions", start))
        found = sorted(moves.coalitions(), key=lambda members: (-n[members].sum(), members))
        cost = _mean(_errors(n, distances, c, found)) + moves.penalties()
        if best is None or cost < best[0] - LEAST_GAIN:
            best = cost, found
    if best is None:
        raise UsageError(f"branches.restarts = {restarts}: at least 1")
    errors = _errors(n, distances, c, best[1])
    everyone = list(range(len(n)))
    return Plan(
        coalitions=tuple(map(tuple, best[1])),
        errors=errors,
        mean=_mean(errors),
        alone=_mean(_errors(n, distances, c, [[i] for i in everyone])),
        together=_mean(_errors(n, distances, c, [everyone])),
    )


def _check(n: Floats, distances: Floats) -> None:
    if not 1 <= len(n) <= MOST_DEVICES:
        raise UsageError(f"coalitions of {len(n)} devices: 1 to {MOST_DEVICES} are planned")
    if n.min() < 1:
        raise UsageError("coalitions: every device must have at least one example")
    square = distances.shape == (len(n), len(n))
    if not square or not np.all((distances >= 0) & (distances <= 1)):
        raise UsageError(f"distances: {len(n)} × {len(n)} numbers from 0 to 1 are expected")
    if not np.array_equal(distances, distances.T) or distances.diagonal().any():
        raise UsageError("distances: must be symmetric, and 0 from a device to itself")


def _errors(
    n: Floats, distances: Floats, c: float, coalitions: Sequence[Sequence[int]]
) -> tuple[Errors, ...]:
    found: dict[int, Errors] = {}
    for members in coalitions:
        share = n[members] / n[members].sum()
        few = c / float(np.sqrt(n[members].sum()))
        unlike = distances[np.ix_(members, members)] @ share
        found |= {i: Errors(few, float(d)) for i, d in zip(members, unlike, strict=True)}
    return tuple(found[i] for i in range(len(n)))


def _mean(errors: Sequence[Errors]) -> float:
    return sum(error.total for error in errors) / len(errors)


class _Moves:
    """One search. Coalitions have slots, one for each device at first; empty ones may be filled.

    Per slot: `n_s` examples, `count` members, how many of them `able_s`, and `pairs_s`, the sum of
    n_j D_ij over its pairs. `examples_is` and `plain_is` are the sums of n_j D_ij and of D_ij over the
    slot's members j.
    """

    def __init__(self, n: Floats, distances: Floats, c: float, able: Sequence[bool] | None) -> None:
        devices = len(n)
        self._n, self._distances, self._c = n, distances, c
        self._able = np.ones(devices) if able is None else np.asarray(able, dtype=np.float64)
        self._slot = np.arange(devices)
        self._n_s, self._count, self._able_s = n.copy(), np.ones(devices), self._able.copy()
        self._pairs_s = np.zeros(devices)
        self._examples_is, self._plain_is = distances * n, distances.copy()
        # One lacking coalition outweighs all errors there can be.
        self._penalty = 2.0 * devices * (c + 1.0)

    def settle(self, rng: np.random.Generator) -> None:
        """Move devices, and merge coalitions, until nothing gains by it."""
        for _ in range(MOST_SWEEPS):
            moved = [self._move(int(i)) for i in rng.permutation(len(self._n))]
            if not any(moved) and not self._merge():
                return

    def coalitions(self) -> list[list[int]]:
        """The members of each."""
        return [np.flatnonzero(self._slot == s).tolist() for s in np.unique(self._slot)]

    def penalties(self) -> float:
        """What coalitions cost that lack an able member."""
        lacking = (self._count > 0) & (self._able_s == 0)
        return float(self._penalty * self._count[lacking].sum())

    def _move(self, i: int) -> bool:
        n_i, home = self._n[i], int(self._slot[i])
        self._put(i, home, -1.0)
        pairs = self._pairs_s + self._examples_is[i] + n_i * self._plain_is[i]
        now = self._cost(self._n_s, self._count, self._able_s, self._pairs_s)
        with_i = self._cost(self._n_s + n_i, self._count + 1, self._able_s + self._able[i], pairs)
        rise = with_i - now
        best = int(np.argmin(rise))
        if rise[best] > rise[home] - LEAST_GAIN:
            best = home
        self._put(i, best, 1.0)
        self._slot[i] = best
        return best != home

    def _merge(self) -> bool:
        """Merge those two coalitions that gain most by it; whether any do."""
        slots = np.unique(self._slot)
        if len(slots) < 2:
            return False
        members = (self._slot[None, :] == slots[:, None]).astype(np.float64)
        across = members @ (self._examples_is + self._n[:, None] * self._plain_is)[:, slots]
        sums = [self._n_s[slots], self._count[slots], self._able_s[slots], self._pairs_s[slots]]
        n, count, able, pairs = (one[:, None] + one[None, :] for one in sums)
        now = self._cost(*sums)
        rise = self._cost(n, count, able, pairs + across) - now[:, None] - now[None, :]
        np.fill_diagonal(rise, np.inf)
        into, out = np.unravel_index(int(np.argmin(rise)), rise.shape)
        if rise[into, out] > -LEAST_GAIN:
            return False
        for i in np.flatnonzero(members[out]):
            self._put(int(i), int(slots[out]), -1.0)
            self._put(int(i), int(slots[into]), 1.0)
            self._slot[i] = slots[into]
        return True

    def _put(self, i: int, slot: int, sign: float) -> None:
        """Add a device to a slot, or take it away."""
        column, n_i = self._distances[:, i], self._n[i]
        # The same with and without the device in it: it is at no distance from itself.
        pairs = self._examples_is[i, slot] + n_i * self._plain_is[i, slot]
        self._pairs_s[slot] += sign * pairs
        self._n_s[slot] += sign * n_i
        self._count[slot] += sign
        self._able_s[slot] += sign * self._able[i]
        self._examples_is[:, slot] += sign * n_i * column
        self._plain_is[:, slot] += sign * column
        if self._count[slot] == 0:  # rounding is not carried over into what comes here next
            self._pairs_s[slot] = 0.0
            self._examples_is[:, slot] = self._plain_is[:, slot] = 0.0

    def _cost(self, n: Floats, count: Floats, able: Floats, pairs: Floats) -> Floats:
        """Each slot's sum of its members' errors; 0 of an empty one."""
        full = np.maximum(n, 1.0)
        lacking = self._penalty * count * (able < 0.5)
        found = count * self._c / np.sqrt(full) + pairs / full + lacking
        return np.where(count > 0.5, found, 0.0)
