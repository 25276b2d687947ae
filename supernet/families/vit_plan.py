"""Geometry of vision transformers and the sizes of their layers.

Multiply-accumulates count convolutions, linear layers and every product of attention, positions
included. AutoFormer's tiny, small and base take 1.41, 5.01 and 11.45 G: 1.28, 4.77 and 11.05 G but
for relative positions. Its published 1.34, 4.89 and 11.24 G are estimates by a formula of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..cost import LayerPlan

POSITION_STD = 0.02
REDUCTION, REDUCTION_KERNEL = 2, 3


@dataclass(frozen=True, slots=True)
class Block:
    """Sizes of one transformer block. No heads or no hidden width: that half is skipped."""

    name: str
    axis: str
    embed: int
    heads: int
    head_dim: int
    hidden: int
    grid: int
    relative: int

    @property
    def tokens(self) -> int:
        """The class token and the patches."""
        return 1 + self.grid**2


@dataclass(frozen=True, slots=True)
class Reduction:
    """Sizes of the reduction before a stage: half the grid, another embedding."""

    name: str
    axis_in: str
    axis_out: str
    embed_in: int
    embed_out: int
    grid_in: int

    @property
    def grid_out(self) -> int:
        """Patches along each side after it."""
        return self.grid_in // REDUCTION


def table_rows(relative: int) -> int:
    """Rows of a table of relative positions: -D to D, and one for the class token."""
    return 2 * relative + 2


def token_layers(in_channels: int, patch: int, embed: int, grid: int) -> list[LayerPlan]:
    """Patch embedding, class token and positions."""
    patches, tokens = embed * grid**2, embed * (1 + grid**2)
    pixels = in_channels * (patch * grid) ** 2
    return [
        LayerPlan("tokens.patch", "conv", embed, in_channels, patch**2, pixels, patches, bias=True),
        LayerPlan("tokens.position", "table", embed, 0, 0, patches, tokens,
                  other_params=tokens + embed, stored=tokens + embed),
    ]  # fmt: skip


def reduction_layers(plan: Reduction) -> list[LayerPlan]:
    """Normalization, the class token's own layer, strided convolution, the pooled shortcut."""
    before, after = plan.embed_in * (1 + plan.grid_in**2), plan.embed_out * (1 + plan.grid_out**2)
    patches_in, patches_out = before - plan.embed_in, after - plan.embed_out
    pooled = plan.embed_in * plan.grid_out**2
    shortcut = pooled + plan.embed_in
    widened = after if plan.embed_out > plan.embed_in else 0
    # Pooled, put behind the class token, widened, added to what was put together likewise.
    alive = max(before + after + pooled + shortcut, after + shortcut + widened,
                after + (widened or shortcut) + after)  # fmt: skip
    return [
        _norm(f"{plan.name}.norm", plan.embed_in, before, before),
        LayerPlan(f"{plan.name}.token", "linear", plan.embed_out, plan.embed_in, 1, plan.embed_in,
                  plan.embed_out, bias=True, held=2 * before - plan.embed_in, kept=0),
        LayerPlan(f"{plan.name}.conv", "conv", plan.embed_out, plan.embed_in, REDUCTION_KERNEL**2,
                  patches_in, patches_out, bias=True, kept=before,
                  held=2 * before - patches_in + plan.embed_out),
        LayerPlan(f"{plan.name}.pool", "pool", plan.embed_in, 0, 0, before, pooled,
                  held=alive - before - pooled),
    ]  # fmt: skip


def stage_layers(blocks: Sequence[Block]) -> list[LayerPlan]:
    """Of the blocks of one stage."""
    plans: list[LayerPlan] = []
    spread = True  # a file holds the stage's 0/1 matrices once
    for block in blocks:
        plans += _block_layers(block, spread)
        spread = spread and not block.heads
    return plans


def _block_layers(block: Block, spread: bool) -> list[LayerPlan]:
    """Layers and products of attention and MLP."""
    plans = _attention_layers(block, spread) if block.heads else []
    if block.hidden:
        name, x = f"{block.name}.mlp", block.tokens * block.embed
        wide = block.tokens * block.hidden
        plans += [
            _norm(f"{name}.norm", block.embed, x, x),
            LayerPlan(f"{name}.expand", "linear", block.hidden, block.embed, 1, x, wide, bias=True,
                      act="gelu", held=x),
            LayerPlan(f"{name}.project", "linear", block.embed, block.hidden, 1, wide, x, bias=True,
                      held=x),
        ]  # fmt: skip
    return plans


