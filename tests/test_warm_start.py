"""Shared weights out of a larger or equal network: consistent selection, and what it is worth."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from declared_spaces import RESNET, TRUSTED, declared
from fedofa.supernet.axes import layout, regions, take
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.declared import DeclaredSpace
from fedofa.supernet.families.mlp import MlpSpace
from fedofa.supernet.families.mobilenet import MobileNetSpace
from fedofa.supernet.families.tdnn import TdnnSpace
from fedofa.supernet.families.tdnn_options import BlockOptions
from fedofa.supernet.families.vit import Stage, VitSpace
from fedofa.supernet.space import Space
from fedofa.supernet.structure import Stretch, positions_of, structure_of
from fedofa.supernet.subnet import extract, static
from fedofa.supernet.warm_start import evenly, warm_start
from fedofa.supernet.weights import initial
from hypothesis import given
from hypothesis import strategies as st
from invariants import inputs, shared_weights
from strategies import SMALL
from torch import Tensor
from torch.nn.functional import cross_entropy
from toy_networks import digits

assert isinstance(SMALL, MobileNetSpace)
NARROW = replace(
    SMALL,
    stem_widths=(8,),
    stages=tuple(replace(s, widths=s.widths[:1], expands=(2,), kernels=(3,)) for s in SMALL.stages),
    head_widths=(96,),
)
"""Inside SMALL: its smallest widths and kernels, all of its blocks; with squeeze-and-excitation."""


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", TRUSTED)


def resnet(width: int, **fields: Any) -> DeclaredSpace:
    """The toy ResNet with so many channels, all of its widths named."""
    widths = {"conv1": [width], "layer?.*.conv1": [0.5, 1.0], "layer2.0.conv2": [2 * width]}
    return DeclaredSpace.from_dict(
        {**RESNET, "arguments": {"width": width}, "widths": widths, **fields}
    )


def tdnn(width: int) -> TdnnSpace:
    """Res2 groups with group normalization, a plain block, and both side by side behind them."""
    return TdnnSpace(
        classes=3,
        in_channels=2,
        steps=9,
        stem_widths=(width,),
        blocks=(
            BlockOptions((4 * width,), (3,), scale=4),
            BlockOptions((2 * width,), (3,), se=False),
        ),
        depths=(2,),
        aggregate_widths=(3 * width,),
        divisor=2,
        norm_group=2,
    )


def mlp(width: int) -> MlpSpace:
    return MlpSpace(3, 5, (width,), (2 * width,), (2,), norm_group=2)


def vit(embeds: tuple[int, int], heads: int) -> VitSpace:
    stages = tuple(
        Stage((embed,), (1,), (heads,), qkv=4 * heads, hiddens=(6 * embed,)) for embed in embeds
    )
    return VitSpace(classes=3, in_channels=1, resolution=8, patch=2, stages=stages)


PAIRS: Mapping[str, Callable[[], tuple[Space, Space]]] = {
    "resnet": lambda: (resnet(16), resnet(6)),
    "mobilenet": lambda: (SMALL, NARROW),
    "tdnn": lambda: (tdnn(8), tdnn(4)),
    "mlp": lambda: (mlp(8), mlp(4)),
}


@given(st.integers(1, 64), st.integers(0, 64))
def test_evenly_spaced_positions_are_ascending_distinct_and_start_at_the_first(
    size: int, more: int
) -> None:
    found = evenly(size + more, size)
    assert found[0] == 0
    assert len(set(found)) == len(found) == size
    assert found == sorted(found)
    assert found[-1] < size + more
    if more % size == 0:
        assert {b - a for a, b in pairwise(found)} <= {1 + more // size}
    elif size > 1:
        assert found[-1] == size + more - 1


def test_positions_on_an_axis_that_is_made_of_others() -> None:
    parts = [Stretch("a", 4, repeat=3), Stretch(None, 2), Stretch("b", 5)]
    found = positions_of(parts, {"a": [0, 2], "b": [4, 1]}, {"a": 4, "b": 5})
    assert found == [0, 1, 2, 6, 7, 8, 12, 13, 18, 15]
    wider = positions_of(parts, {"a": [5], "b": [0]}, {"a": 6, "b": 9})
    assert wider == [15, 16, 17, 18, 19, 20]


def sizes(space: Space) -> dict[str, int]:
    pairs = [pair for t in layout(space).values() for pair in zip(t.axes, t.shape, strict=True)]
    return {axis: size for axis, size in pairs if axis is not None}


def only(
    space: Space, weights: Mapping[str, Tensor], taken: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """A larger network's weights in which every channel that was not taken is dead."""
    found, full = {}, sizes(space)
    chosen: dict[str, Sequence[int]] = {axis: range(size) for axis, size in full.items()}
    chosen.update(taken)
    for made, stretches in structure_of(space).composed.items():
        taken = {**taken, made: positions_of(stretches, chosen, full)}
    for name, tensor in layout(space).items():
        value = weights[name].clone()
        for dim, axis in enumerate(tensor.axes):
            if axis is None or axis not in taken or axis.endswith(".k"):
                continue
            dead = [p for p in range(value.shape[dim]) if p not in taken[axis]]
            value.index_fill_(dim, torch.tensor(dead, dtype=torch.int64), 0.0)
        found[name] = value
    return found


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "tdnn", "mlp"])
def test_a_larger_network_with_only_the_taken_channels_alive_does_the_same(family: str) -> None:
    """The selection is consistent: what a layer reads is what its producers were taken for."""
    large, small = PAIRS[family]()
    weights = shared_weights(large)
    found = warm_start(small, weights)
    assert found.taken
    assert not found.fresh
    pruned = only(large, weights, json.loads(json.dumps(found.to_dict()))["taken"])
    kernels = {gene: v for gene, v in small.largest().items() if gene.endswith("kernel")}
    arch = large.arch({**large.largest(), **kernels})
    before = extract(large, arch, pruned).eval()
    after = static(small, small.largest(), found.weights).eval()
    x = inputs(small, small.largest(), 0)
    assert torch.allclose(before(x), after(x), atol=1e-5)


