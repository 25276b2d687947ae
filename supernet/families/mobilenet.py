"""MobileNetV3-style inverted residuals with elastic depth, width, expand ratio, kernel, resolution.

The network: a 3×3 stem, stages of inverted residual blocks (Sandler et al. 2018; squeeze-and-
excitation and hard-swish as in Howard et al. 2019), a 1×1 head, average pooling, a classifier.
Elastic dimensions as in once-for-all (Cai et al. 2020) and AttentiveNAS (Wang et al. 2021): the
smaller kernel is the centre of the larger one, channels are prefixes, depth drops a stage's last
blocks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from torch import nn

from ..axes import Index, Selection, centred, prefix
from ..cost import LayerPlan
from ..errors import UsageError
from ..space import Arch, Gene, Space, block_needs
from .fields import check_counts, check_flag, read_space
from .layers import Layers
from .mobilenet_blocks import (
    Block,
    Head,
    InvertedResidual,
    MobileNet,
    Shortcut,
    block_layers,
    make_divisible,
)

ACTIVATIONS = ("relu", "hswish", "silu")
SE_REDUCTION = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """Options of one stage; `widths` in channels, `depths` in blocks, all ascending.

    Expand ratio 1 alone means blocks without an expansion convolution.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    expands: tuple[int, ...]
    kernels: tuple[int, ...]
    stride: int = 1
    act: str = "relu"
    se: bool = False

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS:
            raise UsageError(f"stage: act = {self.act!r}; allowed: {', '.join(ACTIVATIONS)}")
        for field in ("widths", "depths", "expands", "kernels"):
            check_counts(f"stage: {field}", getattr(self, field))
        check_counts("stage: stride", (self.stride,))
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UsageError(f"stage: kernels = {self.kernels}; odd sizes only")


