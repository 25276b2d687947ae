"""Blocks of temporal networks: their geometry, their modules, their layers' sizes.

A sequence is an image of one row: (B, C, 1, T).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cost import LayerPlan
from .layers import Layers

Plans = list[LayerPlan]
LEAST_WEIGHT = 1 / 16
"""Of a step in the statistics: their sum must stay away from 0, in 8 bits too."""


@dataclass(frozen=True, slots=True)
class Block:
    """Geometry of one block of one architecture.

    `squeezed` is the width inside squeeze-and-excitation, 0 for none; `held` counts the elements of
    earlier blocks' outputs, apart from this one's input, which wait to be concatenated.
    """

    name: str
    axis_in: str
    width_in: int
    width: int
    kernel: int
    dilation: int
    scale: int
    squeezed: int
    steps: int
    held: int

    @property
    def group(self) -> int:
        """Channels of each of the `scale` groups."""
        return self.width // self.scale

    @property
    def elements(self) -> int:
        """Of the block's output."""
        return self.width * self.steps


class Res2(nn.Module):
    """Dilated convolutions over groups of channels, each adding the one before (Gao et al. 2019).

    Group 0 passes. Group 1 is convolved, group i > 1 after group i - 1's result was added to it.
    """

    def __init__(self, convs: Sequence[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x_bcht: Tensor) -> Tensor:
        """(B, C, 1, T) to the same shape."""
        parts = x_bcht.chunk(len(self.convs) + 1, dim=1)
        results = [parts[0]]
        for i, conv in enumerate(self.convs, 1):
            results.append(conv(parts[i] if i == 1 else parts[i] + results[-1]))
        return torch.cat(results, dim=1)


class SERes2(nn.Module):
    """1×1, dilated convolution over all channels or in Res2 groups, 1×1, squeeze-and-excitation.

    The shortcut is a 1×1 convolution: its channels are other ones than the block's.
    """

    def __init__(self, block: Block, make: Layers) -> None:
        super().__init__()
        name, out = block.name, f"{block.name}.out"
        mid, group = f"{name}.mid", f"{name}.group"
        convs = [
            make.conv_norm_act(group, group, kernel=f"{name}.k", dilation=block.dilation)
            for _ in range(max(1, block.scale - 1))
        ]
        self.enter = make.conv_norm_act(mid, block.axis_in)
        self.dilated = convs[0] if block.scale == 1 else Res2(convs)
        self.leave = make.conv_norm_act(out, mid, act="")
        self.se = make.squeeze_excite(out, f"{name}.se") if block.squeezed else nn.Identity()
        self.shortcut = make.conv_norm_act(out, block.axis_in, act="")
        self.act = nn.ReLU(inplace=True)

    def forward(self, x_bcht: Tensor) -> Tensor:
        """(B, in, 1, T) to (B, out, 1, T)."""
        y_bcht = self.se(self.leave(self.dilated(self.enter(x_bcht))))
        result_bcht: Tensor = self.act(y_bcht + self.shortcut(x_bcht))
        return result_bcht


def block_layers(block: Block) -> Plans:
    """The branch, then the shortcut, while the branch's output waits."""
    name, width, elements = block.name, block.width, block.elements
    source = block.width_in * block.steps
    waiting = block.held + source
    entry = (width, block.width_in, 1)
    plans = [_conv(f"{name}.enter", entry, (source, elements), held=block.held, act="relu")]
    plans += _dilated_layers(block, waiting)
    plans.append(_conv(f"{name}.leave", (width, width, 1), (elements, elements), held=waiting))
    if block.squeezed:
        squeezed, scaled = block.squeezed, waiting + elements
        plans += [
            LayerPlan(f"{name}.se.pool", "pool", width, 0, 0, elements, width, held=waiting,
                      reread=True),
            LayerPlan(f"{name}.se.reduce", "conv", squeezed, width, 1, width, squeezed, bias=True,
                      act="relu", held=scaled),
            # Of the gate autograd keeps what it is computed from and what it multiplies with.
            LayerPlan(f"{name}.se.expand", "conv", width, squeezed, 1, squeezed, width, bias=True,
                      act="hsigmoid", held=scaled, kept=squeezed + 2 * width),
        ]  # fmt: skip
    # Its input is the branch's, which autograd keeps once.
    held = block.held + elements
    plans.append(_conv(f"{name}.shortcut", entry, (source, elements), held=held, kept=elements))
    return plans


def _dilated_layers(block: Block, waiting: int) -> Plans:
    name, elements, group = f"{block.name}.dilated", block.elements, block.group
    shape, part = (group, group, block.kernel), group * block.steps
    if block.scale == 1:
        return [_conv(name, shape, (elements, elements), held=waiting, act="relu")]
    plans = []
    for i in range(block.scale - 1):
        # The parts share one tensor; a sum is written into its own part, but autograd keeps both.
        held = waiting + elements - part + i * part
        kept = part + (part if i else elements)
        plans.append(
            _conv(f"{name}.convs.{i}", shape, (part, part), held=held, act="relu", kept=kept)
        )
    convolved = (block.scale - 1) * part
    plans.append(
        LayerPlan(f"{name}.join", "pool", block.width, 0, 0, elements + convolved, elements,
                  held=waiting, kept=convolved)
    )  # fmt: skip
    return plans


def _conv(
    name: str,
    shape: tuple[int, int, int],
    elements: tuple[int, int],
    *,
    held: int = 0,
    act: str = "",
    kept: int | None = None,
) -> LayerPlan:
    """A convolution and its normalization.

    `shape` is channels out, channels in, kernel; `elements` those of its input and its output.
    """
    return LayerPlan(name, "conv", *shape, *elements, norm=True, act=act, held=held, kept=kept)


class AttentiveStatistics(nn.Module):
    """Weighted mean and deviation over time; the weights are attention's, per channel and step."""

    def __init__(self, make: Layers) -> None:
        super().__init__()
        self.reduce = make.conv_norm_act("attention", "aggregate.out")
        self.expand = make.conv("aggregate.out", "attention", bias=True)
        self.gate, self.act = nn.Hardsigmoid(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x_bcht: Tensor) -> Tensor:
        """(B, C, 1, T) to (B, 2C): all means, then all deviations."""
        weight_bcht = self.gate(self.expand(self.reduce(x_bcht))) + LEAST_WEIGHT
        root_bc11 = weight_bcht.mean(3, keepdim=True).rsqrt()
        share_bc11 = root_bc11 * root_bc11
        mean_bc11 = (x_bcht * weight_bcht).mean(3, keepdim=True) * share_bc11
        # All that lies above the mean weighs as much as all that lies below.
        above_bcht = self.act(x_bcht - mean_bc11)
        deviation_bc11 = (above_bcht * weight_bcht).mean(3, keepdim=True) * share_bc11
        return torch.cat([mean_bc11, deviation_bc11], dim=1).flatten(1)


class Tdnn(nn.Module):
    """Stem, blocks, aggregation of all their outputs, and a head that pools and classifies."""

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], aggregate: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.stem, self.blocks = stem, nn.ModuleList(blocks)
        self.aggregate, self.head = aggregate, head

    def forward(self, x_bct: Tensor) -> Tensor:
        """Sequences (B, C, T) to logits (B, classes)."""
        x_bcht, outputs = self.stem(x_bct.unsqueeze(2)), []
        for block in self.blocks:
            x_bcht = block(x_bcht)
            outputs.append(x_bcht)
        logits_bc: Tensor = self.head(self.aggregate(torch.cat(outputs, dim=1)))
        return logits_bc


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Sizes of what follows the blocks; `joined` are the widths of their outputs."""

    joined: tuple[int, ...]
    aggregate: int
    attention: int
    embed: int
    classes: int
    steps: int


def head_layers(shape: HeadShape) -> Plans:
    """Concatenation, aggregation, attention, statistics, embedding, classifier."""
    steps, width, attention = shape.steps, shape.aggregate, shape.attention
    joined, elements = sum(shape.joined) * steps, width * steps
    plans = [
        # Autograd keeps the last output for its ReLU; the others are inputs of the next block.
        LayerPlan("join", "pool", sum(shape.joined), 0, 0, joined, joined,
                  kept=shape.joined[-1] * steps),
        _conv("aggregate", (width, sum(shape.joined), 1), (joined, elements), act="relu"),
        _conv("head.pool.reduce", (attention, width, 1), (elements, attention * steps), act="relu"),
        LayerPlan("head.pool.expand", "conv", width, attention, 1, attention * steps, elements,
                  bias=True, act="hsigmoid", held=elements),
        # Autograd keeps the weights, what lies above the mean, and four vectors.
        LayerPlan("head.pool.weight", "pool", width, 0, 0, elements, width, held=elements,
                  kept=elements + 2 * width),
        LayerPlan("head.pool.mean", "pool", width, 0, 0, elements, width,
                  held=2 * elements + width, kept=width),
        LayerPlan("head.pool.deviation", "pool", width, 0, 0, elements, width,
                  held=elements + 2 * width, kept=elements + width),
    ]  # fmt: skip
    inputs = 2 * width
    if shape.embed:
        plans.append(
            LayerPlan("head.embed", "linear", shape.embed, inputs, 1, inputs, shape.embed,
                      norm=True, act="relu")
        )  # fmt: skip
        inputs = shape.embed
    plans.append(
        LayerPlan("head.classifier", "linear", shape.classes, inputs, 1, inputs, shape.classes,
                  bias=True)
    )  # fmt: skip
    return plans
