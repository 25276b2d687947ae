"""Stems and residual blocks of ResNets: their geometry, their modules, their layers' sizes.

A block's branch is two 3×3 convolutions (basic) or 1×1, 3×3, 1×1 (bottleneck; He et al. 2016), each
followed by normalization, with a ReLU between them and one after the addition. Where stride or
channels change, the shortcut is average pooling, a 1×1 convolution and normalization (ResNet-D, He
et al. 2019); else it is the input itself.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor, nn

from ..cost import LayerPlan
from .layers import Layers, Width

BLOCKS = ("basic", "bottleneck")
PLACE_FLOATS = 2
"""For the backward pass, max pooling keeps the place of each maximum: 8 bytes."""


class Conv(NamedTuple):
    """One convolution of a branch: its axes, its channels, its kernel, its stride."""

    axis_out: str
    axis_in: str
    out: int
    in_: int
    kernel: int
    stride: int


@dataclass(frozen=True, slots=True)
class Block:
    """Geometry of one residual block of one architecture."""

    name: str
    kind: str
    axis_in: str
    axis_out: str
    width_in: int
    width_mid: int
    width_out: int
    stride: int
    hw_in: int

    @property
    def hw_out(self) -> int:
        """Pixels after the block."""
        return strided(self.hw_in, self.stride)

    @property
    def projects(self) -> bool:
        """Whether the shortcut has weights: a matter of the place, not of the widths chosen."""
        return self.axis_in != self.axis_out or self.stride > 1

    @property
    def mid_axes(self) -> tuple[str, ...]:
        """The axes between the branch's convolutions, each of `width_mid` channels."""
        between = 1 if self.kind == "basic" else 2
        return tuple(f"{self.name}.mid{n}" for n in range(between))

    @property
    def branch(self) -> tuple[Conv, ...]:
        """The convolutions of the branch, in order."""
        first, last = self.mid_axes[0], self.mid_axes[-1]
        before, mid, after = self.width_in, self.width_mid, self.width_out
        if self.kind == "basic":
            return (
                Conv(first, self.axis_in, mid, before, 3, self.stride),
                Conv(self.axis_out, last, after, mid, 3, 1),
            )
        return (
            Conv(first, self.axis_in, mid, before, 1, 1),
            Conv(last, first, mid, mid, 3, self.stride),
            Conv(self.axis_out, last, after, mid, 1, 1),
        )


@dataclass(frozen=True, slots=True)
class StemShape:
    """Geometry of one architecture's stem; `width_mid` = 0 is a stem of one convolution."""

    axis: str
    in_channels: int
    width_mid: int
    repeats: int
    width: int
    resolution: int
    stride: int
    pool: bool

    @property
    def hw_conv(self) -> int:
        """Pixels after the convolutions."""
        return strided(self.resolution, self.stride)

    @property
    def hw_out(self) -> int:
        """Pixels that the first stage gets."""
        return self.hw_conv // 2 if self.pool else self.hw_conv


def strided(hw: int, stride: int) -> int:
    """Pixels after a stride: of a kernel with 'same' padding, and of the pooled shortcut."""
    return (hw - 1) // stride + 1