@dataclass(frozen=True)
class MobileNetSpace(Space):
    """A space of inverted-residual networks; resolution in pixels, square inputs.

    `head_expand` makes the head that many times as wide as the last stage, in place of
    `head_widths`. `feature_widths` are those of a layer between pooling and classifier, () for
    none. `tied` gives all blocks of a stage one expand ratio and one kernel (AttentiveNAS), in
    place of one each. `project` gives a stage's first block a shortcut too: the input itself where
    stride and width stay, else pooled and projected (AttentiveNAS). `norm_group` is the channels a group of group normalization, 0 for batch
    normalization.
    """

    classes: int
    in_channels: int
    resolutions: tuple[int, ...]
    stem_widths: tuple[int, ...]
    stages: tuple[Stage, ...]
    head_widths: tuple[int, ...] = ()
    head_expand: int = 0
    feature_widths: tuple[int, ...] = ()
    stem_stride: int = 1
    stem_act: str = "hswish"
    head_act: str = "hswish"
    divisor: int = 8
    tied: bool = False
    project: bool = False
    norm_group: int = 0

    family = "mobilenet"

    def __post_init__(self) -> None:
        for field in ("resolutions", "stem_widths", "head_widths", "feature_widths"):
            check_counts(f"space: {field}", getattr(self, field))
        for field in ("in_channels", "stem_stride", "divisor"):
            check_counts(f"space: {field}", (getattr(self, field),))
        check_counts("space: classes", (self.classes,), least=2)
        for field in ("head_expand", "norm_group"):
            check_counts(f"space: {field}", (getattr(self, field),), least=0)
        if not self.stages or not all(isinstance(stage, Stage) for stage in self.stages):
            raise UsageError("space: stages must be at least one stage")
        for field in ("stem_act", "head_act"):
            if getattr(self, field) not in ACTIVATIONS:
                raise UsageError(
                    f"space: {field} = {getattr(self, field)!r}; allowed: {ACTIVATIONS}"
                )
        for field in ("tied", "project"):
            check_flag(f"space: {field}", getattr(self, field))
        if bool(self.head_widths) == bool(self.head_expand):
            raise UsageError(
                f"space: head_widths = {self.head_widths} and head_expand = {self.head_expand}; "
                "give exactly one of them"
            )
        _ = self.genes  # an impossible option list is an error here, not at first use
        self._check_sizes()

    def _check_sizes(self) -> None:
        stride = self.stem_stride * math.prod(stage.stride for stage in self.stages)
        if self.resolutions[0] < stride:
            raise UsageError(
                f"space: resolutions = {self.resolutions}; at least {stride}, the product of all "
                "strides, or a map would be less than one pixel"
            )
        for resolution in self.resolutions if self.project else ():
            hw = _strided(resolution, self.stem_stride)
            for stage in self.stages:
                if hw % stage.stride:
                    raise UsageError(
                        f"space: project pools a map of {hw} pixels (resolution {resolution}) by a "
                        f"stride of {stage.stride}, which must divide it"
                    )
                hw //= stage.stride
        group = self.norm_group
        if not group:
            return
        normed = [*self.stem_widths, *self.head_widths, self.divisor]
        normed += [width for stage in self.stages for width in stage.widths]
        if wrong := [width for width in normed if width % group]:
            raise UsageError(
                f"space: norm_group = {group}; stem_widths, head_widths, every stage's widths and "
                f"divisor must be multiples of it, and {wrong[0]} is not"
            )

    @property
    def rolls(self) -> bool:
        """With batch normalization, whose channels have no order."""
        return self.norm_group == 0

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Resolution, widths and depth per stage, expand ratio and kernel per block or stage."""
        found = [
            Gene("resolution", self.resolutions),
            Gene("stem.width", self.stem_widths, role="width"),
        ]
        for i, stage in enumerate(self.stages):
            found += [
                Gene(f"s{i}.width", stage.widths, role="width"),
                Gene(f"s{i}.depth", stage.depths),
            ]
            for j in range(1 if self.tied else stage.depths[-1]):
                needs = block_needs(f"s{i}.depth", stage.depths, j)
                found.append(Gene(self._expand(i, j), stage.expands, needs))
                found.append(Gene(self._kernel(i, j), stage.kernels, needs))
        if self.head_widths:
            found.append(Gene("head.width", self.head_widths, role="width"))
        if self.feature_widths:
            found.append(Gene("feature.width", self.feature_widths, role="width"))
        return tuple(found)

    def _expand(self, stage: int, block: int) -> str:
        return f"s{stage}.expand" if self.tied else f"s{stage}.b{block}.expand"

    def _kernel(self, stage: int, block: int) -> str:
        return f"s{stage}.kernel" if self.tied else f"s{stage}.b{block}.kernel"

    def head_width(self, arch: Arch) -> int:
        """Channels of the head's 1×1 convolution."""
        if self.head_widths:
            return arch.count("head.width")
        last = arch.count(f"s{len(self.stages) - 1}.width")
        return make_divisible(last * self.head_expand, self.divisor)

    def blocks(self, arch: Arch) -> list[Block]:
        """Every block that the architecture uses, with its sizes."""
        found = []
        axis, width = "stem.out", arch.count("stem.width")
        hw = _strided(arch.count("resolution"), self.stem_stride)
        for i, stage in enumerate(self.stages):
            for j in range(arch.count(f"s{i}.depth")):
                stride = stage.stride if j == 0 else 1
                mid = make_divisible(width * arch[self._expand(i, j)], self.divisor)
                expand = stage.expands != (1,)
                found.append(
                    Block(
                        name=f"stages.{i}.{j}",
                        axis_in=axis,
                        axis_out=f"s{i}.out",
                        width_in=width,
                        width_mid=mid if expand else width,
                        width_out=arch.count(f"s{i}.width"),
                        kernel=arch.count(self._kernel(i, j)),
                        stride=stride,
                        hw_in=hw,
                        hw_out=_strided(hw, stride),
                        act=stage.act,
                        se=make_divisible(mid // SE_REDUCTION, self.divisor) if stage.se else 0,
                        expand=expand,
                        shortcut=self._shortcut(i, j, same=width == arch[f"s{i}.width"]),
                    )
                )
                axis, width, hw = found[-1].axis_out, found[-1].width_out, found[-1].hw_out
        return found

    def _shortcut(self, stage: int, block: int, *, same: bool) -> Shortcut:
        if block > 0:
            return "identity"
        if not self.project:
            return "none"
        before = self.stages[stage - 1].widths if stage else self.stem_widths
        if self.stages[stage].stride > 1 or not same:
            return "project"
        # Were the options one and the same width, no subnet would ever project.
        return "identity" if before == self.stages[stage].widths and len(before) == 1 else "spare"

    def select(self, arch: Arch) -> Selection:
        """Prefixes of channels, centres of kernels; a shallower stage leaves its last blocks."""
        index: dict[str, Index] = {
            "stem.out": prefix(arch.count("stem.width")),
            "head.out": prefix(self.head_width(arch)),
        }
        if self.feature_widths:
            index["feature.out"] = prefix(arch.count("feature.width"))
        used = set()
        for block in self.blocks(arch):
            stage = self.stages[int(block.name.split(".")[1])]
            used.add(block.name)
            index[block.axis_out] = prefix(block.width_out)
            if block.expand:
                index[f"{block.name}.mid"] = prefix(block.width_mid)
            index[f"{block.name}.k"] = centred(block.kernel, stage.kernels[-1])
            if block.se:
                index[f"{block.name}.se"] = prefix(block.se)
        absent = {
            f"stages.{i}.{j}"
            for i, stage in enumerate(self.stages)
            for j in range(stage.depths[-1])
        }
        return Selection(index, frozenset(absent - used))

    def build(self, arch: Arch) -> nn.Module:
        """Modules `stem`, `stages.<i>.<j>` and `head`."""
        make = Layers(self.select(arch), norm_group=self.norm_group)
        blocks = self.blocks(arch)
        stages = nn.ModuleList()
        for i in range(len(self.stages)):
            mine = [block for block in blocks if block.name.startswith(f"stages.{i}.")]
            stages.append(nn.Sequential(*(InvertedResidual(block, make) for block in mine)))
        return MobileNet(
            stem=make.conv_norm_act(
                "stem.out", self.in_channels, kernel=3, stride=self.stem_stride, act=self.stem_act
            ),
            stages=stages,
            head=Head(
                blocks[-1].axis_out,
                "feature.out" if self.feature_widths else "",
                self.classes,
                self.head_act,
                make,
            ),
        )

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        """Stem, each block's convolutions, head and classifier."""
        blocks = self.blocks(arch)
        r, stem = arch.count("resolution"), arch.count("stem.width")
        first = LayerPlan(
            name="stem", kind="conv", out_channels=stem, in_per_group=self.in_channels,
            kernel_area=9, in_elements=self.in_channels * r * r,
            out_elements=stem * blocks[0].hw_in**2, norm=True, act=self.stem_act,
        )  # fmt: skip
        plans = [first]
        for block in blocks:
            plans += block_layers(block)
        return (*plans, *self._head_layers(arch, blocks[-1]))

    def _head_layers(self, arch: Arch, last: Block) -> list[LayerPlan]:
        head, area = self.head_width(arch), last.hw_out**2
        plans = [
            LayerPlan("head.expand", "conv", head, last.width_out, 1, last.width_out * area,
                      head * area, norm=True, act=self.head_act),
            LayerPlan("head.pool", "pool", head, 0, 0, head * area, head),
        ]  # fmt: skip
        width = head
        if self.feature_widths:
            width = arch.count("feature.width")
            plans.append(
                LayerPlan("head.feature", "conv", width, head, 1, head, width, act=self.head_act)
            )
        plans.append(
            LayerPlan("head.classifier", "linear", self.classes, width, 1, width, self.classes,
                      bias=True)
        )  # fmt: skip
        return plans

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """(channels, resolution, resolution)."""
        return (self.in_channels, arch.count("resolution"), arch.count("resolution"))

    def describe(self, arch: Arch) -> str:
        """Resolution, then per stage width×depth with expand and kernel of each block."""
        parts = [f"r{arch['resolution']} {arch['stem.width']}"]
        for i in range(len(self.stages)):
            blocks = " ".join(
                f"e{arch[self._expand(i, j)]}k{arch[self._kernel(i, j)]}"
                for j in range(arch.count(f"s{i}.depth"))
            )
            parts.append(f"{arch[f's{i}.width']}[{blocks}]")
        return " ".join([*parts, str(self.head_width(arch))])

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names an unknown or missing field."""
        return read_space(cls, fields, lists={"stages": Stage})


def _strided(hw: int, stride: int) -> int:
    return (hw - 1) // stride + 1
