"""Multi-head attention over a class token and a square grid of patches, with relative positions.

Relative positions on keys and values (Shaw et al. 2018, on two axes as in iRPE, Wu et al. 2021, and
AutoFormer, Chen et al. 2021). With a vertical and a horizontal table V and H for the keys, and
others for the values, the attention of token i on token j is

    a_ij = softmax_j (q_i · (k_j + r_ij) / sqrt(d)),  r_ij = V[dy_ij] + H[dx_ij]

and its output Σ_j a_ij (v_j + r'_ij). Distances dy, dx are cut to ±D; row 0 of each table is for
pairs with the class token, row D + 1 for distance 0.

r is never built: it would be tokens² × d numbers. q_i · V[dy_ij] depends on the token i and on the
row of j only, so each table is multiplied for every row of the grid and spread over the tokens by
a constant 0/1 matrix, and the values' tables the other way round. That is 2(g + 1) / d of the work
of the attention itself for a grid of g × g; a product for every pair doubles it. A class token's
query meets row 0 of the tables whatever the key: softmax does not see what is added to all of its
products, and the mean of equal values is that value, so that neither is multiplied.
"""

import torch
from torch import Tensor, nn, unflatten
from torch.nn import functional

from ..axes import tag, tag_std
from .layers import Layers
from .vit_plan import POSITION_STD, Block, table_rows


class RelativePositions(nn.Module):
    """A vertical and a horizontal table, each (2D + 2, head dimension), shared by all heads.

    Tensors are named by g rows or columns of patches, n = 1 + g² tokens, d head dimension, b batch
    times heads, and u = 1 + g groups of tokens: the class token, and each row (or column).
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.grid = block.grid
        size = (table_rows(block.relative), block.head_dim)
        self.vertical = nn.Parameter(torch.empty(size))
        self.horizontal = nn.Parameter(torch.empty(size))
        tag(self, vertical=(None, None), horizontal=(None, None))
        tag_std(self, vertical=POSITION_STD, horizontal=POSITION_STD)
        # Constants, no buffers: a module built without memory is filled from weights alone.
        self.rows_gu = _rows(block.grid, block.relative)
        self.spread_nu = _spread(block.grid)

    def products(self, q_bnd: Tensor) -> Tensor:
        """Of each query with the positions of every token, 0 for the class token's: (b, n, n)."""
        vertical_gud, horizontal_gud = self._tables()
        patches_byxd = self._patches(q_bnd)
        rows_byxu = _by_row(patches_byxd, vertical_gud.transpose(1, 2))
        columns_byxu = _by_row(
            patches_byxd.transpose(1, 2), horizontal_gud.transpose(1, 2)
        ).transpose(1, 2)
        groups_bpu = torch.cat([rows_byxu, columns_byxu], dim=3).flatten(1, 2)
        groups_bnu = functional.pad(groups_bpu, (0, 0, 1, 0))
        return functional.linear(groups_bnu, self.spread_nu.to(groups_bnu.device, groups_bnu.dtype))

    def added(self, mixed_bnd: Tensor, attention_bnn: Tensor) -> Tensor:
        """The mixed values, with the mean position of all tokens by each token's attention."""
        vertical_gud, horizontal_gud = self._tables()
        spread_un = self.spread_nu.to(attention_bnn.device, attention_bnn.dtype).transpose(0, 1)
        groups_bnu = functional.linear(attention_bnn, spread_un)
        rows_byxu, columns_byxu = self._patches(groups_bnu).chunk(2, dim=3)
        patches_byxd = _by_row(rows_byxu, vertical_gud) + _by_row(
            columns_byxu.transpose(1, 2), horizontal_gud
        ).transpose(1, 2)
        first_b1d = mixed_bnd[:, :1] + (self.vertical[:1] + self.horizontal[:1])
        return torch.cat([first_b1d, mixed_bnd[:, 1:] + patches_byxd.flatten(1, 2)], dim=1)

    def _patches(self, x_bnc: Tensor) -> Tensor:
        """Those of the patches, (b, y, x, c)."""
        return unflatten(x_bnc[:, 1:], 1, (self.grid, self.grid))

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Per row (or column) of queries, the table's rows of every group of keys."""
        rows_gu = self.rows_gu.to(self.vertical.device)
        size = (self.grid, self.grid + 1)
        return (
            unflatten(self.vertical.index_select(0, rows_gu), 0, size),
            unflatten(self.horizontal.index_select(0, rows_gu), 0, size),
        )


class Attention(nn.Module):
    """Queries, keys and values of whole heads, attention, projection back to the embedding."""

    def __init__(self, block: Block, make: Layers) -> None:
        super().__init__()
        axis = f"{block.name}.qkv"
        self.heads, self.scale = block.heads, block.head_dim**-0.5
        self.norm = make.layer_norm(block.axis)
        self.query = make.linear(axis, block.axis, std=POSITION_STD)
        self.key = make.linear(axis, block.axis, std=POSITION_STD)
        self.value = make.linear(axis, block.axis, std=POSITION_STD)
        self.project = make.linear(block.axis, axis, std=POSITION_STD)
        self.key_positions = RelativePositions(block) if block.relative else None
        self.value_positions = RelativePositions(block) if block.relative else None

    def forward(self, x_bne: Tensor) -> Tensor:
        """Tokens (B, n, embedding) to what is added to them, of the same shape."""
        y_bne = self.norm(x_bne)
        q_bnd = self._heads(self.query(y_bne) * self.scale)
        k_bnd, v_bnd = self._heads(self.key(y_bne)), self._heads(self.value(y_bne))
        logits_bnn = q_bnd @ k_bnd.transpose(1, 2)
        if self.key_positions is not None:
            logits_bnn = logits_bnn + self.key_positions.products(q_bnd)
        attention_bnn = logits_bnn.softmax(dim=2)
        mixed_bnd = attention_bnn @ v_bnd
        if self.value_positions is not None:
            mixed_bnd = self.value_positions.added(mixed_bnd, attention_bnn)
        together_bnc = unflatten(mixed_bnd, 0, (-1, self.heads)).transpose(1, 2).flatten(2)
        added_bne: Tensor = self.project(together_bnc)
        return added_bne

    def _heads(self, x_bnc: Tensor) -> Tensor:
        """(B, n, heads · d) to (B · heads, n, d)."""
        return unflatten(x_bnc, 2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)


def _by_row(x_byxc: Tensor, tables_yco: Tensor) -> Tensor:
    """Each row of the grid times its own matrix: (b, y, x, o)."""
    x_yfc = x_byxc.transpose(0, 1).flatten(1, 2)
    return unflatten(x_yfc @ tables_yco, 1, (-1, x_byxc.shape[2])).transpose(0, 1)


def _rows(grid: int, most: int) -> Tensor:
    """Of the table, for row y of queries and each group of keys: (grid · (1 + grid),)."""
    steps = torch.arange(grid, device="cpu")
    distances = (steps[None, :] - steps[:, None]).clamp(-most, most) + most + 1
    return torch.cat([torch.zeros_like(distances[:, :1]), distances], dim=1).flatten()


def _spread(grid: int) -> Tensor:
    """1 where token n is in group u, groups by row and then by column: (n, 2 (1 + grid))."""
    one_row = torch.eye(grid, device="cpu")
    patches = torch.cat([one_row.repeat_interleave(grid, dim=0), one_row.repeat(grid, 1)], dim=1)
    tokens = torch.zeros(1 + grid * grid, 2, 1 + grid, device="cpu")
    tokens[0, :, 0] = 1
    tokens[1:, :, 1:] = unflatten(patches, 1, (2, grid))
    return tokens.flatten(1)
