"""One selection, everything follows: views, extraction, transport and modules agree."""

import math
import random
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.supernet.axes import (
    Selection,
    accumulate,
    centred,
    cut,
    indices,
    layout,
    layout_of,
    length,
    prefix,
    put,
    regions,
    relative,
    shape_of,
    take,
    view,
)
from fedofa.supernet.errors import ArtifactError, UsageError
from fedofa.supernet.families.catalogue import PRESETS, preset, space_from_dict
from fedofa.supernet.families.mobilenet import MobileNetSpace, Stage
from fedofa.supernet.families.mobilenet_blocks import make_divisible
from fedofa.supernet.space import Arch, Gene, Space, plain
from fedofa.supernet.subnet import extract, on_views, regions_within, static
from fedofa.supernet.weights import digest, gather, initial, load, save, shapes_of, split
from hypothesis import given
from hypothesis import strategies as st
from invariants import (
    assert_close,
    check_views,
    positions,
    scattered,
    shared_weights,
)
from invariants import (
    inputs as images,
)
from strategies import DIGITS, architectures, nested, spaces
from torch import nn


@given(nested(), st.integers(0, 99))
def test_views_extraction_and_a_separate_module_agree(
    drawn: tuple[Space, Arch, Arch], seed: int
) -> None:
    check_views(*drawn, seed)


@given(architectures())
def test_values_come_back_from_the_flat_array_as_they_went_in(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    shared, where = shared_weights(space), regions(space, arch)
    flat = gather(shared, where)
    back = split(flat, shapes_of(where))
    oracle = {n: shared[n].numpy()[np.ix_(*map(positions, r))] for n, r in where.items()}
    assert back.keys() == oracle.keys()
    assert all(np.array_equal(back[name].numpy(), oracle[name]) for name in oracle)
    assert flat.size == sum(p.numel() for p in space.build(arch).parameters())
    copied = take(shared, where)
    assert all(torch.equal(copied[name], back[name]) for name in back)


def test_an_array_of_another_size_is_refused() -> None:
    shapes = shapes_of(regions(DIGITS, DIGITS.smallest()))
    with pytest.raises(ValueError, match="need"):
        split(np.zeros(3, np.float32), shapes)


@given(nested())
def test_a_subnet_inside_another_lies_where_its_values_are(drawn: tuple[Space, Arch, Arch]) -> None:
    space, outer, inner = drawn
    shared = shared_weights(space)
    held = take(shared, regions(space, outer))
    direct = take(shared, regions(space, inner))
    through = take(held, regions_within(space, inner, outer))
    assert direct.keys() == through.keys()
    assert all(torch.equal(direct[name], through[name]) for name in direct)


def test_relative_finds_positions_of_any_order() -> None:
    outer = Selection({"a": (5, 1, 9, 3)})
    assert relative(outer, Selection({"a": (9, 5)})).index["a"] == (2, 0)
    assert relative(outer, Selection({"a": (1, 9, 3)})).index["a"] == slice(1, 4)
    assert relative(Selection({"a": slice(2, 8)}), Selection({"a": (3, 6)})).index["a"] == (1, 4)
    assert relative(Selection({"a": slice(2, 8)}), Selection({"a": slice(3, 6)})).index[
        "a"
    ] == slice(1, 4)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({"a": slice(0, 4)}, {"a": slice(2, 5)}),
        ({"a": slice(1, 4)}, {"a": slice(0, 2)}),
        ({"a": (1, 2)}, {"a": (3,)}),
        ({"a": slice(0, 4)}, {"b": slice(0, 1)}),
    ],
)
def test_taking_what_the_outer_subnet_lacks_is_an_error(
    outer: dict[str, slice], inner: dict[str, slice]
) -> None:
    with pytest.raises(ValueError, match="axis"):
        relative(Selection(outer), Selection(inner))


@given(architectures(), st.integers(0, 2**32 - 1))
def test_the_hull_contains_both_and_is_no_larger_than_it_must_be(
    drawn: tuple[Space, Arch], seed: int
) -> None:
    space, first = drawn
    second = space.sample(random.Random(seed))
    hull = space.hull(first, second)
    assert space.contains(hull, first)
    assert space.contains(hull, second)
    assert space.arch(dict(hull)) == hull
    for smaller in space.shrunk(hull):
        assert not (space.contains(smaller, first) and space.contains(smaller, second))
    shared = layout(space)
    for arch in (first, second):  # containment of genes is containment of values
        for name, region in regions(space, arch).items():
            whole = np.zeros(shared[name].shape, bool)
            whole[np.ix_(*map(positions, regions(space, hull)[name]))] = True
            assert whole[np.ix_(*map(positions, region))].all()


