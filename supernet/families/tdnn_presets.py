"""Named spaces of the tdnn family."""

from collections.abc import Mapping

from .tdnn import TdnnSpace
from .tdnn_options import BlockOptions

# Windows of 1.28 s at 100 Hz, accelerometer and gyroscope: `fedofa.client.sensor_data:har`.
HAR = TdnnSpace(
    classes=5,
    in_channels=6,
    steps=128,
    stem_widths=(12, 24, 36, 48),
    stem_stride=2,
    blocks=tuple(
        BlockOptions(widths=(12, 24, 36, 48), dilation=dilation) for dilation in (1, 2, 3)
    ),
    depths=(1, 2, 3),
    aggregate_widths=(24, 48, 96),
    divisor=4,
)
# 40 bands every 10 ms of 0.64 s: `fedofa.client.sensor_data:fsdd`.
DIGITS = TdnnSpace(
    classes=10,
    in_channels=40,
    steps=64,
    stem_widths=(8, 16, 32, 48),
    stem_stride=2,
    blocks=tuple(
        BlockOptions(widths=(8, 16, 32, 48), dilation=dilation, scale=2) for dilation in (1, 2, 3)
    ),
    depths=(1, 2, 3),
    aggregate_widths=(16, 48, 96),
    embed_widths=(16, 32),
    divisor=4,
)
# Two seconds at 100 frames a second, with EfficientTDNN's widths, for 1,251 speakers (VoxCeleb 1).
MEL = TdnnSpace(
    classes=1251,
    in_channels=80,
    steps=200,
    stem_widths=(128, 256, 384, 512),
    blocks=tuple(
        BlockOptions(widths=(128, 256, 384, 512), dilation=dilation, scale=8)
        for dilation in (2, 3, 4, 5)
    ),
    depths=(2, 3, 4),
    aggregate_widths=(384, 768, 1152, 1536),
    embed_widths=(192,),
)
PRESETS: Mapping[str, TdnnSpace] = {"tdnn-har": HAR, "tdnn-digits": DIGITS, "tdnn-mel": MEL}
