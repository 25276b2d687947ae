"""Inverted residual blocks and the head: their geometry, their layers' sizes, their modules."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..cost import LayerPlan
from .layers import Layers


def make_divisible(channels: float, divisor: int) -> int:
    """Nearest multiple of `divisor`, never more than 10 % below (Howard et al. 2019)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


Shortcut = Literal["none", "identity", "project", "spare"]


@dataclass(frozen=True, slots=True)
class Block:
    """Geometry of one inverted residual block of one architecture.

    `shortcut` is what is added to the output: nothing, the input, or the input pooled by the stride
    and projected by a 1×1 convolution. `spare` adds the input and holds a projection that it does
    not use: subnets inside it with other widths do.
    """

    name: str
    axis_in: str
    axis_out: str
    width_in: int
    width_mid: int
    width_out: int
    kernel: int
    stride: int
    hw_in: int
    hw_out: int
    act: str
    se: int
    expand: bool
    shortcut: Shortcut


def block_layers(block: Block) -> list[LayerPlan]:
    """Sizes of the block's layers, in order of execution."""
    area_in, area_out = block.hw_in**2, block.hw_out**2
    skip = block.width_in * area_in if block.shortcut != "none" else 0
    mid = block.width_mid
    plans = []
    if block.expand:
        plans.append(
            LayerPlan(f"{block.name}.expand", "conv", mid, block.width_in, 1,
                      block.width_in * area_in, mid * area_in, norm=True, act=block.act)
        )  # fmt: skip
    # Without an expansion the depthwise layer's input is the residual's tensor itself.
    held = skip if block.expand else 0
    plans.append(
        LayerPlan(f"{block.name}.depthwise", "depthwise", mid, 1, block.kernel**2, mid * area_in,
                  mid * area_out, norm=True, act=block.act, held=held)
    )  # fmt: skip
    if block.se:
        scaled = mid * area_out + skip
        plans += [
            LayerPlan(f"{block.name}.se.pool", "pool", mid, 0, 0, mid * area_out, mid, held=skip,
                      reread=True),
            LayerPlan(f"{block.name}.se.reduce", "conv", block.se, mid, 1, mid, block.se,
                      bias=True, act="relu", held=scaled),
            LayerPlan(f"{block.name}.se.expand", "conv", mid, block.se, 1, block.se, mid,
                      bias=True, act="hsigmoid", held=scaled),
        ]  # fmt: skip
    plans.append(
        LayerPlan(f"{block.name}.project", "conv", block.width_out, mid, 1, mid * area_out,
                  block.width_out * area_out, norm=True, held=skip)
    )  # fmt: skip
    return plans + _shortcut_layers(block)


def _shortcut_layers(block: Block) -> list[LayerPlan]:
    if block.shortcut == "spare":
        spare = block.width_in * block.width_out
        return [LayerPlan(f"{block.name}.shortcut", "table", 1, 0, 0, 0, 0, other_params=spare)]
    if block.shortcut != "project":
        return []
    width, area_in, area_out = block.width_in, block.hw_in**2, block.hw_out**2
    held, plans = block.width_out * area_out, []
    if block.stride > 1:
        plans.append(
            LayerPlan(f"{block.name}.shortcut.pool", "pool", width, 0, 0, width * area_in,
                      width * area_out, held=held)
        )  # fmt: skip
    plans.append(
        LayerPlan(f"{block.name}.shortcut.conv", "conv", block.width_out, width, 1,
                  width * area_out, block.width_out * area_out, held=held)
    )  # fmt: skip
    return plans


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, optional squeeze-and-excitation, project 1×1, optional skip."""

    def __init__(self, block: Block, make: Layers) -> None:
        super().__init__()
        mid_axis = f"{block.name}.mid" if block.expand else block.axis_in
        self.expand = (
            make.conv_norm_act(mid_axis, block.axis_in, act=block.act)
            if block.expand
            else nn.Identity()
        )
        self.depthwise = make.conv_norm_act(
            mid_axis, None, kernel=f"{block.name}.k", stride=block.stride, act=block.act
        )
        self.se = make.squeeze_excite(mid_axis, f"{block.name}.se") if block.se else nn.Identity()
        self.project = make.conv_norm_act(block.axis_out, mid_axis, act="")
        self.skips = block.shortcut
        self.shortcut = _shortcut(block, make)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, in, h, w) to (B, out, h / stride, w / stride)."""
        y_bchw: Tensor = self.project(self.se(self.depthwise(self.expand(x_bchw))))
        if self.skips == "project":
            skip_bchw: Tensor = self.shortcut(x_bchw)
            return skip_bchw + y_bchw
        return y_bchw if self.skips == "none" else x_bchw + y_bchw


def _shortcut(block: Block, make: Layers) -> nn.Module:
    chain = nn.Sequential()
    if block.shortcut in ("project", "spare"):
        if block.stride > 1:
            chain.add_module("pool", nn.AvgPool2d(block.stride))
        chain.add_module("conv", make.conv(block.axis_out, block.axis_in))
    return chain


class Head(nn.Module):
    """1×1 expansion, global average pooling, optional feature layer, classifier."""

    def __init__(self, axis_in: str, feature: str, classes: int, act: str, make: Layers) -> None:
        """`feature` is the axis of the feature layer, '' for none."""
        super().__init__()
        self.expand = make.conv_norm_act("head.out", axis_in, act=act)
        self.pool = make.pool()
        self.feature = make.conv_act(feature, "head.out", act=act) if feature else nn.Identity()
        self.classifier = make.linear(classes, feature or "head.out")

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Features (B, C, h, w) to logits (B, classes)."""
        feature_bc = self.feature(self.pool(self.expand(x_bchw))).flatten(1)
        logits_bc: Tensor = self.classifier(feature_bc)
        return logits_bc


class MobileNet(nn.Module):
    """Stem, stages, head; input (B, C, r, r), output logits (B, classes)."""

    def __init__(self, stem: nn.Module, stages: nn.ModuleList, head: Head) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, stages, head

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Images (B, C, r, r) to logits (B, classes)."""
        x_bchw = self.stem(x_bchw)
        for stage in self.stages:
            x_bchw = stage(x_bchw)
        logits_bc: Tensor = self.head(x_bchw)
        return logits_bc