def test_a_transformer_gives_whole_heads_and_embeddings_that_go_on_from_stage_to_stage() -> None:
    found = warm_start(vit((4, 6), heads=2), shared_weights(vit((8, 14), heads=4)))
    assert found.taken["stages.0.blocks.0.qkv"] == [0, 1, 2, 3, 8, 9, 10, 11]
    # What passes the reduction lands in the channels of the same numbers.
    assert (found.taken["s0.embed"], found.taken["s1.embed"]) == ([*range(4)], [*range(6)])
    assert found.taken["stages.0.blocks.0.hidden"] == evenly(48, 24)


def test_from_a_supernet_the_prefix_is_taken_which_is_extraction() -> None:
    weights = shared_weights(SMALL)
    found = warm_start(NARROW, weights, nested=True)
    expected = take(weights, regions(SMALL, SMALL.arch(NARROW.largest())))
    assert found.weights.keys() == expected.keys()
    assert all(torch.equal(found.weights[name], expected[name]) for name in expected)


def test_equal_shapes_are_copied_and_nothing_is_selected() -> None:
    space = resnet(8)
    module = space.build(space.largest())
    found = warm_start(space, module)
    assert found.taken == {}
    assert found.unused == ()
    for name, value in module.named_parameters():
        assert torch.equal(found.weights[name], value)
        assert found.weights[name].data_ptr() != value.data_ptr()


def test_joined_and_flattened_features_are_taken_with_their_channels() -> None:
    space = declared("MIXED")
    wide = {name: torch.randn(shape) for name, shape in wide_mixed().items()}
    found = warm_start(space, wide)
    left, right, reduce = (list(found.taken[f"{n}.out"]) for n in ("left", "right", "reduce"))
    assert (left, right) == (evenly(16, 8), evenly(30, 12))
    assert reduce == [0, 1, 4, 5, 8, 9, 12, 13]  # whole groups of two
    joined = left + [16 + p for p in right]
    assert torch.equal(found.weights["depthwise.weight"], wide["depthwise.weight"][joined])
    features = [9 * channel + k for channel in reduce for k in range(9)]
    hidden = list(found.taken["hidden.out"])
    assert torch.equal(found.weights["hidden.weight"], wide["hidden.weight"][hidden][:, features])


