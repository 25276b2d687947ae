"""What a subnet does, as a runtime sees it: how often each kind of operator, how much work in each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...supernet.cost import LayerPlan

Features = NDArray[np.float64]

GROUPS = ("window", "pointwise", "depthwise", "linear", "pool", "other")
"""Operators with kernels of their own in every runtime; `window` is a convolution wider than 1."""
LANES = 16
"""Runtimes work on so many output channels at once: the last ones cost as much as a whole batch."""
PARTS = ("count", "macs", "lanes", "elements", "weights", "act")
NAMES = ("once", *(f"{group}.{part}" for group in GROUPS for part in PARTS))
# In units in which typical values are near 1.
UNIT = {"count": 1.0, "macs": 1e6, "lanes": 1e6, "elements": 1e4, "weights": 1e4, "act": 1e4}


def features(plans: Sequence[LayerPlan]) -> Features:
    """(len(NAMES),) numbers ≥ 0, whose weighted sum is a latency: 1, then per group of operators

    how many there are, their multiply-accumulates as they are and with output channels rounded up to
    whole lanes, the elements that they read and write, their weights, and the elements of activations
    that are more than a clamp.
    """
    found = np.zeros(len(NAMES))
    found[0] = 1.0
    for plan in plans:
        at = 1 + len(PARTS) * GROUPS.index(group_of(plan))
        rounded = plan.macs * (-(-plan.out_channels // LANES) * LANES) / plan.out_channels
        values = {
            "count": 1.0,
            "macs": plan.macs,
            "lanes": rounded,
            "elements": plan.in_elements + plan.out_elements,
            "weights": plan.weights,
            "act": plan.out_elements if plan.act not in ("", "relu", "relu6") else 0,
        }
        found[at : at + len(PARTS)] += [values[part] / UNIT[part] for part in PARTS]
    return found


def group_of(plan: LayerPlan) -> str:
    """The group of operators that a layer belongs to."""
    if plan.kind == "conv":
        return "window" if plan.kernel_area > 1 else "pointwise"
    return plan.kind if plan.kind in GROUPS else "other"
