"""Rounding a kernel so that its outputs change least: GPTQ (Frantar et al. 2023).

One input after the other is rounded, for all outputs at once, and what that changes in the outputs is
made up for by the inputs that still come, as the inverse of their second moments says. Inputs of larger
second moments come first. Devices' data stay on devices: moments are sums over them.
"""

import numpy as np
import torch
from torch import Tensor

from ..supernet.errors import UsageError
from ..supernet.fake_quant import rounded
from ..supernet.kernel_inputs import Matrix, blocks

DAMPING = 0.01
"""Of the mean second moment, added to each: GPTQ's. What no input moved cannot make up for anything."""


def compensated(weight: Tensor, moments: tuple[Matrix, ...], bits: int) -> Tensor:
    """The kernel (outputs, inputs, …) on the levels that `fake_quant.rounded` gives each output.

    An output's largest weight keeps its place at the outermost level, so that rounding what is
    returned changes nothing. `moments` are sums over any number of patches, see `kernel_inputs`;
    UsageError where their sizes are not the kernel's. Moments that are no second moments of anything
    give the nearest levels.
    """
    sizes = blocks(weight.shape)
    if [block.shape for block in moments] != [(size, size) for size in sizes]:
        raise UsageError(f"second moments: blocks of {sizes} inputs expected")
    rows = weight.detach().flatten(1).double()
    most = 2 ** (bits - 1) - 1
    units = (rows.abs().amax(1) / most).clamp(min=torch.finfo(torch.float64).tiny)
    # What earlier inputs would have moved these by goes on to later ones.
    outermost = rows.abs() == rows.abs().amax(1, keepdim=True)
    held, fixed = (torch.split(whole, sizes, 1) for whole in (rows, outermost))
    parts = [
        _block(part, torch.from_numpy(block), units, most, pinned)
        for part, block, pinned in zip(held, moments, fixed, strict=True)
    ]
    found = torch.cat(parts, 1).to(weight.dtype).view_as(weight)
    return rounded({"": found}, {"": bits})[""]


def _block(rows: Tensor, moments: Tensor, units: Tensor, most: int, fixed: Tensor) -> Tensor:
    """The levels of some inputs' weights, times their units."""
    order = moments.diagonal().argsort(descending=True, stable=True)
    upper = _factor(moments[order][:, order])
    held, pinned, found = rows[:, order], fixed[:, order], torch.empty_like(rows)
    rest = held.clone()
    for at in range(len(order)):
        levels = (rest[:, at] / units).round().clamp(-most, most)
        levels = torch.where(pinned[:, at], held[:, at].sign() * most, levels)
        found[:, order[at]] = levels * units
        if upper is not None:
            error = (rest[:, at] - levels * units) / upper[at, at]
            rest[:, at:] -= error[:, None] * upper[at, at:]
    return found


def _factor(moments: Tensor) -> Tensor | None:
    """The upper Cholesky factor of the damped inverse; None without one."""
    damping = DAMPING * moments.diagonal().mean()
    damped = moments + damping * torch.eye(len(moments), dtype=moments.dtype)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not np.isfinite(float(lower.sum())):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed else upper
