"""Devices on the artifacts that there really are: some could not be made, some files are larger.

Each device looks up the best of its kind that keeps all of its bounds with the files as they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .misses import miss
from .plan import Artifact, Placed, Refused
from .table import table_of


def settled(
    artifacts: Sequence[Artifact], sizes_bytes: Mapping[int, int], placed: Sequence[Placed]
) -> tuple[list[Placed], list[Refused]]:
    """Where each device goes, and the devices for which nothing is left.

    `sizes_bytes`: place of an artifact that was made → its file's size; the others are left out.
    Where nothing of a kind was made, its devices are refused with a miss of nothing.
    """
    found: list[Placed] = []
    refused: list[Refused] = []
    for kind in sorted({one.demand.kind for one in placed}):
        mine = [one for one in placed if one.demand.kind == kind]
        made = [at for at in sorted(sizes_bytes) if artifacts[at].kind == kind]
        if not made:
            refused += [Refused(one.demand, None) for one in mine]
            continue
        columns = {
            name: np.array([artifacts[at].columns[name] for at in made])
            for name in artifacts[made[0]].columns
        }
        columns[f"file_bytes:{kind}"] = np.array([float(sizes_bytes[at]) for at in made])
        columns["place"] = np.array(made, dtype=np.float64)
        accuracy = np.array([artifacts[at].accuracy for at in made])
        table = table_of([artifacts[at].arch for at in made], accuracy, columns)
        fits = table.fitting([one.demand for one in mine])
        for one, row, some in zip(mine, fits.argmax(axis=0), np.any(fits, axis=0), strict=True):
            if some:
                # A file that is smaller than reckoned with may serve more than a device's own best.
                best = max(one.best, float(table.accuracy[row]))
                found.append(Placed(one.demand, int(table.columns["place"][row]), best))
            else:
                refused.append(Refused(one.demand, miss(table, one.demand)))
    order = {one.demand.device: at for at, one in enumerate(placed)}
    return sorted(found, key=lambda one: order[one.demand.device]), refused
