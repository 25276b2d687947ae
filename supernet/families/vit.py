"""Vision transformers with elastic embedding, depth, heads and MLP width, in one or more stages.

One stage with relative positions is the space of AutoFormer (Chen et al. 2021) and PreNAS (Wang et
al. 2023): weights are entangled by prefixes of embedding and MLP width, and by whole heads, so that
the width of queries, keys and values follows the number of heads; depth drops the last blocks.
Several stages with a residual spatial reduction between them, and halves of blocks that may be
skipped, are the space of ViT-ResNAS (Liao et al. 2021).

There is no batch normalization, so a subnet needs no statistics of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from torch import nn

from ..axes import Index, Selection, indices, prefix
from ..cost import LayerPlan
from ..errors import UsageError
from ..space import Arch, Gene, Space, Value, block_needs
from ..structure import Structure
from .fields import check_counts, read_space
from .layers import Layers
from .vit_blocks import Head, SpatialReduction, Tokens, TransformerBlock, TransformerStage, Vit
from .vit_plan import (
    REDUCTION,
    Block,
    Reduction,
    head_layers,
    reduction_layers,
    stage_layers,
    token_layers,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """Options of one stage, all ascending; `embeds` in channels, `depths` in blocks.

    `qkv` is the width of queries, keys and values where a block has the most heads: all heads are
    of width qkv / most heads. MLP widths are given either as `ratios` to the embedding or as
    `hiddens`, in channels. A 0 among heads or MLP widths lets a block go without. `relative` is the
    distance, in patches, at which relative positions are cut; 0 is no relative positions.
    """

    embeds: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    qkv: int
    ratios: tuple[float, ...] = ()
    hiddens: tuple[int, ...] = ()
    relative: int = 0

    def __post_init__(self) -> None:
        for field in ("embeds", "depths"):
            check_counts(f"stage: {field}", getattr(self, field))
        for field in ("heads", "hiddens"):
            check_counts(f"stage: {field}", getattr(self, field), least=0)
        check_counts("stage: qkv", (self.qkv,))
        check_counts("stage: relative", (self.relative,), least=0)
        _check_ratios(self.ratios)
        if bool(self.ratios) == bool(self.hiddens):
            raise UsageError(
                f"stage: ratios = {self.ratios} and hiddens = {self.hiddens}; exactly one of both "
                "gives the MLP's widths"
            )
        least = min(self.embeds, default=math.inf)
        if gone := [ratio for ratio in self.ratios if ratio and least * ratio < 1]:
            raise UsageError(
                f"stage: ratios = {self.ratios}; {gone[0]} of an embedding of {least} is no channel "
                "at all; 0 leaves the MLP out"
            )
        most = max(self.heads, default=0)
        if not most or self.qkv % most:
            raise UsageError(
                f"stage: qkv = {self.qkv}; heads = {self.heads} must be numbers of heads of which "
                "the largest divides it"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.qkv // self.heads[-1]

    @property
    def mlp(self) -> str:
        """What the gene of an MLP's width is called."""
        return "ratio" if self.ratios else "hidden"

    def hidden(self, embed: int, chosen: Value) -> int:
        """Channels of an MLP's width."""
        return int(embed * chosen) if self.ratios else int(chosen)


