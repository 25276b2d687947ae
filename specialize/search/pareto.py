"""Non-dominated sets and their hypervolume. Points (N, D): in every dimension smaller is better."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...supernet.errors import UsageError
from ...supernet.space import Arch
from .contract import Evaluated, Fits

Points = NDArray[np.float64]


def dominance(points: Points) -> NDArray[np.bool_]:
    """(N, N): whether row dominates column, at most it everywhere and below it somewhere."""
    a, b = points[:, None], points[None]
    found: NDArray[np.bool_] = np.all(a <= b, axis=2) & np.any(a < b, axis=2)
    return found


def nondominated(points: Points) -> NDArray[np.bool_]:
    """(N,): whether nothing dominates a point. Of equal points all are or none is.

    In the order of a dictionary what dominates a point stands before it, so each is compared with the
    front of those before it only (Kung, Luccio and Preparata 1975, without their division).
    """
    found = np.zeros(len(points), dtype=bool)
    front, size = np.empty_like(points), 0
    for place in np.lexsort(points.T[::-1]):
        point, before = points[place], front[:size]
        below = (before <= point).all(axis=1)
        if not (below & (before < point).any(axis=1)).any():
            found[place] = True
            front[size] = point
            size += 1
    return found


def points_of(
    evaluated: Sequence[Evaluated], keep_small: Callable[[Arch], tuple[float, ...]]
) -> Points:
    """(N, 1 + D): the score negated, and the objectives to keep small."""
    return np.array([(-one.score, *keep_small(one.arch)) for one in evaluated], dtype=np.float64)


def front_of(
    evaluated: Iterable[Evaluated], keep_small: Callable[[Arch], tuple[float, ...]]
) -> tuple[Evaluated, ...]:
    """What nothing dominates, by the first objective; of equal ones a single one.

    Which one hangs on the architectures only, so that the order of evaluation does not matter.
    """
    given = sorted(evaluated, key=lambda one: sorted(one.arch.items()))
    if not given:
        return ()
    points = points_of(given, keep_small)
    kept: dict[tuple[float, ...], Evaluated] = {}
    for one, point, stays in zip(given, points, nondominated(points), strict=True):
        if stays:
            kept.setdefault((*point[1:], point[0]), one)
    return tuple(kept[key] for key in sorted(kept))


def best_within(front: Sequence[Evaluated], fits: Fits) -> Evaluated:
    """A device's lookup: the highest score of a front that fits; UsageError when none does."""
    fitting = [one for one in front if fits(one.arch)]
    if not fitting:
        raise UsageError(
            f"search: none of the {len(front)} architectures of the front fits; "
            "raise the bound, or search with this budget"
        )
    return max(fitting, key=lambda one: one.score)


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Exact volume that points dominate below a reference point, in 1, 2 or 3 dimensions.

    Points that are not below the reference in every dimension add nothing.
    """
    corner = np.asarray(reference, dtype=np.float64)
    points = np.asarray(points, dtype=np.float64).reshape(-1, len(corner))
    if not np.isfinite(corner).all() or np.isnan(points).any():
        raise UsageError("hypervolume: the reference must be finite, and no point NaN")
    if len(corner) not in (1, 2, 3):
        raise UsageError(f"hypervolume: {len(corner)} dimensions; 1, 2 or 3 expected")
    inside = points[(points < corner).all(axis=1)]
    return _volume(inside, corner)


def _volume(points: Points, corner: Points) -> float:
    """Slices along the last dimension, each as wide as the volume of what has begun by then."""
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    edges = np.append(points[1:, -1], corner[-1])
    return sum(
        float(edge - point[-1]) * _volume(points[: place + 1, :-1], corner[:-1])
        for place, (point, edge) in enumerate(zip(points, edges, strict=True))
        if edge > point[-1]
    )
