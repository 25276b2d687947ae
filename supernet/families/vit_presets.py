"""Spaces of vision transformers that have a name."""

from collections.abc import Mapping

from .vit import Stage, VitSpace

IMAGENET_CLASSES = 1000
AUTOFORMER_RATIOS = (3.0, 3.5, 4.0)
AUTOFORMER_DISTANCE = 14


def _autoformer(
    embeds: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...]
) -> VitSpace:
    stage = Stage(
        embeds=embeds,
        depths=depths,
        heads=heads,
        qkv=64 * heads[-1],
        ratios=AUTOFORMER_RATIOS,
        relative=AUTOFORMER_DISTANCE,
    )
    return VitSpace(
        classes=IMAGENET_CLASSES, in_channels=3, resolution=224, patch=16, stages=(stage,)
    )


# The tiny space's published networks use a ratio of 3 too, which the paper's table leaves out.
AUTOFORMER_TINY = _autoformer((192, 216, 240), (12, 13, 14), (3, 4))
AUTOFORMER_SMALL = _autoformer((320, 384, 448), (12, 13, 14), (5, 6, 7))
AUTOFORMER_BASE = _autoformer((528, 576, 624), (14, 15, 16), (9, 10))
# As wide and deep as the paper's larger super-network, with the options of its published networks.
# Those skip blocks anywhere; here a stage leaves its last ones. Their multiply-accumulates by our
# count are 1.6, 2.7 and 4.3 G; the paper, whose patch embedding is larger, states 1.8, 2.8 and 4.5.
VIT_RESNAS = VitSpace(
    classes=IMAGENET_CLASSES,
    in_channels=3,
    resolution=224,
    patch=14,
    stages=(
        Stage((176, 220, 240, 320), (5, 6, 7), (3, 4, 5, 6, 7, 8), qkv=256,
              hiddens=(576, 640, 704, 720, 800, 880, 960)),
        Stage((352, 440, 640), (5, 6, 7), (8, 10, 12, 14, 16), qkv=768,
              hiddens=(1024, 1120, 1280, 1408, 1440, 1600, 1760, 1920)),
        Stage((704, 880, 1280), (5, 6, 7), (8, 10, 12, 14, 16), qkv=1024,
              hiddens=(1792, 2240, 2560, 2816, 2880, 3200, 3520, 3840)),
    ),
)  # fmt: skip
SMALL_VIT = VitSpace(
    classes=10,
    in_channels=1,
    resolution=28,
    patch=4,
    stages=(Stage((32, 48, 64), (1, 2, 3, 4), (1, 2, 3, 4), qkv=64, ratios=(1.0, 1.5, 2.0)),),
)
PRESETS: Mapping[str, VitSpace] = {
    "autoformer-tiny": AUTOFORMER_TINY,
    "autoformer-small": AUTOFORMER_SMALL,
    "autoformer-base": AUTOFORMER_BASE,
    "vit-resnas": VIT_RESNAS,
    "small-vit": SMALL_VIT,
}
