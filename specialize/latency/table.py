"""Latency by lookup (ProxylessNAS, Cai et al. 2019; once-for-all, Cai et al. 2020): the sum of layers.

Each layer was exported and timed alone. Calling a runtime takes time too, once for each file: the sum
is therefore put on the scale of whole subnets by two numbers, fitted to a few that were timed, seconds
a layer's own time counts and seconds a layer adds or (in the file of its own) saves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...supernet.cost import LayerPlan
from ...supernet.space import Arch, Space
from .regression import Timed

Key = tuple[str | int | bool, ...]
ALONE = ("conv", "depthwise", "linear", "pool")
"""Layers that can stand alone in a file; products of activations and added tables cannot."""


def key_of(plan: LayerPlan) -> Key:
    """What a layer's time depends on: its kind, sizes, and what follows in place."""
    return (
        plan.kind, plan.out_channels, plan.in_per_group, plan.kernel_area, plan.in_elements,
        plan.out_elements, plan.act,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """Seconds of each layer alone; `scale` and `each` (seconds a layer) put sums on a subnet's scale."""

    space: Space
    seconds: Mapping[Key, float]
    scale: float
    each: float
    once: float

    def __call__(self, arch: Arch) -> float:
        """Seconds. KeyError for a layer that was not timed."""
        return _scaled(self._sums(arch), (self.scale, self.each, self.once))

    def covers(self, arch: Arch) -> bool:
        """Whether each of the subnet's layers was timed."""
        return all(key_of(plan) in self.seconds for plan in self.space.layers(arch))

    def _sums(self, arch: Arch) -> tuple[float, float]:
        return sums(self.space, self.seconds, arch)


def sums(space: Space, seconds: Mapping[Key, float], arch: Arch) -> tuple[float, float]:
    """The layers' own seconds, and how many layers there are."""
    plans = space.layers(arch)
    return sum(seconds[key_of(plan)] for plan in plans), float(len(plans))


def fit_table(space: Space, seconds: Mapping[Key, float], timed: Sequence[Timed]) -> Table:
    """The table on the scale of subnets that were timed and whose layers all were.

    ValueError where fewer than four of them are covered.
    """
    covered = [t for t in timed if all(key_of(p) in seconds for p in space.layers(t.arch))]
    if len(covered) < 4:
        raise ValueError(
            f"the layers of {len(covered)} of {len(timed)} timed subnets were timed; at least 4 are "
            "needed"
        )
    rows = np.array([[*sums(space, seconds, one.arch), 1.0] for one in covered])
    y = np.array([one.seconds for one in covered])
    found, *_ = np.linalg.lstsq(rows / y[:, None], np.ones(len(y)), rcond=None)
    scale, each, once = (float(value) for value in found)
    return Table(space, dict(seconds), scale, each, once)


def _scaled(parts: tuple[float, float], by: tuple[float, float, float]) -> float:
    return by[0] * parts[0] + by[1] * parts[1] + by[2]
