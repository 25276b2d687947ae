"""Spaces of residual networks that a name can mean."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from .resnet import ResNetSpace
from .resnet_options import Stage, Stem

# Widths 64 (and half of it inside the stem), 256, 512, 1024, 2048 times 0.65, 0.8 and 1; depths are
# those of the smallest network and 0, 1 or 2 blocks more.
OFA_EXPANDS = (0.2, 0.25, 0.35)
OFA = ResNetSpace(
    classes=1000,
    in_channels=3,
    resolutions=(128, 160, 192, 224),
    stem=Stem(widths=(40, 48, 64), mids=(24, 32), repeats=(0, 1), stride=2, pool=True),
    stages=(
        Stage((168, 208, 256), (2, 3, 4), OFA_EXPANDS),
        Stage((336, 408, 512), (2, 3, 4), OFA_EXPANDS, stride=2),
        Stage((664, 816, 1024), (4, 5, 6), OFA_EXPANDS, stride=2),
        Stage((1328, 1640, 2048), (2, 3, 4), OFA_EXPANDS, stride=2),
    ),
)
SUPERFEDNAS_EXPANDS = (0.1, 0.14, 0.18, 0.22, 0.25)
SUPERFEDNAS = ResNetSpace(
    classes=10,
    in_channels=3,
    resolutions=(32,),
    stem=Stem(widths=(64,)),
    stages=tuple(
        Stage((width,), (1, 2, 3), SUPERFEDNAS_EXPANDS, stride=stride, block="basic")
        for width, stride in ((256, 1), (512, 2), (1024, 2), (2048, 2))
    ),
)
SLIM = ResNetSpace(
    classes=10,
    in_channels=3,
    resolutions=(32,),
    stem=Stem(),
    stages=tuple(
        Stage((width,), (2,), (1,), stride=stride, block="basic")
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2))
    ),
    ratios=(0.0625, 0.125, 0.25, 0.5, 1),
    divisor=4,
)
SMALL = ResNetSpace(
    classes=10,
    in_channels=1,
    resolutions=(20, 24, 28),
    stem=Stem(widths=(8, 12)),
    stages=(
        Stage((8, 12), (1, 2), (0.25, 0.5, 1), stride=2, block="basic"),
        Stage((16, 24, 32), (1, 2), (0.25, 0.5, 1), stride=2, block="basic"),
        Stage((24, 32, 40), (1, 2), (0.25, 0.5, 1), block="basic"),
    ),
    divisor=4,
)
PRESETS: Mapping[str, ResNetSpace] = MappingProxyType(
    {
        "ofa-resnet": OFA,
        "superfednas-resnet": SUPERFEDNAS,
        "slim-resnet": SLIM,
        "small-resnet": SMALL,
        "small-resnet-32": replace(SMALL, in_channels=3, resolutions=(24, 28, 32)),
    }
)
