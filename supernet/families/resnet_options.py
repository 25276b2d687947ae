"""Options of a ResNet's stem and stages, and the checks that they and the space share."""

from dataclasses import dataclass

from ..errors import UsageError
from .fields import check_counts
from .resnet_blocks import BLOCKS

STRIDES = (1, 2)
MOST_EXPAND = 8


@dataclass(frozen=True, slots=True)
class Stem:
    """Options of the layers before the first stage: 3×3 convolutions, then max pooling if `pool`.

    `widths` are the channels that leave it; () puts them on the first stage's axis, whose first
    block then adds its input as it is. `mids` make it a deep one: a convolution to so many
    channels, then `repeats` more with a shortcut each, then one to `widths`.
    """

    widths: tuple[int, ...] = ()
    mids: tuple[int, ...] = ()
    repeats: tuple[int, ...] = ()
    stride: int = 1
    pool: bool = False

    def __post_init__(self) -> None:
        check_counts("stem: widths", self.widths)
        check_counts("stem: mids", self.mids)
        check_counts("stem: repeats", self.repeats, least=0)
        _check_stride("stem", self.stride)
        if bool(self.mids) != bool(self.repeats):
            raise UsageError(
                f"stem: mids = {self.mids} and repeats = {self.repeats}; a deep stem needs both, "
                "one of a single convolution neither"
            )
        if type(self.pool) is not bool:
            raise UsageError(f"stem: pool = {self.pool!r}; true or false expected")


@dataclass(frozen=True, slots=True)
class Stage:
    """Options of one stage, ascending: `widths` in channels, `depths` in blocks.

    `expands` are the channels inside a block as ratios of the stage's width.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    expands: tuple[float, ...]
    stride: int = 1
    block: str = "bottleneck"

    def __post_init__(self) -> None:
        check_counts("stage: widths", self.widths)
        check_counts("stage: depths", self.depths)
        check_ratios("stage: expands", self.expands, most=MOST_EXPAND)
        _check_stride("stage", self.stride)
        if self.block not in BLOCKS:
            raise UsageError(f"stage: block = {self.block!r}; allowed: {', '.join(BLOCKS)}")


def check_ratios(where: str, values: object, most: float) -> None:
    """UsageError unless it is a tuple of numbers above 0 and at most `most`."""
    if not isinstance(values, tuple) or any(
        type(v) not in (int, float) or not 0 < v <= most for v in values
    ):
        raise UsageError(f"{where} = {values!r}; numbers above 0, at most {most}, expected")


def _check_stride(where: str, stride: object) -> None:
    if type(stride) is not int or stride not in STRIDES:
        raise UsageError(f"{where}: stride = {stride!r}; allowed: {STRIDES}")
