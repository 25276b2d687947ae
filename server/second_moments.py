"""What devices answer about kernels' inputs: checked, then sums that add up."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..protos.flower import Values
from ..protos.messages import InputsReply, MessageError
from ..specialize.scheme import NARROW
from ..supernet.kernel_inputs import Matrix, Observed, SecondMoments, blocks, observed, whole
from ..supernet.space import Arch, Space

ROUNDING = 1e-4
"""What float32 may change of a sum of squares, of their mean over a block."""


def asked(space: Space, arch: Arch, widths: Mapping[str, int]) -> dict[str, Observed]:
    """The kernels that are to have 4 bits and whose inputs can be observed."""
    found = observed(space, arch)
    return {name: kernel for name, kernel in found.items() if widths.get(name) == NARROW}


def numbers(kernels: Mapping[str, Observed]) -> int:
    """How many a device sends for a subnet."""
    sizes = [size for kernel in kernels.values() for size in blocks(kernel.shape)]
    return sum(size * (size + 1) // 2 for size in sizes)


def read_inputs(
    subnets: Sequence[Mapping[str, Observed]],
    examples: int,
    body: InputsReply,
    values: Values | None,
) -> list[dict[str, tuple[Matrix, ...]]]:
    """One device's sums per subnet, over so many examples; MessageError where they can be none."""
    needed = sum(numbers(kernels) for kernels in subnets)
    if values is None or values.dtype != np.float32 or len(values) != needed:
        raise MessageError(f"second moments: {needed} float32 values expected")
    if body.examples != examples or examples < 1:
        raise MessageError(
            f"second moments: over {body.examples} examples; its profile leaves {examples}"
        )
    if not np.isfinite(values).all():
        raise MessageError("second moments: a value is not finite")
    found, at = [], 0
    for kernels in subnets:
        mine: dict[str, tuple[Matrix, ...]] = {}
        for name, kernel in kernels.items():
            parts = []
            for size in blocks(kernel.shape):
                count = size * (size + 1) // 2
                parts.append(whole(values[at : at + count], size))  # type: ignore[arg-type]
                at += count
                if not _are_second_moments(parts[-1]):
                    raise MessageError(f"second moments: those of {name} are of no inputs")
            mine[name] = tuple(parts)
        found.append(mine)
    return found


def lighter(moments: SecondMoments, weight: float) -> dict[str, tuple[Matrix, ...]]:
    """The same, counting less where `weight` is below 1."""
    return {
        name: tuple(min(weight, 1.0) * block for block in parts) for name, parts in moments.items()
    }


def _are_second_moments(block: Matrix) -> bool:
    """Whether no combination of inputs has a negative square, but for rounding."""
    mean = float(block.diagonal().mean())
    if mean <= 0:
        return not block.any()
    try:
        np.linalg.cholesky(block / mean + ROUNDING * np.eye(len(block)))
    except np.linalg.LinAlgError:
        return False
    return True
