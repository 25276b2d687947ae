"""The parts of a vision transformer besides attention (Dosovitskiy et al. 2021)."""

import torch
from torch import Tensor, nn, unflatten
from torch.nn import functional

from ..axes import tag, tag_std
from .layers import Layers, activation
from .vit_attention import Attention
from .vit_plan import POSITION_STD, REDUCTION, REDUCTION_KERNEL, Block, Reduction


class Tokens(nn.Module):
    """Patches of an image as tokens behind a class token, with absolute positions."""

    def __init__(self, in_channels: int, patch: int, grid: int, make: Layers) -> None:
        super().__init__()
        axis = "s0.embed"
        embed = make.size(axis)
        self.patch = nn.Conv2d(in_channels, embed, patch, stride=patch)
        tag(self.patch, weight=(axis, None, None, None), bias=(axis,))
        tag_std(self.patch, weight=POSITION_STD)
        self.class_token = nn.Parameter(torch.empty(1, 1, embed))
        self.position = nn.Parameter(torch.empty(1, 1 + grid**2, embed))
        tag(self, class_token=(None, None, axis), position=(None, None, axis))
        tag_std(self, class_token=POSITION_STD, position=POSITION_STD)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Images (B, C, r, r) to tokens (B, n, embedding)."""
        patches_bpe = _to_tokens(self.patch(x_bchw))
        first_b1e = self.class_token.expand(x_bchw.shape[0], -1, -1)
        return torch.cat([first_b1e, patches_bpe], dim=1) + self.position


class Mlp(nn.Module):
    """Normalization, a wider layer with GELU, and one back to the embedding."""

    def __init__(self, block: Block, make: Layers) -> None:
        super().__init__()
        axis = f"{block.name}.hidden"
        self.norm = make.layer_norm(block.axis)
        self.expand = make.linear(axis, block.axis, std=POSITION_STD)
        self.act = activation("gelu")
        self.project = make.linear(block.axis, axis, std=POSITION_STD)

    def forward(self, x_bne: Tensor) -> Tensor:
        """Tokens (B, n, embedding) to what is added to them, of the same shape."""
        added_bne: Tensor = self.project(self.act(self.expand(self.norm(x_bne))))
        return added_bne


class TransformerBlock(nn.Module):
    """Attention and MLP, each normalized before and added to its input, each left out if skipped."""

    def __init__(self, block: Block, make: Layers) -> None:
        super().__init__()
        self.attention = Attention(block, make) if block.heads else None
        self.mlp = Mlp(block, make) if block.hidden else None

    def forward(self, x_bne: Tensor) -> Tensor:
        """Tokens (B, n, embedding) to the same shape."""
        if self.attention is not None:
            x_bne = x_bne + self.attention(x_bne)
        if self.mlp is not None:
            x_bne = x_bne + self.mlp(x_bne)
        return x_bne


class SpatialReduction(nn.Module):
    """Residual spatial reduction (Liao et al. 2021): half the grid, a wider embedding.

    A normalized 3×3 convolution of stride 2, and a linear layer for the class token, are added to
    the 2×2 means of the patches and the class token. Where the embedding grows, those are filled up
    with zeros.
    """

    def __init__(self, plan: Reduction, make: Layers) -> None:
        super().__init__()
        self.grid, self.wider = plan.grid_in, plan.embed_out - plan.embed_in
        self.norm = make.layer_norm(plan.axis_in)
        self.conv = make.conv(
            plan.axis_out, plan.axis_in, kernel=REDUCTION_KERNEL, stride=REDUCTION, bias=True
        )
        tag_std(self.conv, weight=POSITION_STD)
        self.token = make.linear(plan.axis_out, plan.axis_in, std=POSITION_STD)
        self.pool = nn.AvgPool2d(REDUCTION)

    def forward(self, x_bne: Tensor) -> Tensor:
        """Tokens (B, 1 + g², e) to (B, 1 + (g / 2)², wider e)."""
        y_bne = self.norm(x_bne)
        first_b1e = self.token(y_bne[:, :1])
        patches_bpe = _to_tokens(self.conv(self._to_map(y_bne)))
        pooled_bpe = _to_tokens(self.pool(self._to_map(x_bne)))
        shortcut_bne = torch.cat([x_bne[:, :1], pooled_bpe], dim=1)
        if self.wider:
            shortcut_bne = functional.pad(shortcut_bne, (0, self.wider))
        return torch.cat([first_b1e, patches_bpe], dim=1) + shortcut_bne

    def _to_map(self, x_bne: Tensor) -> Tensor:
        """The patches, (B, e, g, g)."""
        return unflatten(x_bne[:, 1:].transpose(1, 2), 2, (self.grid, self.grid))


class TransformerStage(nn.Module):
    """A reduction, except in the first stage, and blocks."""

    def __init__(self, reduction: SpatialReduction | None, blocks: list[TransformerBlock]) -> None:
        super().__init__()
        self.reduction, self.blocks = reduction, nn.ModuleList(blocks)

    def forward(self, x_bne: Tensor) -> Tensor:
        """Tokens (B, n, e) to tokens."""
        if self.reduction is not None:
            x_bne = self.reduction(x_bne)
        for block in self.blocks:
            x_bne = block(x_bne)
        return x_bne


class Head(nn.Module):
    """Normalization of the class token, and a classifier."""

    def __init__(self, axis: str, classes: int, make: Layers) -> None:
        super().__init__()
        self.norm = make.layer_norm(axis)
        self.classifier = make.linear(classes, axis, std=POSITION_STD)

    def forward(self, x_bne: Tensor) -> Tensor:
        """Tokens (B, n, e) to logits (B, classes)."""
        logits_bc: Tensor = self.classifier(self.norm(x_bne[:, 0]))
        return logits_bc


class Vit(nn.Module):
    """Tokens, stages, head; input (B, C, r, r), output logits (B, classes)."""

    def __init__(self, tokens: Tokens, stages: list[TransformerStage], head: Head) -> None:
        super().__init__()
        self.tokens, self.stages, self.head = tokens, nn.ModuleList(stages), head

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Images (B, C, r, r) to logits (B, classes)."""
        x_bne = self.tokens(x_bchw)
        for stage in self.stages:
            x_bne = stage(x_bne)
        logits_bc: Tensor = self.head(x_bne)
        return logits_bc


def _to_tokens(map_behw: Tensor) -> Tensor:
    """(B, e, h, w) to (B, h · w, e)."""
    return map_behw.flatten(2).transpose(1, 2)
