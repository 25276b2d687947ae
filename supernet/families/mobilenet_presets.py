"""Named inverted-residual spaces: small ones for CPUs, and the published ones at ImageNet size."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ..errors import UsageError
from .mobilenet import MobileNetSpace, Stage
from .mobilenet_blocks import make_divisible

MOST_WIDTH = 4.0

# No map is smaller than the kernels on it: a convolution like that takes a CPU five times as long.
DIGITS = MobileNetSpace(
    classes=10,
    in_channels=1,
    resolutions=(8,),
    stem_widths=(8, 16),
    stages=(
        Stage((8, 16, 24), (1,), (2, 3, 4), (3, 5), stride=2),
        Stage((16, 24, 32), (1, 2), (2, 3, 4), (3,)),
        Stage((16, 32, 48), (1, 2), (2, 3, 4), (3,)),
    ),
    head_widths=(32, 96),
)
SMALL = MobileNetSpace(
    classes=10,
    in_channels=1,
    resolutions=(20, 24, 28),
    stem_widths=(8, 16),
    stages=(
        Stage(widths=(8, 16), depths=(1, 2), expands=(2, 3, 4), kernels=(3, 5)),
        Stage(widths=(16, 24, 32), depths=(1, 2, 3), expands=(2, 3, 4), kernels=(3, 5), stride=2,
              act="hswish"),
        Stage(widths=(32, 48, 64), depths=(1, 2, 3), expands=(2, 3, 4), kernels=(3, 5), stride=2,
              act="hswish", se=True),
    ),
    head_widths=(96, 192),
)  # fmt: skip
MOBILE = MobileNetSpace(
    classes=1000,
    in_channels=3,
    resolutions=(128, 160, 192, 224),
    stem_widths=(16,),
    stem_stride=2,
    stages=(
        Stage((16,), (1,), (1,), (3,)),
        Stage((16, 24), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2),
        Stage((32, 40), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2, se=True),
        Stage((64, 80), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2, act="hswish"),
        Stage((96, 112), (2, 3, 4), (3, 4, 6), (3, 5, 7), act="hswish", se=True),
        Stage((128, 160), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2, act="hswish", se=True),
    ),
    head_widths=(768, 960),
    feature_widths=(1280,),
)


def ofa_mbv3(width: float = 1.0) -> MobileNetSpace:
    """The once-for-all MobileNetV3 space (Cai et al. 2020) at a width multiplier.

    Depth 2 to 4, expand ratio 3, 4, 6, kernel 3, 5, 7, resolution 128 to 224 in steps of 4; widths
    are fixed. Deviations: no kernel transformation matrices (the smaller kernel is the centre of
    the larger), and no skip around the first block, whose input and output are different axes.
    """
    if not 0 < width <= MOST_WIDTH:
        raise UsageError(f"width = {width}; a multiplier above 0 and up to {MOST_WIDTH} expected")

    def stage(channels: int, stride: int, act: str, *, se: bool) -> Stage:
        return Stage((wide(channels),), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride, act, se)

    def wide(channels: int) -> int:
        return make_divisible(channels * width, 8)

    return MobileNetSpace(
        classes=1000,
        in_channels=3,
        resolutions=tuple(range(128, 225, 4)),
        stem_widths=(wide(16),),
        stem_stride=2,
        stages=(
            Stage((wide(16),), (1,), (1,), (3,)),
            stage(24, 2, "relu", se=False),
            stage(40, 2, "relu", se=True),
            stage(80, 2, "hswish", se=False),
            stage(112, 1, "hswish", se=True),
            stage(160, 2, "hswish", se=True),
        ),
        head_widths=(wide(960),),
        feature_widths=(wide(1280),),
    )


def attentive_nas() -> MobileNetSpace:
    """The AttentiveNAS and AlphaNet space (Wang et al. 2021): widths, depths, kernels by stage.

    The published networks hold a projection in every block's shortcut, also where the input itself
    is added; here only a stage's first block does (`published.unused_params` counts the others).
    """

    def stage(
        widths: tuple[int, ...], depths: range, expands: tuple[int, ...], stride: int, *, se: bool
    ) -> Stage:
        return Stage(widths, tuple(depths), expands, (3, 5), stride, "silu", se)

    return MobileNetSpace(
        classes=1000,
        in_channels=3,
        resolutions=(192, 224, 256, 288),
        stem_widths=(16, 24),
        stem_stride=2,
        stem_act="silu",
        head_act="silu",
        tied=True,
        project=True,
        stages=(
            stage((16, 24), range(1, 3), (1,), 1, se=False),
            stage((24, 32), range(3, 6), (4, 5, 6), 2, se=False),
            stage((32, 40), range(3, 7), (4, 5, 6), 2, se=True),
            stage((64, 72), range(3, 7), (4, 5, 6), 2, se=False),
            stage((112, 120, 128), range(3, 9), (4, 5, 6), 1, se=True),
            stage((192, 200, 208, 216), range(3, 9), (6,), 2, se=True),
            stage((216, 224), range(1, 3), (6,), 1, se=True),
        ),
        head_expand=6,
        feature_widths=(1792, 1984),
    )


SMALL_32 = replace(SMALL, in_channels=3, resolutions=(24, 28, 32))
PRESETS: Mapping[str, MobileNetSpace] = MappingProxyType(
    {
        "digits": DIGITS,
        "small": SMALL,
        "small-32": SMALL_32,
        "mobile": MOBILE,
        "ofa-mbv3": ofa_mbv3(),
        "attentive-nas": attentive_nas(),
    }
)
