"""Digits for devices in groups: each group has classes of its own, or names for the classes of its own."""

from dataclasses import replace

import numpy as np
from fedofa.client.data import ClientData, Examples
from fedofa.client.datasets import digits


def load(
    root: str | None, *, client: int, clients: int, groups: int = 2, unlike: str, seed: int = 0
) -> ClientData:
    """One device's part; device c is in group c modulo `groups`.

    `unlike` = "labels": a group has only its share of the ten classes; "meaning": all have all, and a
    group's labels are shifted by its number.
    """
    group = client % groups
    data = digits(root, client=client, clients=clients, alpha=100.0, seed=seed)
    if unlike == "meaning":
        return replace(
            data,
            **{
                part: Examples(found.x, (found.y + group * 5 // max(groups - 1, 1)) % 10)
                for part, found in (("train", data.train), ("validation", data.validation))
            },
        )
    mine = np.arange(group * 10 // groups, (group + 1) * 10 // groups)
    return replace(
        data,
        **{
            part: found.take(np.flatnonzero(np.isin(found.y, mine)))
            for part, found in (("train", data.train), ("validation", data.validation))
        },
    )
