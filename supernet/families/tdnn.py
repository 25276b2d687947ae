"""Temporal convolutional networks for sensor windows and log-mel audio (EfficientTDNN).

Wang et al. 2021, "EfficientTDNN: efficient architecture search for speaker recognition", after
ECAPA-TDNN (Desplanques et al. 2020): a stem along time, blocks of dilated convolutions with
squeeze-and-excitation, the outputs of all blocks side by side, a 1×1 aggregation, attentive
statistics pooling (Okabe et al. 2018), an embedding, a classifier. Elastic: depth (the last blocks
are left out), kernel, width of each block, width of aggregation and embedding. The smaller kernel is
the centre of the larger one, channels are prefixes: behind a concatenation they are the first
channels of each part, which is an index on one axis.

Deviations. Each block's width is its own, so every shortcut is a 1×1 convolution. Attention sees the
features only, not their mean and deviation beside them. No AAM-softmax. And for 8 bits:

- Attention's weights are a hard sigmoid, divided by their mean, in place of a softmax over time.
  TFLite's int8 softmax has steps of 1/256, about as much as one of 200 time steps weighs.
- The deviation is half the mean absolute one (what lies above the mean), in place of the standard
  deviation: a square in 8 bits loses half of them.
- 1 / x is the square of x's inverse root: older TFLite runtimes have no int8 division.

On GeoTec windows of unseen people, both are as accurate as the original within the noise of seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Self

from torch import nn

from ..axes import Index, Selection, centred, indices, prefix
from ..cost import LayerPlan
from ..errors import UsageError
from ..space import Arch, Gene, Space, block_needs
from ..structure import Stretch, Structure
from .fields import check_counts, check_multiples, read_space
from .layers import Layers
from .mobilenet_blocks import make_divisible
from .tdnn_blocks import (
    AttentiveStatistics,
    Block,
    HeadShape,
    SERes2,
    Tdnn,
    block_layers,
    head_layers,
)
from .tdnn_options import BlockOptions

SE_REDUCTION = 4
ATTENTION_REDUCTION = 4


@dataclass(frozen=True)
class TdnnSpace(Space):
    """A space of temporal networks on windows of `steps` steps with `in_channels` channels each.

    `depths` say how many of the `blocks` are used. `embed_widths` are those of a layer between
    pooling and classifier, () for none. Widths inside squeeze-and-excitation and attention come in
    multiples of `divisor`. `norm_group` = 0 is batch normalization, else group normalization over
    so many channels a group.
    """

    classes: int
    in_channels: int
    steps: int
    stem_widths: tuple[int, ...]
    blocks: tuple[BlockOptions, ...]
    depths: tuple[int, ...]
    aggregate_widths: tuple[int, ...]
    embed_widths: tuple[int, ...] = ()
    stem_kernel: int = 5
    stem_stride: int = 1
    divisor: int = 8
    norm_group: int = 0

    family = "tdnn"

    def __post_init__(self) -> None:
        check_counts("space: classes", (self.classes,), least=2)
        for field in ("in_channels", "steps", "stem_kernel", "stem_stride", "divisor"):
            check_counts(f"space: {field}", (getattr(self, field),))
        check_counts("space: norm_group", (self.norm_group,), least=0)
        for field in ("stem_widths", "depths", "aggregate_widths", "embed_widths"):
            check_counts(f"space: {field}", getattr(self, field))
        if not self.blocks or not all(isinstance(block, BlockOptions) for block in self.blocks):
            raise UsageError("space: blocks must be at least one block")
        self._check_sizes()
        _ = self.genes  # an impossible option list is an error here, not at first use

    def _check_sizes(self) -> None:
        if self.stem_kernel % 2 == 0:
            raise UsageError(f"space: stem_kernel = {self.stem_kernel}; odd sizes only")
        if self.steps < self.stem_stride:
            raise UsageError(
                f"space: steps = {self.steps}; at least stem_stride = {self.stem_stride} expected"
            )
        if self.depths[-1:] != (len(self.blocks),):
            raise UsageError(
                f"space: depths = {self.depths}; the last one must be {len(self.blocks)}, the "
                "number of blocks"
            )
        group = self.norm_group
        if not group:
            return
        for field in ("stem_widths", "aggregate_widths", "embed_widths"):
            check_multiples(f"space: {field}", getattr(self, field), group, "norm_group")
        check_multiples("space: divisor", (self.divisor,), group, "norm_group")
        for j, block in enumerate(self.blocks):
            why = f"scale {block.scale} × norm_group"
            check_multiples(f"space: blocks[{j}].widths", block.widths, block.scale * group, why)

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Stem width, depth, width and kernel per block, width of aggregation and embedding."""
        found = [Gene("stem.width", self.stem_widths, role="width"), Gene("depth", self.depths)]
        for j, block in enumerate(self.blocks):
            needs = block_needs("depth", self.depths, j)
            found.append(Gene(f"b{j}.width", block.widths, needs, role="width"))
            found.append(Gene(f"b{j}.kernel", block.kernels, needs))
        found.append(Gene("aggregate.width", self.aggregate_widths, role="width"))
        if self.embed_widths:
            found.append(Gene("embed.width", self.embed_widths, role="width"))
        return tuple(found)

    def used(self, arch: Arch) -> list[Block]:
        """Every block that the architecture uses, with its sizes."""
        steps, axis, width = self._steps, "stem.out", arch.count("stem.width")
        found: list[Block] = []
        for j, options in enumerate(self.blocks[: arch.count("depth")]):
            own = arch.count(f"b{j}.width")
            found.append(
                Block(
                    name=f"blocks.{j}",
                    axis_in=axis,
                    width_in=width,
                    width=own,
                    kernel=arch.count(f"b{j}.kernel"),
                    dilation=options.dilation,
                    scale=options.scale,
                    squeezed=make_divisible(own // SE_REDUCTION, self.divisor) if options.se else 0,
                    steps=steps,
                    held=sum(block.elements for block in found[:-1]),
                )
            )
            axis, width = f"blocks.{j}.out", own
        return found

    @property
    def _steps(self) -> int:
        """Steps behind the stem."""
        return (self.steps - 1) // self.stem_stride + 1

    def _attention(self, arch: Arch) -> int:
        return make_divisible(arch.count("aggregate.width") // ATTENTION_REDUCTION, self.divisor)

    def select(self, arch: Arch) -> Selection:
        """Prefixes of channels, of each part behind a concatenation; centres of kernels."""
        aggregate = arch.count("aggregate.width")
        index: dict[str, Index] = {
            "stem.out": prefix(arch.count("stem.width")),
            "aggregate.out": prefix(aggregate),
            "attention": prefix(self._attention(arch)),
            "statistics": _first_of_each([aggregate] * 2, [self.aggregate_widths[-1]] * 2),
        }
        if self.embed_widths:
            index["embed.out"] = prefix(arch.count("embed.width"))
        used = self.used(arch)
        for block, options in zip(used, self.blocks, strict=False):
            name, parts = block.name, block.scale
            largest = options.widths[-1] // parts
            index[f"{name}.mid"] = _first_of_each([block.group] * parts, [largest] * parts)
            index[f"{name}.group"] = prefix(block.group)
            index[f"{name}.k"] = centred(block.kernel, options.kernels[-1])
            index[f"{name}.out"] = prefix(block.width)
            if block.squeezed:
                index[f"{name}.se"] = prefix(block.squeezed)
        widths, largest_widths = [b.width for b in used], [b.widths[-1] for b in self.blocks]
        index["concat"] = _first_of_each(widths, largest_widths)
        absent = range(len(used), len(self.blocks))
        return Selection(index, frozenset(f"blocks.{j}" for j in absent))

    def structure(self) -> Structure:
        """Of which channels the concatenations of groups, blocks and statistics are made."""
        aggregate = Stretch("aggregate.out", self.aggregate_widths[-1])
        outputs = [
            Stretch(f"blocks.{j}.out", block.widths[-1]) for j, block in enumerate(self.blocks)
        ]
        groups = {
            f"blocks.{j}.mid": (Stretch(f"blocks.{j}.group", block.widths[-1] // block.scale),)
            * block.scale
            for j, block in enumerate(self.blocks)
        }
        return Structure({**groups, "concat": tuple(outputs), "statistics": (aggregate,) * 2})

    def build(self, arch: Arch) -> nn.Module:
        """Modules `stem`, `blocks.<j>`, `aggregate` and `head` (`pool`, `embed`, `classifier`)."""
        make = Layers(self.select(arch), dims=1, norm_group=self.norm_group)
        head = nn.Sequential()
        head.add_module("pool", AttentiveStatistics(make))
        pooled = "statistics"
        if self.embed_widths:
            head.add_module("embed", make.linear_norm_act("embed.out", pooled))
            pooled = "embed.out"
        head.add_module("classifier", make.linear(self.classes, pooled))
        return Tdnn(
            make.conv_norm_act(
                "stem.out", self.in_channels, kernel=self.stem_kernel, stride=self.stem_stride
            ),
            [SERes2(block, make) for block in self.used(arch)],
            make.conv_norm_act("aggregate.out", "concat"),
            head,
        )

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        """Stem, each block's convolutions, concatenation, aggregation, pooling, classifier."""
        blocks, stem, steps = self.used(arch), arch.count("stem.width"), self._steps
        plans = [
            LayerPlan("stem", "conv", stem, self.in_channels, self.stem_kernel,
                      self.in_channels * self.steps, stem * steps, norm=True, act="relu"),
        ]  # fmt: skip
        for block in blocks:
            plans += block_layers(block)
        shape = HeadShape(
            joined=tuple(block.width for block in blocks),
            aggregate=arch.count("aggregate.width"),
            attention=self._attention(arch),
            embed=arch.count("embed.width") if self.embed_widths else 0,
            classes=self.classes,
            steps=steps,
        )
        return (*plans, *head_layers(shape))

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """(channels, steps)."""
        return (self.in_channels, self.steps)

    def describe(self, arch: Arch) -> str:
        """Stem width, each block's width and kernel, then the other widths."""
        blocks = " ".join(f"{block.width}k{block.kernel}" for block in self.used(arch))
        embed = f" {arch['embed.width']}" if self.embed_widths else ""
        return f"{arch['stem.width']}[{blocks}]{arch['aggregate.width']}{embed}"

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names an unknown or missing field."""
        return read_space(cls, fields, lists={"blocks": BlockOptions})


def _first_of_each(widths: list[int], largest: list[int]) -> Index:
    """The first channels of each part of a concatenation whose parts are `largest` wide at most."""
    starts = accumulate(largest, initial=0)
    return indices([start + c for start, width in zip(starts, widths, strict=False)
                    for c in range(width)])  # fmt: skip
