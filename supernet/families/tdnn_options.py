"""What may vary in one block of a temporal network."""

from dataclasses import dataclass

from ..errors import UsageError
from .fields import check_counts, check_flag, check_multiples


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """Options of one block, ascending: `widths` in channels, `kernels` in steps.

    `scale` = 1 convolves all channels together, else in so many Res2 groups. `se` is
    squeeze-and-excitation.
    """

    widths: tuple[int, ...]
    kernels: tuple[int, ...] = (1, 3, 5)
    dilation: int = 1
    scale: int = 1
    se: bool = True

    def __post_init__(self) -> None:
        for field in ("widths", "kernels"):
            check_counts(f"block: {field}", getattr(self, field))
        for field in ("dilation", "scale"):
            check_counts(f"block: {field}", (getattr(self, field),))
        check_flag("block: se", self.se)
        check_multiples("block: widths", self.widths, self.scale, "scale")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UsageError(f"block: kernels = {self.kernels}; odd sizes only")
