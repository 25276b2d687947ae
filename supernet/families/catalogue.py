"""The families and presets that a name or a description can mean."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import UsageError
from ..space import Space
from . import (
    declared,
    mlp,
    mobilenet,
    mobilenet_presets,
    resnet,
    resnet_presets,
    tdnn,
    tdnn_presets,
    vit,
    vit_presets,
)

FAMILIES: Mapping[str, type[Space]] = MappingProxyType(
    {
        "mobilenet": mobilenet.MobileNetSpace,
        "resnet": resnet.ResNetSpace,
        "vit": vit.VitSpace,
        "tdnn": tdnn.TdnnSpace,
        "mlp": mlp.MlpSpace,
        "declared": declared.DeclaredSpace,
    }
)
PRESETS: Mapping[str, Space] = MappingProxyType(
    {
        **mobilenet_presets.PRESETS,
        **resnet_presets.PRESETS,
        **vit_presets.PRESETS,
        **tdnn_presets.PRESETS,
        **mlp.PRESETS,
    }
)


def preset(name: str) -> Space:
    """The space of a preset; UsageError lists the known names."""
    if name in list(PRESETS):  # a list: what a file gives may be no text and have no hash
        return PRESETS[name]
    near = difflib.get_close_matches(str(name), list(PRESETS), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"space preset {name!r} is unknown; known: {', '.join(PRESETS)}{hint}")


def space_from_dict(fields: Mapping[str, object]) -> Space:
    """Read a space's `to_dict` form; UsageError names what is wrong."""
    rest = dict(fields)
    family = rest.pop("family", None)
    if family not in list(FAMILIES):
        raise UsageError(f"space: family = {family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[str(family)].from_dict(rest)
