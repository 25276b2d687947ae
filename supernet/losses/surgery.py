"""Gradient surgery for a weak target (NetDistiller, Zhang et al. 2023; PCGrad, Yu et al. 2020).

A target subnet and the larger teacher that contains it are trained on the same weights. Where their
gradients g_s and g_t disagree, g_s·g_t < 0, the teacher's is projected onto what does the target no
harm before both are added:

    g_t ← g_t - (g_s·g_t / ‖g_s‖²) g_s.

Afterwards g_s·g_t = 0, so the sum descends the target's loss as fast as g_s alone would.

The products are over all shared weights at once; a weight that the target does not have counts 0 in
g_s and keeps the teacher's gradient. The method as published projects once and in one direction, as
here; whether per layer or over all weights could not be confirmed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def project(teacher: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> float:
    """Project the teacher's gradients in place; returns g_s·g_t as it was before.

    Names are those of the weights; one that either side lacks has no gradient there.
    """
    shared = [name for name in target if name in teacher]
    product = sum(_dot(target[name], teacher[name]) for name in shared)
    if product < 0:
        square = sum(_dot(gradient, gradient) for gradient in target.values())
        for name in shared:
            teacher[name].sub_(target[name], alpha=product / square)
    return product


def _dot(first: Tensor, second: Tensor) -> float:
    # In doubles: the sum of a million products of floats loses the sign that this is about.
    return float((first.double() * second.double()).sum())
