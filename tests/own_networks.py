"""Networks as users write them: a class with attributes and a forward, no hint of a supernet."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a residual, as in ResNet; a projection where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.project: nn.Module | None = None
        if stride > 1 or inside != outside:
            self.project = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.project is None else self.project(x)))


class ResNet(nn.Module):
    """A stem with a maximum pooling, two stages of two blocks, a classifier."""

    def __init__(self, classes: int, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Block(width, width), Block(width, width))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width))
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def resnet(classes: int = 4, width: int = 16, channels: int = 1) -> nn.Module:
    """(B, channels, 12, 12) to (B, classes)."""
    return ResNet(classes, width, channels)


class Mixed(nn.Module):
    """A concatenation, a depthwise convolution, a gate, group norm, flattened maps, hidden layer."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 8, 3, padding=1)
        self.right = nn.Conv2d(2, 12, 1)
        self.depthwise = nn.Conv2d(20, 20, 5, stride=2, padding=2, groups=20)
        self.squeeze = nn.Conv2d(20, 4, 1)
        self.expand = nn.Conv2d(4, 20, 1)
        self.reduce = nn.Conv2d(20, 8, 1, bias=False)
        self.norm = nn.GroupNorm(4, 8)
        self.slope = nn.PReLU(8)
        self.drop = nn.Dropout(drop)
        self.hidden = nn.Linear(8 * 3 * 3, 24)
        self.last = nn.LayerNorm(24)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.left(x)), functional.silu(self.right(x))], dim=1)
        x = functional.hardswish(self.depthwise(x))
        gate = functional.adaptive_avg_pool2d(x, 1)
        gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(gate))))
        x = self.slope(self.norm(self.reduce(x * gate)))
        x = self.drop(x.view(x.size(0), -1))
        logits: Tensor = self.out(functional.gelu(self.last(self.hidden(x))))
        return logits


def mixed(drop: float = 0.0) -> nn.Module:
    """(B, 2, 6, 6) to (B, 3)."""
    return Mixed(drop)


class Made(nn.Module):
    """A few layers, and a function that calls them."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def bordered() -> nn.Module:
    """A dilated kernel with mirrored borders, and a depthwise one with two outputs a channel."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = functional.relu6(net.bn(net.first(x)))
        logits: Tensor = net.out(net.twice(x).mean((2, 3)))
        return logits

    return Made(
        run,
        first=nn.Conv2d(1, 8, 5, padding=4, dilation=2, padding_mode="reflect"),
        bn=nn.BatchNorm2d(8),
        twice=nn.Conv2d(8, 16, 3, padding="same", groups=8),
        out=nn.Linear(16, 3),
    )


def straight() -> nn.Module:
    """(B, 1, 8, 8) to (B, 3), in one line: two of its layers may be left out."""
    middle = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Identity(), nn.Conv2d(8, 8, 1), nn.ELU()
    )
    layers = {"first": nn.Conv2d(1, 8, 3), "middle": middle, "last": nn.Conv2d(8, 6, 3, 2)}
    head = {"pool": nn.AvgPool2d(2), "flat": nn.Flatten(), "out": nn.Linear(6, 3)}
    return nn.Sequential(OrderedDict({**layers, **head}))


def reread() -> nn.Module:
    """(B, 1, 8, 8): 8 maps, which an activation and then an addition read."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.first(x)
        logits: Tensor = net.out((x + functional.silu(x)).mean((2, 3)))
        return logits

    return Made(run, first=nn.Conv2d(1, 8, 1), out=nn.Linear(8, 3))


def sequence() -> nn.Module:
    """Convolutions over time, exchanged dimensions, a learned slope, two summed branches."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = functional.leaky_relu(net.bn(net.first(x)), 0.1)
        x = torch.cat([net.near(x), net.far(x)], 1) + net.skip(x)
        x = net.norm(net.slope(x).transpose(1, 2))
        logits: Tensor = net.out(torch.tanh(net.hidden(x)).mean(1))
        return logits

    return Made(
        run,
        first=nn.Conv1d(2, 8, 5, padding=2),
        bn=nn.BatchNorm1d(8),
        near=nn.Conv1d(8, 4, 1),
        far=nn.Conv1d(8, 4, 3, padding=1),
        skip=nn.Conv1d(8, 8, 1),
        slope=nn.PReLU(),
        norm=nn.LayerNorm(8),
        hidden=nn.Linear(8, 12),
        out=nn.Linear(12, 3),
    )


class Attention(nn.Module):
    """Patches, a class token, one layer of self-attention with a hidden layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.out(x.mean(1))
        return logits


def attention() -> nn.Module:
    """(B, 1, 8, 8) to (B, 3)."""
    return Attention()


class Scaled(nn.Module):
    """A branch that hardly counts at first (layer scale), its last convolution started at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.out = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.last(torch.relu(self.inner(x))) * self.scale
        logits: Tensor = self.out(torch.mean(input=x, dim=(2, 3)))
        return logits


def scaled() -> nn.Module:
    """(B, 1, 8, 8) to (B, 3)."""
    return Scaled()


def low_rank(width: int = 64, rank: int = 4) -> nn.Module:
    """(B, 1, 8, 8) to (B, 10): a layer with low-rank factors beside it, of equal sizes, and a head."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = net.head(functional.relu(net.base(x) + net.lora_B(net.lora_A(x))))
        return logits

    return Made(
        run,
        base=nn.Linear(64, width),
        lora_A=nn.Linear(64, rank, bias=False),
        lora_B=nn.Linear(rank, 64, bias=False),
        head=nn.Linear(width, 10),
    )
