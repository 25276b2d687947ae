"""ResNets with elastic depth, width, expand ratio and resolution, and slimmable ones.

The once-for-all ResNet-50 space (Cai et al. 2020): a deep stem, four stages of bottlenecks, average
pooling, a classifier. SuperFedNAS's form for 32×32 images (Khare et al. 2024): one convolution as
stem, basic blocks. Slimmable networks (Yu et al. 2019; HeteroFL, Diao et al. 2021; FjORD, Horváth
et al. 2021) vary one ratio of all widths. Channels are prefixes, depth drops a stage's last blocks.

Deviations: max pooling has no padding on its near sides (as in He et al.'s own files);
SuperFedNAS's ReLU before the addition is left out; HeteroFL normalizes before each convolution, here
after it, so that it can be folded. MACs and, HeteroFL's apart, parameters are the published ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from torch import nn

from ..axes import Index, Selection, prefix
from ..cost import LayerPlan
from ..errors import UsageError
from ..space import Arch, Gene, Space, block_needs
from .fields import check_counts, read_space
from .layers import Layers
from .mobilenet_blocks import make_divisible
from .resnet_blocks import (
    Block,
    Residual,
    ResNet,
    StemShape,
    block_layers,
    head_layers,
    make_stem,
    stem_layers,
)
from .resnet_options import Stage, Stem, check_ratios


@dataclass(frozen=True)
class ResNetSpace(Space):
    """A space of residual networks; resolution in pixels, square inputs.

    `ratios` multiply every width of stem and stages, all by the same one (the slimmable case).
    Channels come in multiples of `divisor`. `norm_group` = 0 is batch normalization, else group
    normalization over so many channels a group.
    """

    classes: int
    in_channels: int
    resolutions: tuple[int, ...]
    stem: Stem
    stages: tuple[Stage, ...]
    ratios: tuple[float, ...] = (1,)
    norm_group: int = 0
    divisor: int = 8

    family = "resnet"

    def __post_init__(self) -> None:
        check_counts("space: classes", (self.classes,), least=2)
        for field in ("in_channels", "divisor"):
            check_counts(f"space: {field}", (getattr(self, field),))
        check_counts("space: norm_group", (self.norm_group,), least=0)
        check_counts("space: resolutions", self.resolutions)
        check_ratios("space: ratios", self.ratios, most=1)
        if self.ratios[-1:] != (1,):
            raise UsageError(f"space: ratios = {self.ratios}; the last one must be 1")
        if not isinstance(self.stem, Stem):
            raise UsageError(f"space: stem = {self.stem!r}; a table of its options expected")
        if not self.stages or not all(isinstance(stage, Stage) for stage in self.stages):
            raise UsageError("space: stages must be at least one stage")
        _ = self.genes  # an impossible option list is an error here, not at first use
        self._check_sizes()

    def _check_sizes(self) -> None:
        widths = {"stem: widths": self.stem.widths, "stem: mids": self.stem.mids}
        widths |= {f"stage {i}: widths": stage.widths for i, stage in enumerate(self.stages)}
        for where, options in widths.items():
            if wrong := [width for width in options if width % self.divisor]:
                raise UsageError(
                    f"space: {where} = {options}; {wrong[0]} is no multiple of divisor = "
                    f"{self.divisor}"
                )
        if self.norm_group and self.divisor % self.norm_group:
            raise UsageError(
                f"space: norm_group = {self.norm_group}; allowed: 0 and what divides divisor = "
                f"{self.divisor}, of which every width is a multiple"
            )
        strides = [self.stem.stride, 2 if self.stem.pool else 1]
        total = math.prod(strides + [stage.stride for stage in self.stages])
        if self.resolutions[0] < total:
            raise UsageError(
                f"space: resolutions = {self.resolutions}; at least {total} expected, the product "
                "of all strides"
            )

    @property
    def rolls(self) -> bool:
        """With batch normalization, whose channels have no order."""
        return self.norm_group == 0

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Resolution, ratio, the stem's own; width and depth a stage, expand ratio a block."""
        found = [Gene("resolution", self.resolutions)]
        if len(self.ratios) > 1:
            found.append(Gene("ratio", self.ratios, role="width"))
        if self.stem.mids:
            found.append(Gene("stem.mid", self.stem.mids, role="width"))
            found.append(Gene("stem.repeat", self.stem.repeats))
        if self.stem.widths:
            found.append(Gene("stem.width", self.stem.widths, role="width"))
        for i, stage in enumerate(self.stages):
            found.append(Gene(f"s{i}.width", stage.widths, role="width"))
            found.append(Gene(f"s{i}.depth", stage.depths))
            for j in range(stage.depths[-1]):
                needs = block_needs(f"s{i}.depth", stage.depths, j)
                found.append(Gene(f"s{i}.b{j}.expand", stage.expands, needs))
        return tuple(found)

    def stem_shape(self, arch: Arch) -> StemShape:
        """The stem with its sizes."""
        own = bool(self.stem.widths)
        return StemShape(
            axis="stem.out" if own else "s0.out",
            in_channels=self.in_channels,
            width_mid=self._width(arch, "stem.mid") if self.stem.mids else 0,
            repeats=arch.count("stem.repeat") if self.stem.mids else 0,
            width=self._width(arch, "stem.width" if own else "s0.width"),
            resolution=arch.count("resolution"),
            stride=self.stem.stride,
            pool=self.stem.pool,
        )

    def _width(self, arch: Arch, gene: str) -> int:
        return make_divisible(arch[gene] * arch.get("ratio", 1), self.divisor)

    def blocks(self, arch: Arch) -> list[Block]:
        """Every block that the architecture uses, with its sizes."""
        before = self.stem_shape(arch)
        axis, width, hw = before.axis, before.width, before.hw_out
        found = []
        for i, stage in enumerate(self.stages):
            out = self._width(arch, f"s{i}.width")
            for j in range(arch.count(f"s{i}.depth")):
                # Rounded twice, as once-for-all does: to a channel, then to the divisor.
                mid = make_divisible(round(out * arch[f"s{i}.b{j}.expand"]), self.divisor)
                found.append(
                    Block(
                        name=f"stages.{i}.{j}",
                        kind=stage.block,
                        axis_in=axis,
                        axis_out=f"s{i}.out",
                        width_in=width,
                        width_mid=mid,
                        width_out=out,
                        stride=stage.stride if j == 0 else 1,
                        hw_in=hw,
                    )
                )
                axis, width, hw = found[-1].axis_out, out, found[-1].hw_out
        return found

    def select(self, arch: Arch) -> Selection:
        """Prefixes of channels; a shallower stage or stem leaves its last blocks out."""
        shape, blocks = self.stem_shape(arch), self.blocks(arch)
        index: dict[str, Index] = {shape.axis: prefix(shape.width)}
        if shape.width_mid:
            index["stem.mid"] = prefix(shape.width_mid)
        for block in blocks:
            index[block.axis_out] = prefix(block.width_out)
            index |= dict.fromkeys(block.mid_axes, prefix(block.width_mid))
        every = {f"stem.body.{n}" for n in range(max(self.stem.repeats, default=0))}
        for i, stage in enumerate(self.stages):
            every |= {f"stages.{i}.{j}" for j in range(stage.depths[-1])}
        used = {f"stem.body.{n}" for n in range(shape.repeats)} | {block.name for block in blocks}
        return Selection(index, frozenset(every - used))

    def build(self, arch: Arch) -> nn.Module:
        """Modules `stem`, `stages.<i>.<j>`, `classifier`."""
        make = Layers(self.select(arch), norm_group=self.norm_group)
        blocks = self.blocks(arch)
        stages = nn.ModuleList()
        for i in range(len(self.stages)):
            mine = [block for block in blocks if block.name.startswith(f"stages.{i}.")]
            stages.append(nn.Sequential(*(Residual(block, make) for block in mine)))
        classifier = make.linear(self.classes, blocks[-1].axis_out)
        return ResNet(make_stem(self.stem_shape(arch), make), stages, classifier)

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        """Stem, each block's branch and shortcut, mean, classifier."""
        plans, blocks = stem_layers(self.stem_shape(arch)), self.blocks(arch)
        for block in blocks:
            plans += block_layers(block)
        return (*plans, *head_layers(blocks[-1].width_out, blocks[-1].hw_out, self.classes))

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """(channels, resolution, resolution)."""
        return (self.in_channels, arch.count("resolution"), arch.count("resolution"))

    def describe(self, arch: Arch) -> str:
        """Resolution and stem, then per stage its width and the expand ratio of each block."""
        shape = self.stem_shape(arch)
        deep = f"{shape.width_mid}*{shape.repeats + 1}-" if shape.width_mid else ""
        parts = [f"r{shape.resolution} {deep}{shape.width}"]
        for i in range(len(self.stages)):
            depth = arch.count(f"s{i}.depth")
            expands = " ".join(f"e{arch[f's{i}.b{j}.expand']:g}" for j in range(depth))
            parts.append(f"{self._width(arch, f's{i}.width')}[{expands}]")
        return " ".join(parts)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names an unknown or missing field."""
        return read_space(cls, fields, lists={"stages": Stage}, tables={"stem": Stem})
