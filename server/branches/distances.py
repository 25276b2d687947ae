"""How unlike two devices' data are: from label counts, or from a file.

FedCollab trains a classifier to tell two devices' examples (x, y) apart; its accuracies on each side,
added up less 1, are at best the total variation between the two distributions. Here it is the total
variation between the distributions of y alone, from counts that devices tell by their owners' consent:
never more than FedCollab's, and equal to it where devices differ in their labels only. What differs in x,
or in what x means, is not seen; a file may give distances that were found otherwise.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...supernet.errors import UsageError
from .planner import Floats

Table = Mapping[str, Mapping[str, float]]
"""Device → other device → distance."""


def of_labels(labels_nc: Sequence[Sequence[int]]) -> Floats:
    """Total variation of label distributions, (N, N), from N devices' counts of each class."""
    counts = np.asarray(labels_nc, dtype=np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    apart = [np.abs(shares - mine).sum(axis=1) / 2 for mine in shares]
    found: Floats = np.minimum(np.stack(apart), 1.0)  # rounding may leave a little more
    return found


def of_table(table: Table, names: Sequence[str]) -> Floats:
    """The distances of these devices, (N, N). UsageError where one is missing."""
    found = np.zeros((len(names), len(names)))
    for row, mine in enumerate(names):
        for column in range(row):
            found[row, column] = found[column, row] = between(table, mine, names[column])
    return found


def between(table: Table, first: str, second: str) -> float:
    """Two devices' distance; a pair is given once, or twice the same."""
    value = table.get(first, {}).get(second, table.get(second, {}).get(first))
    if value is None:
        raise UsageError(f"branches.distances: {first} and {second} have none; give it from 0 to 1")
    return value


def named(table: Table) -> frozenset[str]:
    """The devices that have distances."""
    return frozenset(table).union(*table.values())


def read_table(path: str) -> Table:
    """Read `{"a": {"b": 0.3}}` (JSON); UsageError names what is wrong with it."""
    try:
        fields = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"branches.distances = {path!r} cannot be read: {error}") from None
    if not isinstance(fields, dict) or not all(isinstance(row, dict) for row in fields.values()):
        raise UsageError(
            f'branches.distances = {path!r}: {{"device": {{"other device": distance}}}} is expected'
        )
    for first, row in fields.items():
        for second, value in row.items():
            _check(path, first, second, value)
            if fields.get(second, {}).get(first, value) != value:
                raise UsageError(
                    f"branches.distances = {path!r}: {first} and {second} have two; distances are "
                    "the same both ways"
                )
    return fields


def _check(path: str, first: str, second: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if not number or (first == second and value != 0):
        raise UsageError(
            f"branches.distances = {path!r}: {first} and {second} have {value!r}; a number from 0 to "
            "1 is expected, and 0 from a device to itself"
        )
