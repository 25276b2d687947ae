"""Updates of unequal regions for the tests of the rules of aggregation, and a dense oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fedofa.server.aggregation.update import Fold, Merged, Update
from fedofa.supernet.axes import Region, positions, shape_of
from fedofa.supernet.weights import size_of
from hypothesis import strategies as st
from numpy.typing import NDArray

SHAPES = {"w": (5, 4), "v": (6,), "unused": (3,)}
Dense = NDArray[np.float64]


def index(size: int) -> st.SearchStrategy[slice | tuple[int, ...]]:
    """A run of positions, or some of them in any order."""
    runs = st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
        lambda ends: slice(ends[0], max(ends[0] + 1, ends[1]))
    )
    lists = st.lists(st.integers(0, size - 1), min_size=1, unique=True).map(tuple)
    return st.one_of(runs, lists)


@st.composite
def updates(draw: st.DrawFn, least: int = 1, most: int = 7) -> list[Update]:
    """Clients with regions, weights and changes of their own."""
    found = []
    for client in range(draw(st.integers(least, most))):
        where: dict[str, Region] = {}
        if draw(st.booleans()) or client == 0:
            where["w"] = (draw(index(5)), draw(index(4)))
        if draw(st.booleans()) or not where:
            where["v"] = (draw(index(6)),)
        size = size_of({name: shape_of(region) for name, region in where.items()})
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        delta = rng.normal(size=size).astype(np.float32)
        weight = draw(st.floats(0.1, 900))
        found.append(Update(f"client-{client}", delta, where, weight))
    return found


def whole(device: str, values: Mapping[str, Any], weight: float = 1.0, bits: int = 32) -> Update:
    """An update of all of the tensors that it names."""
    where = {n: tuple(slice(0, s) for s in np.shape(v)) for n, v in values.items()}
    flat = np.concatenate([np.asarray(v, np.float32).reshape(-1) for v in values.values()])
    return Update(device, flat, where, weight, bits=bits)


def folded(rule: Fold, given: Sequence[Update]) -> Merged:
    """What a rule makes of updates."""
    for update in given:
        rule.add(update)
    return rule.result()


def dense(given: Sequence[Update], name: str) -> tuple[Dense, Dense]:
    """Changes (scaled) and weights of one tensor per client in full shape; NaN where not held."""
    shape = SHAPES[name]
    changes = np.full((len(given), *shape), np.nan)
    for place, update in enumerate(given):
        if name not in update.where:
            continue
        at = 0
        for other, region in update.where.items():
            size = size_of({other: shape_of(region)})
            if other == name:
                grid = np.ix_(*(list(positions(index)) for index in region))
                part = update.delta[at : at + size].reshape(shape_of(region))
                changes[place][grid] = update.scale * part.astype(np.float64)
            at += size
    held = ~np.isnan(changes)
    weights = held * np.asarray([u.weight for u in given]).reshape(-1, *[1] * len(shape))
    return changes, weights


def mean_of(given: Sequence[Update], name: str) -> tuple[Dense, NDArray[np.bool_]]:
    """The weighted mean over the holders of each value, and which values anybody holds."""
    changes, weights = dense(given, name)
    total = weights.sum(axis=0)
    mean = np.nansum(weights * np.nan_to_num(changes), axis=0) / np.where(total > 0, total, 1)
    return mean, total > 0


def agree(one: Merged, other: Merged, tolerance: float = 1e-5) -> None:
    """Both say the same of every value."""
    for name, shape in SHAPES.items():
        mine = np.broadcast_to(np.asarray(one.trained[name]), shape)
        assert np.array_equal(mine, np.broadcast_to(np.asarray(other.trained[name]), shape)), name
        if name in one.delta:
            np.testing.assert_allclose(
                one.delta[name].numpy(), other.delta[name].numpy(), rtol=tolerance, atol=tolerance
            )


def lying(given: Sequence[Update], liars: Sequence[int], lies: Sequence[float]) -> list[Update]:
    """The same updates, of which some clients' are constants."""
    return [
        replace(u, delta=np.full_like(u.delta, lies[liars.index(k)])) if k in liars else u
        for k, u in enumerate(given)
    ]
