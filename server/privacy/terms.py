"""What a secure sum promises its devices, and what comes out of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.fixed_point import MOST_CLIENTS
from ...protos.secure_messages import MOST_CELLS
from ...supernet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Terms:
    """Of how many devices the secrets can be put together, and whose sums are revealed.

    `bound` is the largest absolute value that a device's values may have: beyond, they are cut.
    """

    threshold: int
    least_cover: int
    bound: float
    most_cells: int = MOST_CELLS

    def check(self, devices: int) -> None:
        """UsageError when so few, or so many, devices cannot have these terms."""
        if not 1 <= devices <= MOST_CLIENTS:
            raise UsageError(f"{devices} devices cannot be summed; 1 to {MOST_CLIENTS}")
        least = devices // 2 + 1
        if not least <= self.threshold <= devices:
            raise UsageError(
                f"threshold = {self.threshold} of {devices} devices; {least} to {devices}: two groups "
                "of half the devices could be made to reveal both secrets of one"
            )
        if not 2 <= self.least_cover <= devices:
            raise UsageError(
                f"least_cover = {self.least_cover} of {devices} devices; 2 to {devices}: the sum over "
                "one device is its value"
            )


@dataclass(frozen=True, slots=True)
class SecureSums:
    """Sum and number of devices for each value of the supernet; both 0 where there is no sum.

    `step` bounds the error: a sum over k devices is off by less than k steps. `left_out` counts the
    values that devices covered and no sum was made of; `cells` those groups of values with a sum.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int32]
    step: float
    left_out: int
    cells: int
