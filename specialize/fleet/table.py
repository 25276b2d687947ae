"""Candidates as rows of numbers, the best first, and which of them each device can take."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...supernet.errors import UsageError
from ...supernet.space import Arch
from ..search.pareto import nondominated
from .demand import Demand

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Table:
    """Candidates (C): predicted accuracy, and named columns (C,) of what they cost.

    Rows are in order of preference: the most accurate first, of equal ones the one with fewer
    multiply-accumulates. So the first row that fits a device is its best.
    """

    archs: tuple[Arch, ...]
    accuracy: Vector
    columns: Mapping[str, Vector]

    def __post_init__(self) -> None:
        for name, values in (("accuracy", self.accuracy), *self.columns.items()):
            if len(values) != len(self.archs) or not np.isfinite(values).all():
                raise UsageError(f"candidates: {name} is not a finite number for each of them")
        if (np.diff(self.accuracy) > 0).any():
            raise UsageError("candidates: not in order of accuracy; make the table with `table_of`")

    def rows(self, places: NDArray[np.intp]) -> "Table":
        """These rows only, which are given in ascending order."""
        return Table(
            tuple(self.archs[place] for place in places),
            self.accuracy[places],
            {name: values[places] for name, values in self.columns.items()},
        )

    def front(self, columns: Iterable[str]) -> "Table":
        """The rows that no other dominates in accuracy and these columns.

        Lossless for devices that bound no other column: who can take a dominated row can take one
        that is at least as accurate.
        """
        chosen = [self.columns[name] for name in sorted(set(columns))]
        points = np.stack([-self.accuracy, *chosen], axis=1)
        _, first = np.unique(points, axis=0, return_index=True)
        distinct = np.sort(first)
        return self.rows(distinct[nondominated(points[distinct])])

    def fitting(self, demands: Sequence[Demand]) -> Mask:
        """(C, G): whether a candidate keeps all of a device's bounds. UsageError: no such column."""
        found = np.ones((len(self.archs), len(demands)), dtype=bool)
        most = [demand.most for demand in demands]
        for name in sorted({name for each in most for name in each}):
            if name not in self.columns:
                raise UsageError(f"candidates: {name} is bounded and was not worked out for them")
            limits = np.array([each.get(name, np.inf) for each in most])
            found &= self.columns[name][:, None] <= limits[None]
        return found


def table_of(archs: Sequence[Arch], accuracy: Vector, columns: Mapping[str, Vector]) -> Table:
    """A table in order of preference; `macs` must be among the columns."""
    order = np.lexsort((columns["macs"], -np.asarray(accuracy)))
    return Table(
        tuple(archs[place] for place in order),
        np.asarray(accuracy, dtype=np.float64)[order],
        {name: np.asarray(values, dtype=np.float64)[order] for name, values in columns.items()},
    )