@dataclass(frozen=True)
class VitSpace(Space):
    """A space of vision transformers on square images of `resolution` pixels."""

    classes: int
    in_channels: int
    resolution: int
    patch: int
    stages: tuple[Stage, ...]

    family = "vit"

    def __post_init__(self) -> None:
        for field in ("in_channels", "resolution", "patch"):
            check_counts(f"space: {field}", (getattr(self, field),))
        check_counts("space: classes", (self.classes,), least=2)
        if not isinstance(self.stages, tuple) or not self.stages:
            raise UsageError(f"space: stages = {self.stages!r}; at least one stage expected")
        if not all(isinstance(stage, Stage) for stage in self.stages):
            raise UsageError(f"space: stages = {self.stages!r}; stages expected")
        _ = self.genes  # an impossible option list is an error here, not at first use
        if self.resolution % self.patch:
            raise UsageError(
                f"space: patch = {self.patch}; it must divide the resolution, {self.resolution}"
            )
        for i, (before, stage) in enumerate(zip(self.stages, self.stages[1:], strict=False), 1):
            if self.grid(i - 1) % REDUCTION:
                raise UsageError(
                    f"space: resolution = {self.resolution}; stage {i} cannot halve the "
                    f"{self.grid(i - 1)}×{self.grid(i - 1)} patches of the stage before"
                )
            if stage.embeds[0] < before.embeds[-1]:
                raise UsageError(
                    f"space: stage {i}: embeds = {stage.embeds}; not below those of the stage "
                    f"before, {before.embeds}"
                )

    def grid(self, stage: int) -> int:
        """Patches along each side of the image in a stage."""
        return self.resolution // self.patch >> stage

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Embedding and depth per stage, heads and MLP width per block."""
        found = []
        for i, stage in enumerate(self.stages):
            found += [Gene(f"s{i}.embed", stage.embeds), Gene(f"s{i}.depth", stage.depths)]
            for j in range(stage.depths[-1]):
                needs = block_needs(f"s{i}.depth", stage.depths, j)
                found.append(Gene(f"s{i}.b{j}.heads", stage.heads, needs))
                widths = stage.ratios or stage.hiddens
                found.append(Gene(f"s{i}.b{j}.{stage.mlp}", widths, needs))
        return tuple(found)

    def blocks(self, arch: Arch, i: int) -> list[Block]:
        """Every block of a stage that the architecture uses, with its sizes."""
        stage, embed = self.stages[i], arch.count(f"s{i}.embed")
        return [
            Block(
                name=f"stages.{i}.blocks.{j}",
                axis=f"s{i}.embed",
                embed=embed,
                heads=arch.count(f"s{i}.b{j}.heads"),
                head_dim=stage.head_dim,
                hidden=stage.hidden(embed, arch[f"s{i}.b{j}.{stage.mlp}"]),
                grid=self.grid(i),
                relative=stage.relative,
            )
            for j in range(arch.count(f"s{i}.depth"))
        ]

    def reduction(self, arch: Arch, i: int) -> Reduction:
        """Of a stage that is not the first, what comes before its blocks."""
        return Reduction(
            name=f"stages.{i}.reduction",
            axis_in=f"s{i - 1}.embed",
            axis_out=f"s{i}.embed",
            embed_in=arch.count(f"s{i - 1}.embed"),
            embed_out=arch.count(f"s{i}.embed"),
            grid_in=self.grid(i - 1),
        )

    def select(self, arch: Arch) -> Selection:
        """Prefixes of channels and of whole heads; a shallower stage leaves its last blocks."""
        index: dict[str, Index] = {}
        absent = set()
        for i, stage in enumerate(self.stages):
            index[f"s{i}.embed"] = prefix(arch.count(f"s{i}.embed"))
            blocks = self.blocks(arch, i)
            absent |= {f"stages.{i}.blocks.{j}" for j in range(len(blocks), stage.depths[-1])}
            for block in blocks:
                if block.heads:
                    index[f"{block.name}.qkv"] = whole_heads(range(block.heads), block.head_dim)
                else:
                    absent.add(f"{block.name}.attention")
                if block.hidden:
                    index[f"{block.name}.hidden"] = prefix(block.hidden)
                else:
                    absent.add(f"{block.name}.mlp")
        return Selection(index, frozenset(absent))

    def structure(self) -> Structure:
        """Heads are whole; a stage's embedding begins with that of the stage before."""
        units = {
            f"stages.{i}.blocks.{j}.qkv": stage.head_dim
            for i, stage in enumerate(self.stages)
            for j in range(stage.depths[-1])
        }
        several = len(self.stages) > 1
        embeds = [f"s{i}.embed" for i in range(len(self.stages)) if several]
        return Structure(units=units, ordered=frozenset(embeds))

    def build(self, arch: Arch) -> nn.Module:
        """Modules `tokens`, `stages.<i>.reduction`, `stages.<i>.blocks.<j>` and `head`."""
        make = Layers(self.select(arch))
        stages = []
        for i in range(len(self.stages)):
            reduction = SpatialReduction(self.reduction(arch, i), make) if i else None
            blocks = [TransformerBlock(block, make) for block in self.blocks(arch, i)]
            stages.append(TransformerStage(reduction, blocks))
        return Vit(
            Tokens(self.in_channels, self.patch, self.grid(0), make),
            stages,
            Head(f"s{len(stages) - 1}.embed", self.classes, make),
        )

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        """Patch embedding, reductions, each block's layers and products, head."""
        embed = arch.count("s0.embed")
        plans = token_layers(self.in_channels, self.patch, embed, self.grid(0))
        for i in range(len(self.stages)):
            if i:
                plans += reduction_layers(self.reduction(arch, i))
            plans += stage_layers(self.blocks(arch, i))
        last = len(self.stages) - 1
        embed = arch.count(f"s{last}.embed")
        return (*plans, *head_layers(embed, self.grid(last), self.classes))

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """(channels, resolution, resolution)."""
        return (self.in_channels, self.resolution, self.resolution)

    def describe(self, arch: Arch) -> str:
        """Per stage the embedding, and heads and MLP width of each block."""
        parts = []
        for i, stage in enumerate(self.stages):
            blocks = " ".join(
                f"h{arch[f's{i}.b{j}.heads']}m{arch[f's{i}.b{j}.{stage.mlp}']}"
                for j in range(arch.count(f"s{i}.depth"))
            )
            parts.append(f"{arch[f's{i}.embed']}[{blocks}]")
        return " ".join(parts)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names an unknown or missing field."""
        return read_space(cls, fields, lists={"stages": Stage})


def whole_heads(heads: Sequence[int], dim: int) -> Index:
    """The positions of these heads on the axis of queries, keys and values."""
    return indices([head * dim + at for head in heads for at in range(dim)])


def _check_ratios(values: object) -> None:
    if not isinstance(values, tuple) or any(
        type(v) not in (int, float) or not 0 <= v < math.inf for v in values
    ):
        raise UsageError(f"stage: ratios = {values!r}; numbers of at least 0 expected")