@given(nested(), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_every_operation_on_architectures_gives_a_valid_one(
    drawn: tuple[Space, Arch, Arch], seed: int, probability: float
) -> None:
    space, outer, inner = drawn
    rng = random.Random(seed)
    other = space.sample(rng)
    assert space.contains(outer, inner)
    assert space.contains(space.largest(), outer)
    assert space.contains(outer, space.smallest())
    found = [
        inner,
        space.mutate(outer, probability, rng),
        space.crossover(outer, other, rng),
        *space.grown(outer),
        *space.shrunk(outer),
    ]
    assert all(space.arch(dict(arch)) == arch for arch in found)
    assert all(space.contains(a, outer) and a != outer for a in space.grown(outer))
    assert all(space.contains(outer, a) and a != outer for a in space.shrunk(outer))
    assert space.grown(space.largest()) == space.shrunk(space.smallest()) == []
    assert space.mutate(outer, 0.0, rng) == outer


INDEX = st.integers(1, 6).flatmap(
    lambda size: st.one_of(
        st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
            lambda pair: (size, slice(pair[0], max(pair[0] + 1, pair[1])))
        ),
        # A window that rolls over the end, and any choice in any order.
        st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
            lambda pair: (size, tuple((pair[0] + k) % size for k in range(pair[1])))
        ),
        st.lists(st.integers(0, size - 1), min_size=1, unique=True).map(
            lambda chosen: (size, tuple(chosen))
        ),
    )
)


@given(st.lists(INDEX, min_size=1, max_size=4), st.integers(0, 99))
def test_any_selection_reads_and_writes_what_numpy_would(
    dims: list[tuple[int, slice | tuple[int, ...]]], seed: int
) -> None:
    shape, region = tuple(size for size, _ in dims), tuple(index for _, index in dims)
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    at = np.ix_(*map(positions, region))
    assert shape_of(region) == base[at].shape
    assert np.array_equal(view(torch.from_numpy(base), region).numpy(), base[at])
    taken = take({"w": torch.from_numpy(base)}, {"w": region})["w"]
    assert np.array_equal(taken.numpy(), base[at])
    assert np.array_equal(gather({"w": torch.from_numpy(base)}, {"w": region}), base[at].ravel())
    taken.zero_()  # a copy: the source keeps its values

    values = rng.normal(size=base[at].shape).astype(np.float32)
    total, oracle = torch.from_numpy(base.copy()), base.copy()
    accumulate(total, region, torch.from_numpy(values), 0.5)
    oracle[at] += np.float32(0.5) * values
    np.testing.assert_allclose(total.numpy(), oracle, rtol=1e-6, atol=1e-6)

    target, oracle = torch.from_numpy(base.copy()), base.copy()
    put(target, region, torch.from_numpy(values))
    oracle[at] = values
    assert np.array_equal(target.numpy(), oracle)
    put(target, region, 7.0)
    oracle[at] = 7.0
    assert np.array_equal(target.numpy(), oracle)

    gradient = np.zeros_like(base)
    gradient[at] = values
    for differentiable in (view, cut):
        leaf = torch.from_numpy(base.copy()).requires_grad_()
        part = differentiable(leaf, region)
        assert np.array_equal(part.detach().numpy(), base[at])
        part.backward(torch.from_numpy(values))  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        assert np.array_equal(leaf.grad.numpy(), gradient)


def test_gradients_of_several_subnets_add_up_on_the_same_weights() -> None:
    shared = shared_weights(DIGITS)
    archs = [DIGITS.largest(), DIGITS.smallest(), DIGITS.sample(random.Random(0))]
    leaves = {name: value.clone().requires_grad_() for name, value in shared.items()}
    expected = {name: torch.zeros_like(value) for name, value in shared.items()}
    for arch in archs:
        x = images(DIGITS, arch, seed=0)
        on_views(DIGITS, arch, leaves)(x).square().sum().backward()  # type: ignore[no-untyped-call]
        module = extract(DIGITS, arch, shared).train()
        module(x).square().sum().backward()
        own = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        for name, gradient in scattered(own, DIGITS, arch, shared).items():
            expected[name] += gradient
    assert_close({n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}, expected)


def test_a_tensor_taken_whole_is_not_copied() -> None:
    leaf = torch.ones(4, 2)
    assert cut(leaf, (slice(0, 4), slice(0, 2))) is leaf