def head_layers(embed: int, grid: int, classes: int) -> list[LayerPlan]:
    """Normalization of the class token (a view, so that all tokens stay alive), classifier."""
    return [
        _norm("head.norm", embed, embed * (1 + grid**2), embed),
        LayerPlan("head.classifier", "linear", classes, embed, 1, embed, classes, bias=True),
    ]


def _attention_layers(block: Block, spread: bool) -> list[LayerPlan]:
    name, n = f"{block.name}.attention", block.tokens
    width = block.heads * block.head_dim
    x, q, pairs = n * block.embed, n * width, block.heads * n**2

    def linear(part: str, held: int, kept: int) -> LayerPlan:
        return LayerPlan(f"{name}.{part}", "linear", width, block.embed, 1, x, q, bias=True,
                         held=held, kept=kept)  # fmt: skip

    # While several heads are put in order, queries, keys, values and the output are there twice.
    # The three layers' input is kept once.
    twice = q if block.heads > 1 else 0
    plans = [
        _norm(f"{name}.norm", block.embed, x, x),
        linear("query", x + twice, x),
        linear("key", x + q + twice, 0),
        linear("value", 2 * q + max(x, twice), 0),
        LayerPlan(f"{name}.products", "matmul", block.heads, 0, 0, 2 * q, pairs, act="softmax",
                  held=x + q, kept=2 * q, other_macs=n * q),
        LayerPlan(f"{name}.mixtures", "matmul", width, 0, 0, pairs + q, q, held=x,
                  other_macs=n * q),
        LayerPlan(f"{name}.project", "linear", block.embed, width, 1, q, x, bias=True,
                  held=max(x, twice)),
    ]  # fmt: skip
    if block.relative:
        plans[5:5] = [_key_positions(block, name, spread)]
        plans[7:7] = [_value_positions(block, name, spread)]
    return plans


def _key_positions(block: Block, name: str, spread: bool) -> LayerPlan:
    """Queries times tables, spread over the tokens and added to the products."""
    x, q, pairs, patches, half, groups = _position_sizes(block)
    alive = x + q + pairs + max(q + half + patches, 2 * half + patches, 2 * half + groups,
                                pairs + groups)  # fmt: skip
    return LayerPlan(
        f"{name}.key_positions", "table", block.heads, 0, 0, q, pairs, held=alive - q - pairs,
        kept=2 * patches, other_params=_tables(block), other_macs=_position_macs(block),
        stored=_stored(block, spread),
    )  # fmt: skip


def _value_positions(block: Block, name: str, spread: bool) -> LayerPlan:
    """Attention gathered by row and column, times tables, added to the mixtures."""
    x, q, pairs, patches, half, groups = _position_sizes(block)
    alive = x + q + max(pairs + groups, groups + half + patches, half + 2 * patches, q + patches)
    return LayerPlan(
        f"{name}.value_positions", "table", block.heads * block.head_dim, 0, 0, pairs, q,
        held=alive - pairs - q, kept=2 * half, other_params=_tables(block),
        other_macs=_position_macs(block), stored=_stored(block, spread),
    )  # fmt: skip


def _position_sizes(block: Block) -> tuple[int, int, int, int, int, int]:
    """Elements: embeddings, queries, pairs, patches' queries, patches × groups, tokens × groups.

    Patches count half of the groups, the rows or the columns.
    """
    n, width = block.tokens, block.heads * block.head_dim
    patches, groups = block.grid**2, 1 + block.grid
    return (
        n * block.embed,
        n * width,
        block.heads * n**2,
        patches * width,
        block.heads * patches * groups,
        2 * block.heads * n * groups,
    )


def _position_macs(block: Block) -> int:
    """Each patch with its tables' 2 (1 + g) groups of d numbers, and all tokens with each other."""
    groups, n = 2 * (1 + block.grid), block.tokens
    return block.heads * groups * (block.grid**2 * block.head_dim + n**2)


def _tables(block: Block) -> int:
    return 2 * table_rows(block.relative) * block.head_dim


def _stored(block: Block, spread: bool) -> int:
    """Both tables as every row of the grid needs them, and the matrix that spreads them out."""
    groups = 2 * (1 + block.grid)
    return groups * (block.grid * block.head_dim + int(spread) * block.tokens)


def _norm(name: str, width: int, before: int, after: int) -> LayerPlan:
    """Autograd keeps the mean and the deviation of each token beside the input."""
    return LayerPlan(name, "norm", width, 0, 0, before, after, kept=before + 2 * after // width,
                     other_params=2 * width)  # fmt: skip
