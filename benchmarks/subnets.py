"""A training step of a subnet: static against written by hand, views against static."""

import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from fedofa.supernet.axes import Weights, regions, take
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import on_views, static
from fedofa.supernet.weights import initial
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .timing import paired

BATCH = 32


def bench_static() -> list[dict[str, Any]]:
    """Our static module against the same network written by hand (goal: at most 1.02)."""
    rows = []
    for name, arch, space in subnets():
        values = take(initial(space, 0), regions(space, arch))
        ours, hand = static(space, arch, values).train(), by_hand(space, arch).train()
        with torch.no_grad():
            for mine, theirs in zip(ours.parameters(), hand.parameters(), strict=True):
                theirs.copy_(mine)
        x, y = _batch(space, arch)
        if not torch.allclose(ours(x), hand(x), atol=1e-5):
            raise AssertionError("the network written by hand computes something else")
        timed = paired(_step(ours, x, y), _step(hand, x, y))
        rows.append({"subnet": name, "goal": 1.02, **asdict(timed)})
    return rows


def bench_views() -> list[dict[str, Any]]:
    """Views on the supernet's weights against the static module (goal: at most 1.05)."""
    rows = []
    for name, arch, space in subnets():
        shared: Weights = {k: v.requires_grad_() for k, v in initial(space, 0).items()}
        module = static(space, arch, take(shared, regions(space, arch))).train()
        forward = on_views(space, arch, shared)
        x, y = _batch(space, arch)
        timed = paired(
            _step(forward, x, y, shared.values()), _step(module, x, y, module.parameters())
        )
        rows.append({"subnet": name, "goal": 1.05, **asdict(timed)})
    return rows


def subnets() -> list[tuple[str, Arch, Space]]:
    """Three sizes of one space."""
    small = preset("small")
    return [
        ("small, largest", small.largest(), small),
        ("small, random", small.sample(random.Random(1)), small),
        ("small, smallest", small.smallest(), small),
    ]


def _batch(space: Space, arch: Arch) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, *space.input_shape(arch), generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)
    return x.contiguous(memory_format=torch.channels_last), y


def _step(
    forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, leaves: Any = ()
) -> Callable[[], None]:
    leaves = list(leaves)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        cross_entropy(forward(x), y).backward()  # type: ignore[no-untyped-call]

    return step


def by_hand(space: Space, arch: Arch) -> nn.Module:
    """The architecture as one would write it without a supernet: nothing but torch layers."""
    stem, last = arch.count("stem.width"), 0
    layers: list[nn.Module] = [_conv(1, stem, 3, act=nn.Hardswish)]
    width = stem
    for stage, (stride, act, se) in enumerate(
        [(1, nn.ReLU, False), (2, nn.Hardswish, False), (2, nn.Hardswish, True)]
    ):
        out = arch.count(f"s{stage}.width")
        for block in range(arch.count(f"s{stage}.depth")):
            expand, kernel = (
                arch.count(f"s{stage}.b{block}.{gene}") for gene in ("expand", "kernel")
            )
            layers.append(
                _Block(width, _round8(width * expand), out, kernel, stride if block == 0 else 1, act, se,
                       skip=block > 0)
            )  # fmt: skip
            width = out
    last = arch.count("head.width")
    layers += [_conv(width, last, 1, act=nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(last, 10))


class _Block(nn.Module):
    def __init__(
        self, width: int, mid: int, out: int, kernel: int, stride: int, act: type[nn.Module],
        se: bool, *, skip: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.skip = skip
        self.expand = _conv(width, mid, 1, act=act)
        self.depthwise = _conv(mid, mid, kernel, stride=stride, groups=mid, act=act)
        self.gate = _gate(mid) if se else None
        self.project = _conv(mid, out, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depthwise(self.expand(x))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.skip else y


def _conv(
    width: int,
    out: int,
    kernel: int,
    *,
    act: type[nn.Module] | None,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    layers = [
        nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


def _gate(mid: int) -> nn.Sequential:
    squeezed = _round8(mid // 4)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(mid, squeezed, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(squeezed, mid, 1),
        nn.Hardsigmoid(inplace=True),
    )


def _round8(channels: int) -> int:
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