def test_a_subnet_that_has_run_or_failed_holds_on_to_no_weights() -> None:
    arch = DIGITS.smallest()
    shared = initial(DIGITS, 0)
    held = take(shared, regions(DIGITS, arch))
    alive = [weakref.ref(value) for value in held.values()]
    forward = on_views(DIGITS, arch, held, arch)
    forward(images(DIGITS, arch, seed=0))
    with pytest.raises(RuntimeError):
        forward(torch.zeros(1, 99, 8, 8))
    del held, forward
    assert not any(reference() is not None for reference in alive)


def test_indices_become_a_slice_where_they_can() -> None:
    assert indices([3, 4, 5]) == slice(3, 6)
    assert indices([3, 5]) == (3, 5)
    assert indices([1, 0]) == (1, 0)
    assert centred(3, 7) == slice(2, 5)
    assert prefix(4) == slice(0, 4)
    assert length((4, 2)) == length(slice(2, 4)) == 2


def test_slices_share_memory_with_the_supernet_and_copies_do_not() -> None:
    shared = initial(DIGITS, 0)
    name, region = next(iter(regions(DIGITS, DIGITS.smallest()).items()))
    assert view(shared[name], region).data_ptr() == shared[name].data_ptr()
    copied = take(shared, {name: region})[name]
    before = shared[name].clone()
    copied.add_(1)
    assert torch.equal(shared[name], before)


@given(architectures())
def test_a_subnet_takes_the_first_channels_and_the_middle_of_kernels(
    drawn: tuple[Space, Arch],
) -> None:
    space, arch = drawn
    shared = shared_weights(space)
    for name, value in extract(space, arch, shared).named_parameters():
        whole = shared[name].numpy()
        edge = (whole.shape[-1] - value.shape[-1]) // 2 if "conv" in name and value.dim() > 1 else 0
        first = [slice(0, size) for size in value.shape[:2]]
        middle = [slice(edge, edge + size) for size in value.shape[2:]]
        assert np.array_equal(value.detach().numpy(), whole[(*first, *middle)]), name


@given(architectures())
def test_a_built_module_has_just_the_tensors_that_its_selection_names(
    drawn: tuple[Space, Arch],
) -> None:
    space, arch = drawn
    module = space.build(arch)
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == shapes_of(
        regions(space, arch)
    )
    assert module(images(space, arch, 0, batch=2)).shape == (2, space.classes)  # type: ignore[attr-defined]


def test_a_parameter_without_axes_is_an_error_and_not_silently_unshared() -> None:
    with pytest.raises(ValueError, match=r"0\.weight"):
        layout_of(nn.Sequential(nn.Linear(2, 2)))


def test_a_static_module_takes_exactly_its_own_tensors() -> None:
    arch = DIGITS.smallest()
    values = take(initial(DIGITS, 0), regions(DIGITS, arch))
    assert digest(dict(static(DIGITS, arch, values).named_parameters())) == digest(values)
    missing = dict(list(values.items())[:-1])
    with pytest.raises(ValueError, match=r"head\.classifier\.bias"):
        static(DIGITS, arch, missing)
    with pytest.raises(ValueError, match="surplus"):
        static(DIGITS, arch, {**values, "surplus": torch.zeros(1)})


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = digest(initial(DIGITS, 7))
    torch.manual_seed(2)
    torch.randn(5)
    assert digest(initial(DIGITS, 7)) == first
    assert digest(initial(DIGITS, 8)) != first
    state = torch.get_rng_state()
    initial(DIGITS, 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_weights_are_spread_as_he_et_al_say() -> None:
    for name, value in initial(PRESETS["mobile"], 0).items():
        if name.endswith("conv.weight") and value.numel() > 20_000:
            fan_out = value.shape[0] * math.prod(value.shape[2:])
            fan_out //= value.shape[0] if value.shape[1] == 1 else 1
            assert float(value.std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.05), name
        if name.endswith("bn.weight"):
            assert bool((value == 1).all())


def test_a_weights_file_comes_back_bit_for_bit_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    weights, path = initial(DIGITS, 0), tmp_path / "w.safetensors"
    save(path, weights, {"round": "3"})
    assert digest(load(path)) == digest(weights)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match=r"w\.safetensors"):
        load(path)
    with pytest.raises(ArtifactError, match=r"none\.safetensors"):
        load(tmp_path / "none.safetensors")


