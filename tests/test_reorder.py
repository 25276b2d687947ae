"""Channels sorted by importance: the same function, the most important first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from declared_spaces import TRUSTED, declared
from fedofa.supernet.axes import Selection, layout, prefix, tag
from fedofa.supernet.cost import LayerPlan
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS
from fedofa.supernet.families.mlp import MlpSpace
from fedofa.supernet.families.vit import Stage, VitSpace
from fedofa.supernet.reorder import importance, permuted, reorder, sortable
from fedofa.supernet.space import Arch, Gene, Space
from fedofa.supernet.structure import Structure, structure_of
from fedofa.supernet.subnet import extract
from invariants import inputs, shared_weights
from strategies import DIGITS, SMALL
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", TRUSTED)


MLP = MlpSpace(
    classes=3, features=5, widths=(2, 4), hidden_widths=(2, 4), depths=(1,), norm_group=2
)
VIT = VitSpace(
    classes=3,
    in_channels=1,
    resolution=8,
    patch=4,
    stages=(Stage((4, 8), (1,), (1, 2), qkv=8, hiddens=(4, 8), relative=1),),
)
SPACES: Mapping[str, Callable[[], Space]] = {
    "digits": lambda: DIGITS,
    "small": lambda: SMALL,
    "tdnn": lambda: PRESETS["tdnn-digits"],
    "resnet": lambda: declared("RESNET"),
    "mixed": lambda: declared("MIXED"),
    "squeezenet": lambda: declared("SQUEEZENET"),
}


@pytest.mark.parametrize("name", SPACES)
def test_sorting_leaves_the_function_as_it_was(name: str) -> None:
    space = SPACES[name]()
    weights, arch = shared_weights(space), space.largest()
    found, x = reorder(space, weights), inputs(space, arch, 0)
    assert any(list(places) != sorted(places) for places in found.order.values())
    with torch.no_grad():
        before = extract(space, arch, weights).eval()(x)
        after = extract(space, arch, found.weights).eval()(x)
    assert float((before - after).abs().max()) <= 1e-5 * max(1.0, float(before.abs().max()))


@pytest.mark.parametrize("name", SPACES)
def test_importances_do_not_increase_and_every_value_is_still_there(name: str) -> None:
    space = SPACES[name]()
    weights = shared_weights(space)
    found = reorder(space, weights)
    again = importance(space, found.weights)
    for axis, places in found.order.items():
        assert sorted(places) == list(range(len(places)))
        unit = len(places) // len(found.importance[axis])
        per_unit = again[axis].view(-1, unit).sum(1)
        assert torch.allclose(per_unit, found.importance[axis])
        assert bool((per_unit.diff() <= 1e-9).all())
    for name_, value in weights.items():
        assert torch.equal(value.flatten().sort()[0], found.weights[name_].flatten().sort()[0])


def test_importance_is_the_l1_norm_of_what_makes_a_channel_and_of_what_reads_it() -> None:
    space = declared("MIXED")
    w = {name: value.double().abs() for name, value in shared_weights(space).items()}
    found = importance(space, w)
    made, read = w["reduce.weight"].sum((1, 2, 3)), w["hidden.weight"].sum(0).view(8, 9).sum(1)
    assert torch.allclose(found["reduce.out"], made + read)
    through = [w["depthwise.weight"].sum((1, 2, 3)), w["squeeze.weight"].sum((0, 2, 3)),
               w["expand.weight"].sum((1, 2, 3)), w["reduce.weight"].sum((0, 2, 3))]  # fmt: skip
    joined = torch.stack(through).sum(0)
    assert torch.allclose(found["left.out"], w["left.weight"].sum((1, 2, 3)) + joined[:8])
    assert torch.allclose(found["right.out"], w["right.weight"].sum((1, 2, 3)) + joined[8:])


def test_kernels_keep_their_centre_and_outputs_their_classes() -> None:
    weights = shared_weights(SMALL)
    found = reorder(SMALL, weights)
    assert not [axis for axis in found.order if axis.endswith(".k")]
    for name in weights:
        if name.endswith("conv.weight"):
            assert torch.allclose(
                weights[name].sum((0, 1)), found.weights[name].sum((0, 1)), atol=1e-4
            )
    assert torch.equal(weights["head.classifier.bias"], found.weights["head.classifier.bias"])


def test_every_channel_axis_of_the_families_is_sorted() -> None:
    for space in (DIGITS, SMALL, PRESETS["tdnn-har"], declared("RESNET"), declared("SQUEEZENET")):
        axes = {axis for t in layout(space).values() for axis in t.axes if axis}
        plain = {a for a in axes - structure_of(space).composed.keys() if not a.endswith(".k")}
        assert set(sortable(space)) == plain


def test_momentum_is_sorted_with_its_weights() -> None:
    weights = shared_weights(DIGITS)
    found = reorder(DIGITS, weights)
    momentum = {name: 3.0 * value for name, value in weights.items()}
    for name, value in permuted(DIGITS, momentum, found.order).items():
        assert torch.equal(value, 3.0 * found.weights[name])
    back = {a: tuple(torch.tensor(p).argsort().tolist()) for a, p in found.order.items()}
    restored = permuted(DIGITS, found.weights, back)
    assert all(torch.equal(restored[name], value) for name, value in weights.items())


class Heads(nn.Module):
    """Features in heads of 4, each divided by its own largest."""

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        size = selection.size("mid")
        self.first = tag(nn.Linear(5, size), weight=("mid", None), bias=("mid",))
        self.last = tag(nn.Linear(size, 3), weight=(None, "mid"), bias=(None,))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.first(x).view(len(x), -1, 4)
        logits: Tensor = self.last((heads.softmax(2) * heads).flatten(1))
        return logits


@dataclass(frozen=True)
class HeadSpace(Space):
    """One to three heads."""

    family = "heads"

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        return (Gene("heads", (1, 2, 3)),)

    def select(self, arch: Arch) -> Selection:
        return Selection({"mid": prefix(4 * arch.count("heads"))})

    def build(self, arch: Arch) -> nn.Module:
        return Heads(self.select(arch))

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        raise NotImplementedError

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        return (5,)

    def to_dict(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class StatedHeadSpace(HeadSpace):
    """The same, and it says that heads are whole."""

    def structure(self) -> Structure:
        return Structure(units={"mid": 4})


def test_an_axis_whose_order_has_a_meaning_is_left_alone() -> None:
    space = HeadSpace()
    weights = shared_weights(space)
    found = reorder(space, weights)
    assert found.order == {}
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)


@pytest.mark.parametrize("space", [MLP, VIT], ids=lambda space: space.family)
def test_groups_and_heads_keep_their_channels(space: Space) -> None:
    """Of few groups a random order may keep all by chance."""
    weights, x = shared_weights(space), inputs(space, space.largest(), 0)
    found = reorder(space, weights)
    assert any(list(order) != sorted(order) for order in found.order.values())
    before = extract(space, space.largest(), weights).eval()(x)
    after = extract(space, space.largest(), found.weights).eval()(x)
    assert torch.allclose(before, after, atol=1e-5)


def test_an_axis_of_which_a_family_says_what_stays_together_is_sorted_by_that() -> None:
    space = StatedHeadSpace()
    weights, x = shared_weights(space, 3), inputs(space, space.largest(), 0)
    found = reorder(space, weights)
    order = found.order["mid"]
    assert order != tuple(range(12))
    assert all(order[k : k + 4] == tuple(range(order[k], order[k] + 4)) for k in (0, 4, 8))
    before = extract(space, space.largest(), weights)(x)
    after = extract(space, space.largest(), found.weights)(x)
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stem.linear.weight": None}, r"stem\.linear\.weight is missing; expected: \(4, 5\)"),
        (
            {"classifier.bias": torch.zeros(7)},
            r"classifier\.bias is \(7,\); expected: \(3,\)\. .*warm_start",
        ),
        ({"fc.bias": torch.zeros(7)}, r"fc\.bias is \(7,\); expected: no such tensor"),
    ],
)
def test_weights_of_another_space_are_refused_naming_tensor_and_shapes(
    change: dict[str, Tensor | None], words: str
) -> None:
    weights: dict[str, Tensor | None] = {**shared_weights(MLP), **change}
    given = {name: value for name, value in weights.items() if value is not None}
    for use in (lambda: reorder(MLP, given), lambda: extract(MLP, MLP.largest(), given)):
        with pytest.raises(UsageError, match=words):
            use()


def test_an_architecture_of_another_space_is_refused() -> None:
    with pytest.raises(UsageError, match="architecture: width is missing"):
        extract(MLP, VIT.largest(), shared_weights(MLP))