class Residual(nn.Module):
    """Branch plus shortcut, then ReLU."""

    def __init__(self, block: Block, make: Layers) -> None:
        super().__init__()
        self.branch, self.shortcut = nn.Sequential(), nn.Sequential()
        for conv in block.branch:
            act = "" if conv.axis_out == block.axis_out else "relu"
            self.branch.append(
                make.conv_norm_act(
                    conv.axis_out, conv.axis_in, kernel=conv.kernel, stride=conv.stride, act=act
                )
            )
        if block.stride > 1:
            # A window over the edge counts its pixels only, as TFLite's 'same' padding does.
            pool = nn.AvgPool2d(block.stride, ceil_mode=True, count_include_pad=False)
            self.shortcut.add_module("pool", pool)
        if block.projects:
            project = make.conv_norm_act(block.axis_out, block.axis_in, act="")
            self.shortcut.add_module("project", project)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, in, h, w) to (B, out, h / stride, w / stride)."""
        # The branch comes first: when the shortcut needs room, the branch's is free again.
        y_bchw: Tensor = self.act(self.branch(x_bchw) + self.shortcut(x_bchw))
        return y_bchw


class SkipConv(nn.Module):
    """A deep stem's middle layer: input plus convolution, normalization and ReLU of it."""

    def __init__(self, make: Layers) -> None:
        super().__init__()
        self.branch = make.conv_norm_act("stem.mid", "stem.mid", kernel=3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, mid, h, w) to the same shape."""
        y_bchw: Tensor = x_bchw + self.branch(x_bchw)
        return y_bchw


def make_stem(shape: StemShape, make: Layers) -> nn.Sequential:
    """Modules `first` and `body` (of a deep stem), `last`, `pool`."""
    chain, stride = nn.Sequential(), shape.stride
    axis: Width = shape.in_channels
    if shape.width_mid:
        first = make.conv_norm_act("stem.mid", axis, kernel=3, stride=stride)
        chain.add_module("first", first)
        chain.add_module("body", nn.Sequential(*(SkipConv(make) for _ in range(shape.repeats))))
        axis, stride = "stem.mid", 1
    chain.add_module("last", make.conv_norm_act(shape.axis, axis, kernel=3, stride=stride))
    if shape.pool:
        # Windows over the far edge, none over the near one: of an even map that is TFLite's 'same'
        # padding. Any other is filled with -inf there, which int8 cannot hold.
        chain.add_module("pool", nn.MaxPool2d(3, stride=2, ceil_mode=True))
    return chain


class ResNet(nn.Module):
    """Stem, stages, mean over all positions, classifier."""

    def __init__(self, stem: nn.Module, stages: nn.ModuleList, classifier: nn.Module) -> None:
        super().__init__()
        self.stem, self.stages = stem, stages
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), classifier

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Images (B, C, r, r) to logits (B, classes)."""
        x_bchw = self.stem(x_bchw)
        for stage in self.stages:
            x_bchw = stage(x_bchw)
        logits_bc: Tensor = self.classifier(self.pool(x_bchw).flatten(1))
        return logits_bc


def stem_layers(shape: StemShape) -> list[LayerPlan]:
    """The stem's convolutions and pooling."""
    area, width, before = shape.hw_conv**2, shape.width, shape.in_channels
    elements, plans = before * shape.resolution**2, list[LayerPlan]()
    if mid := shape.width_mid:
        plans.append(_conv("stem.first", (mid, before, 3), elements, mid * area, act="relu"))
        before, elements = mid, mid * area
        for n in range(shape.repeats):
            layer = _conv(f"stem.body.{n}", (mid, mid, 3), elements, elements, act="relu")
            # The next layer's input is the sum, so that the ReLU keeps its output besides.
            plans.append(replace(layer, kept=3 * elements))
    plans.append(_conv("stem.last", (width, before, 3), elements, width * area, act="relu"))
    if shape.pool:
        elements, pooled = width * area, width * shape.hw_out**2
        kept = elements + PLACE_FLOATS * pooled
        plans.append(LayerPlan("stem.pool", "pool", width, 0, 0, elements, pooled, kept=kept))
    return plans


def block_layers(block: Block) -> list[LayerPlan]:
    """The branch, then the shortcut, while the branch's output waits."""
    area, area_out = block.hw_in**2, block.hw_out**2
    source, result = block.width_in * area, block.width_out * area_out
    elements, plans = source, list[LayerPlan]()
    for n, conv in enumerate(block.branch):
        area = area_out if conv.stride > 1 else area
        kernel, out = (conv.out, conv.in_, conv.kernel), conv.out * area
        act, held = "" if conv.axis_out == block.axis_out else "relu", source if n else 0
        name = f"{block.name}.branch.{n}"
        plans.append(_conv(name, kernel, elements, out, act=act, held=held))
        elements = out
    pooled = block.width_in * area_out
    if block.stride > 1:
        name = f"{block.name}.shortcut.pool"
        plans.append(LayerPlan(name, "pool", block.width_in, 0, 0, source, pooled, held=result))
    if block.projects:
        name, kernel = f"{block.name}.shortcut.project", (block.width_out, block.width_in, 1)
        project = _conv(name, kernel, pooled, result, held=result)
        # Without a pooling its input is the branch's, which autograd keeps once.
        plans.append(project if block.stride > 1 else replace(project, kept=result))
    return plans


def head_layers(width: int, hw: int, classes: int) -> list[LayerPlan]:
    """Mean and classifier. The mean's input is the output of a ReLU, which autograd keeps."""
    return [
        LayerPlan("pool", "pool", width, 0, 0, width * hw**2, width, reread=True),
        LayerPlan("classifier", "linear", classes, width, 1, width, classes, bias=True),
    ]


def _conv(
    name: str,
    kernel: tuple[int, int, int],
    in_elements: int,
    out_elements: int,
    *,
    act: str = "",
    held: int = 0,
) -> LayerPlan:
    """A convolution with normalization; `kernel` is channels out, channels in, size."""
    out, in_, size = kernel
    return LayerPlan(
        name, "conv", out, in_, size**2, in_elements, out_elements, norm=True, act=act, held=held
    )