def wide_mixed() -> dict[str, tuple[int, ...]]:
    """Shapes of the mixed network with about twice the channels."""
    return {
        "left.weight": (16, 2, 3, 3), "left.bias": (16,), "right.weight": (30, 2, 1, 1),
        "right.bias": (30,), "depthwise.weight": (46, 1, 5, 5), "depthwise.bias": (46,),
        "squeeze.weight": (8, 46, 1, 1), "squeeze.bias": (8,), "expand.weight": (46, 8, 1, 1),
        "expand.bias": (46,), "reduce.weight": (16, 46, 1, 1), "norm.weight": (16,),
        "norm.bias": (16,), "slope.weight": (16,), "hidden.weight": (48, 144),
        "hidden.bias": (48,), "last.weight": (48,), "last.bias": (48,), "out.weight": (3, 48),
        "out.bias": (3,),
    }  # fmt: skip


def test_a_classifier_for_other_classes_is_drawn_anew_where_that_is_asked_for() -> None:
    space = resnet(8)
    source = resnet(16, arguments={"width": 16, "classes": 9})
    weights = shared_weights(source)
    with pytest.raises(UsageError, match=r"fc\.weight is \(9, 32\).*name it in `fresh`"):
        warm_start(space, weights)
    found = warm_start(space, weights, fresh=["fc.*"], seed=5)
    assert found.fresh == ("fc.weight", "fc.bias")
    assert set(found.unused) == {"fc.weight", "fc.bias"}
    assert torch.equal(found.weights["fc.weight"], initial(space, 5)["fc.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": None}, r"no tensor fc\.weight; name it in `fresh`"),
        ({"conv1.weight": (4, 1, 5, 5)}, r"conv1\.weight: axis conv1\.out has 4 .* at least 8"),
        (
            {"bn1.weight": (12,)},
            r"axis conv1\.out has 8 .* conv1\.weight and 12 in its bn1\.weight",
        ),
        ({"fc.bias": (1, 4)}, r"fc\.bias is \(1, 4\)"),
        ({"conv1.weight": (8, 1, 6, 6)}, r"axis conv1\.k: a kernel of 5 has no centre in one of 6"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_naming_tensor_and_axis(
    change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    space = resnet(8)
    source = shared_weights(space)
    for name, shape in change.items():
        source.pop(name)
        if shape is not None:
            source[name] = torch.zeros(shape)
    with pytest.raises(UsageError, match=message):
        warm_start(space, source)


def test_a_reader_of_what_is_drawn_anew_must_be_drawn_anew_too() -> None:
    space, wide = declared("MIXED"), {n: torch.zeros(s) for n, s in wide_mixed().items()}
    fresh = ["reduce.*", "norm.*", "slope.*"]
    with pytest.raises(UsageError, match=r"hidden\.weight reads reduce\.out, which is drawn anew"):
        warm_start(space, wide, fresh=fresh)
    with pytest.raises(UsageError, match="leaves no tensor to take"):
        warm_start(space, wide, fresh=["*"])
    with pytest.raises(UsageError, match=r"depthwise\.weight: axis left.out\+right.out has 46"):
        warm_start(
            space, {**wide, "left.weight": torch.zeros(18, 2, 3, 3), "left.bias": torch.zeros(18)}
        )


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    space = resnet(8)
    with pytest.raises(UsageError, match=r"'fc\.wieght' matches no tensor; .* 'fc\.weight'"):
        warm_start(space, shared_weights(space), fresh=["fc.wieght"])


def trained(space: Space, weights: Mapping[str, Tensor], steps: int, seed: int = 0) -> float:
    """Accuracy on held-out digits after so many steps, with batch statistics."""
    torch.manual_seed(seed)
    data = digits()
    module = static(space, space.largest(), weights).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        cross_entropy(module(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, value in module.named_parameters():
        weights[name].copy_(value.detach())
    with torch.no_grad():
        right = module(torch.from_numpy(data.test_x)).argmax(1) == torch.from_numpy(data.test_y)
    return float(right.float().mean())


def test_a_warm_start_is_20_points_ahead_after_5_steps() -> None:
    large = resnet(16, input_size=[1, 8, 8], resolutions=[], arguments={"width": 16, "classes": 10})
    small = resnet(8, input_size=[1, 8, 8], resolutions=[], arguments={"width": 8, "classes": 10})
    source = initial(large, 0)
    assert trained(large, source, 100) > 0.9
    scratch = trained(small, initial(small, 1), 5)
    warm = trained(small, warm_start(small, source).weights, 5)
    assert warm > scratch + 0.2, (warm, scratch)