def test_the_digest_sees_names_shapes_and_bytes() -> None:
    one = {"a": torch.zeros(2, 2)}
    others = [{"b": torch.zeros(2, 2)}, {"a": torch.zeros(4)}, {"a": torch.full((2, 2), -0.0)}]
    assert len({digest(w) for w in [one, *others]}) == 4
    assert digest({"a": torch.zeros(2), "b": torch.ones(1)}) == digest(
        {"b": torch.ones(1), "a": torch.zeros(2)}
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"s1.depth": None}, ["s1.depth", "missing", "(1, 2)"]),
        ({"s0.b0.kernel": 4}, ["s0.b0.kernel = 4", "(3, 5)"]),
        ({"s0.b0.kernel": "3"}, ["s0.b0.kernel", "(3, 5)"]),
        ({"s1.b1.kernel": 3}, ["s1.b1.kernel", "does not matter"]),
        ({"s0.b0.kernl": 3}, ["unknown gene", "did you mean 's0.b0.kernel'"]),
        ({"zzz": 3}, ["unknown gene 'zzz'"]),
        ({"head.width": [48]}, ["head.width", "(32, 96)"]),
    ],
)
def test_a_wrong_architecture_is_refused_naming_gene_value_and_what_is_allowed(
    change: dict[str, object], words: list[str]
) -> None:
    values: dict[str, Any] = {**DIGITS.smallest(), **change}
    with pytest.raises(UsageError) as error:
        DIGITS.arch({k: v for k, v in values.items() if v is not None})
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).count("\n") == 0


def test_an_architecture_is_one_value_however_it_was_written() -> None:
    small = DIGITS.smallest()
    shuffled = dict(sorted(small.items(), reverse=True))
    assert DIGITS.arch(shuffled) == small
    assert hash(DIGITS.arch(shuffled)) == hash(small) == hash(Arch(shuffled))
    assert small != DIGITS.largest()
    assert Arch({"a": 1}) != {"a": 1}


@given(spaces)
def test_a_space_comes_back_from_its_description(space: MobileNetSpace) -> None:
    description = plain(space.to_dict())
    back = space_from_dict(description)
    assert back == space
    assert hash(back) == hash(space)
    assert plain(back.to_dict()) == description


@pytest.mark.parametrize(
    "change",
    [
        {"family": "resnet"},
        {"family": ["mobilenet"]},
        {"stages": 3},
        {"stages": []},
        {"stages": [1]},
        {"stages": [{"widths": [8]}]},
        {"stages": None},
        {"classes": 1},
        {"classes": "ten"},
        {"in_channels": 0},
        {"resolutions": []},
        {"resolutions": 8},
        {"resolutions": [8, 8]},
        {"resolutions": [9, 8]},
        {"resolutions": ["8"]},
        {"resolutions": [8.5]},
        {"resolutions": [0]},
        {"stem_widths": [-8, 8]},
        {"head_widths": [0, 8]},
        {"feature_widths": (-1,)},
        {"stem_act": "gelu"},
        {"stem_stride": 0},
        {"divisor": 0},
        {"colour": "red"},
        {"stages": [{"widths": [8], "depths": [1], "expands": [2], "kernels": [4]}]},
        {"stages": [{"widths": [8], "depths": [0], "expands": [2], "kernels": [3]}]},
        {"stages": [{"widths": [8], "depths": [1], "expands": [], "kernels": [3]}]},
        {"stages": [{"widths": [8], "depths": [1], "expands": [2], "kernels": [3], "act": "tanh"}]},
        {"stages": [{"widths": [8.5], "depths": [1], "expands": [2], "kernels": [3]}]},
        {"stages": [{"widths": 8, "depths": [1], "expands": [2], "kernels": [3]}]},
    ],
)
def test_a_space_that_cannot_be_is_a_usage_error(change: dict[str, object]) -> None:
    with pytest.raises(UsageError) as error:
        space_from_dict({**plain(DIGITS.to_dict()), **change})
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize("name", ["digit", "", ["digits"], 3, None])
def test_an_unknown_preset_is_a_usage_error_listing_the_known_ones(name: object) -> None:
    with pytest.raises(UsageError, match="digits, small"):
        preset(name)  # type: ignore[arg-type]


def test_a_gene_without_ascending_options_cannot_be() -> None:
    for options in ((), (2, 1), (1, 1)):
        with pytest.raises(UsageError, match="gene g"):
            Gene("g", options)
    with pytest.raises(UsageError, match="odd"):
        Stage((8,), (1,), (2,), (2,))


@given(st.floats(0.5, 500), st.sampled_from((4, 8)))
def test_rounded_channels_lose_at_most_a_tenth_and_grow_with_their_argument(
    channels: float, divisor: int
) -> None:
    rounded = make_divisible(channels, divisor)
    assert rounded % divisor == 0
    assert rounded >= max(divisor, 0.9 * channels)
    assert rounded <= max(divisor, channels + divisor)
    steps = [make_divisible(channels + 0.5 * k, divisor) for k in range(20)]
    assert all(a <= b for a, b in pairwise(steps))
