"""Several subnets in one masked pass give what each gives alone, on its own rows."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from fedofa.supernet.axes import Selection, indices, regions, tag, take
from fedofa.supernet.cost import LayerPlan
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS
from fedofa.supernet.families.layers import Layers
from fedofa.supernet.families.mobilenet import MobileNetSpace
from fedofa.supernet.families.vit import Stage, VitSpace
from fedofa.supernet.masked import check_masked, group_sizes, masked
from fedofa.supernet.space import Arch, Gene, Space
from fedofa.supernet.subnet import on_views
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import shared_weights
from strategies import DIGITS, SMALL, spaces
from torch import Tensor, nn

Weights = dict[str, Tensor]
AUTOFORMER = VitSpace(
    classes=5, in_channels=3, resolution=16, patch=4,
    stages=(
        Stage(embeds=(16, 24, 32), depths=(1, 2, 3), heads=(1, 2, 3), qkv=24, ratios=(1, 2),
              relative=2),
    ),
)  # fmt: skip
RESNAS = VitSpace(
    classes=5, in_channels=3, resolution=16, patch=4,
    stages=(
        Stage(embeds=(16, 24), depths=(1, 2), heads=(0, 1, 2), qkv=16, hiddens=(0, 16, 32)),
        Stage(embeds=(24, 32, 48), depths=(1, 2), heads=(0, 2, 4), qkv=32, hiddens=(0, 32)),
    ),
)  # fmt: skip
SMALL_RESNET: Any = PRESETS["small-resnet"]
RESNET = replace(SMALL_RESNET, resolutions=(8,))


def several(space: Space, seed: int, count: int = 4, outer: Arch | None = None) -> list[Arch]:
    """Random subnets of one input shape."""
    rng = random.Random(seed)
    outer = outer or space.largest()
    drawn = [space.sample_within(outer, rng) for _ in range(3 * count)]
    shape = space.input_shape(drawn[0])
    return [arch for arch in drawn if space.input_shape(arch) == shape][:count]


def batch(space: Space, archs: Sequence[Arch], seed: int, dtype: torch.dtype) -> Tensor:
    rows = 3 * len(archs) + 1  # not as many for each
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *space.input_shape(archs[0]), generator=generator, dtype=dtype)


def leaves_of(space: Space, seed: int, dtype: torch.dtype) -> Weights:
    return {n: w.to(dtype).requires_grad_() for n, w in shared_weights(space, seed).items()}


def gradients(outputs: Sequence[Tensor], leaves: Mapping[str, Tensor]) -> Weights:
    """Of an uneven sum of all outputs."""
    loss = torch.stack(
        [(y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)).sum() for y in outputs]
    ).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in pairs}


def check(
    space: Space, archs: Sequence[Arch], seed: int, dtype: torch.dtype = torch.float64
) -> None:
    """In double precision, where nothing but a mistake can tell both ways apart, or in single."""
    near = 1e-7 if dtype == torch.float64 else 1e-5
    leaves, x = leaves_of(space, seed, dtype), batch(space, archs, seed, dtype)
    together = masked(space, archs, leaves)(x)
    parts = x.split(group_sizes(len(x), len(archs)))  # type: ignore[no-untyped-call]
    alone = [on_views(space, arch, leaves)(part) for arch, part in zip(archs, parts, strict=True)]
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=near, atol=near)
    summed, one_by_one = gradients(together, leaves), gradients(alone, leaves)
    for name, gradient in one_by_one.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((summed[name] - gradient).abs().max()) < 10 * near * scale, name


@settings(max_examples=12)
@given(spaces, st.integers(0, 2**16), st.integers(1, 5))
def test_outputs_and_gradients_are_those_of_the_subnets(
    space: MobileNetSpace, seed: int, count: int
) -> None:
    # A shortcut that projects where widths differ, and only there, is refused: see below.
    space = replace(space, project=False)
    check(space, several(space, seed, count), seed)


@pytest.mark.parametrize(
    "space",
    [RESNAS, RESNET, replace(RESNET, norm_group=4)],
    ids=["transformer", "batch norm", "group norm"],
)
def test_transformers_and_residual_networks_can_be_masked(space: Space) -> None:
    for seed in range(3):
        check(space, several(space, seed), seed)


@pytest.mark.parametrize("space", [DIGITS, AUTOFORMER], ids=["digits", "relative positions"])
def test_in_single_precision_outputs_differ_by_less_than_1e_5(space: Space) -> None:
    for seed in range(3):
        check(space, several(space, seed), seed, torch.float32)


def test_subnets_inside_an_assigned_one_run_on_its_own_tensors() -> None:
    outer = DIGITS.sample(random.Random(5))
    shared = leaves_of(DIGITS, 2, torch.float64)
    held = take(shared, regions(DIGITS, outer))
    archs = several(DIGITS, 3, outer=outer)
    x = batch(DIGITS, archs, 0, torch.float64)
    for mine, theirs in zip(
        masked(DIGITS, archs, held, outer)(x), masked(DIGITS, archs, shared)(x), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_no_group_sees_the_others_rows_in_its_statistics() -> None:
    archs = several(DIGITS, 4, 2)
    leaves, x = leaves_of(DIGITS, 0, torch.float32), batch(DIGITS, archs, 0, torch.float32)
    first, other = masked(DIGITS, archs, leaves)(x)
    changed = torch.cat([x[: len(first)], 100 * x[len(first) :]])
    again, moved = masked(DIGITS, archs, leaves)(changed)
    assert torch.equal(again, first)
    assert not torch.allclose(moved, other)


def test_groups_are_as_equal_as_can_be() -> None:
    assert group_sizes(9, 4) == [3, 2, 2, 2]
    assert group_sizes(8, 4) == [2, 2, 2, 2]
    assert group_sizes(3, 1) == [3]


def test_subnets_of_different_resolutions_are_refused() -> None:
    archs = [SMALL.smallest(), SMALL.largest()]
    with pytest.raises(UsageError, match=r"input shapes \[\(1, 20, 20\), \(1, 28, 28\)\]"):
        masked(SMALL, archs, leaves_of(SMALL, 0, torch.float32))


def test_subnets_that_do_something_else_than_their_hull_are_refused() -> None:
    digits: Any = DIGITS
    space: Space = replace(digits, project=True)
    same = {**space.smallest()}
    projecting = space.arch({**same, "s1.width": 16, "s2.width": 32})
    straight = space.arch({**same, "s1.width": 32, "s2.width": 32})
    leaves = leaves_of(space, 0, torch.float32)
    masked(space, [straight], leaves)
    with pytest.raises(UsageError, match=r"at stages\.2\.0 .* does something else"):
        masked(space, [projecting, straight], leaves)


@dataclass(frozen=True)
class Toy(Space):
    """A hidden layer of every other channel or of all; what follows it is the test's matter."""

    kind: str

    family = "toy"

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        return (Gene("width", (4, 8)),)

    def select(self, arch: Arch) -> Selection:
        return Selection({"mid": indices(range(0, 8, 8 // arch.count("width")))})

    def build(self, arch: Arch) -> nn.Module:
        return ToyNet(self.kind, Layers(self.select(arch)))

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        return (LayerPlan("last", "linear", 3, arch.count("width"), 1, arch.count("width"), 3),)

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        return (6,)

    def to_dict(self) -> dict[str, object]:
        return {"kind": self.kind}


class ToyNet(nn.Module):
    def __init__(self, kind: str, make: Layers) -> None:
        super().__init__()
        self.kind = kind
        self.first = make.linear("mid", 6, std=1.0)
        self.middle: nn.Module = nn.Identity()
        if kind == "layer norm":
            self.middle = make.layer_norm("mid")
        if kind == "batch norm":
            self.middle = tag(nn.BatchNorm1d(make.size("mid")), weight=("mid",), bias=("mid",))
        if kind in ("last table", "first table"):
            self.middle = Table(make, last=kind == "last table")
        self.last = make.linear(3, "mid", std=1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x))
        if self.kind == "softmax":
            x = x.softmax(1)
        logits: Tensor = self.last(x)
        return logits


class Table(nn.Module):
    def __init__(self, make: Layers, *, last: bool) -> None:
        super().__init__()
        shape, axes = ((1, make.size("mid")), (None, "mid"))
        self.last = last
        self.table = nn.Parameter(torch.empty(shape if last else shape[::-1]))
        tag(self, table=axes if last else axes[::-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.table if self.last else self.table.transpose(0, 1))


@pytest.mark.parametrize("kind", ["plain", "layer norm", "batch norm", "last table"])
def test_channels_that_are_no_prefix_are_masked_too(kind: str) -> None:
    space = Toy(kind)
    check(space, [space.smallest(), space.largest(), space.smallest()], 0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("softmax", r"outputs of .* differ"), ("first table", r"middle \(Table\) has tensors")],
)
def test_a_family_that_mixes_channels_in_an_unknown_way_is_refused(kind: str, reason: str) -> None:
    space: Any = Toy(kind)
    archs = [space.smallest(), space.largest()]
    leaves = leaves_of(space, 0, torch.float32)
    x = batch(space, archs, 0, torch.float32)
    with pytest.raises(UsageError, match=f"family toy does not allow it; .*{reason}"):
        check_masked(space, archs, leaves, None, x)


def test_checking_leaves_the_pass_trainable() -> None:
    archs = several(DIGITS, 9)
    leaves, x = leaves_of(DIGITS, 0, torch.float32), batch(DIGITS, archs, 0, torch.float32)
    check_masked(DIGITS, archs, leaves, None, x)
    masked(DIGITS, archs, leaves)(x)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves.values())
