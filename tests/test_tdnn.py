"""The tdnn family: its networks agree with themselves, also behind concatenations, and export."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from buffers import peak_bytes
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.server.aggregation.update import Update
from fedofa.supernet.axes import layout, regions
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS, space_from_dict
from fedofa.supernet.families.tdnn import TdnnSpace
from fedofa.supernet.families.tdnn_options import BlockOptions
from fedofa.supernet.space import Arch, Space, Value, plain
from fedofa.supernet.subnet import batch_norms, extract
from fedofa.supernet.weights import gather, shapes_of
from hypothesis import given
from hypothesis import strategies as st
from invariants import (
    check_counts,
    check_description,
    check_export,
    check_federated,
    check_views,
    inputs,
    positions,
    shared_weights,
    stepped,
)
from strategies import architectures, ascending, nested
from test_cost import built, kept_bytes

HAR, DIGITS, MEL = (PRESETS[f"tdnn-{name}"] for name in ("har", "digits", "mel"))
GROUPED = replace(DIGITS, norm_group=4)  # type: ignore[type-var]

blocks = st.builds(
    BlockOptions,
    widths=ascending((8, 16, 24), most=3),
    kernels=ascending((1, 3, 5), most=3),
    dilation=st.integers(1, 3),
    scale=st.sampled_from((1, 1, 2, 4)),
    se=st.booleans(),
)


def space_of(blocks: list[BlockOptions], shallow: int, **fields: Any) -> TdnnSpace:
    """A space that may leave out its last `shallow` blocks."""
    least = max(1, len(blocks) - shallow)
    return TdnnSpace(blocks=tuple(blocks), depths=tuple(range(least, len(blocks) + 1)), **fields)


spaces: st.SearchStrategy[Space] = st.builds(
    space_of,
    blocks=st.lists(blocks, min_size=1, max_size=2),
    shallow=st.integers(0, 1),
    classes=st.integers(2, 5),
    in_channels=st.sampled_from((1, 6)),
    steps=st.integers(8, 21),
    stem_widths=ascending((4, 8, 12)),
    aggregate_widths=ascending((8, 12, 24)),
    embed_widths=st.sampled_from(((), (8,), (4, 12))),
    stem_kernel=st.sampled_from((1, 3, 5)),
    stem_stride=st.integers(1, 3),
    divisor=st.just(4),
    norm_group=st.sampled_from((0, 0, 0, 2)),
)
"""Small spaces: one or two blocks, Res2 groups or none, with and without an embedding."""

some_space = st.one_of(st.sampled_from((HAR, DIGITS)), spaces, spaces, spaces)


@given(nested(some_space), st.integers(0, 99))
def test_views_extraction_and_a_separate_module_agree(
    drawn: tuple[Space, Arch, Arch], seed: int
) -> None:
    check_views(*drawn, seed)


@given(architectures(some_space))
def test_a_built_module_has_the_sizes_that_the_space_says(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    check_counts(space, arch)
    check_description(space)
    module = built(space, arch, "meta")
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == shapes_of(regions(space, arch))


@given(architectures(some_space))
def test_peak_memory_is_what_stepping_through_the_module_finds(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    module, x = built(space, arch, "meta"), torch.zeros(1, *space.input_shape(arch), device="meta")
    assert cost(space, arch).peak_activation_bytes == peak_bytes(module, x)


@given(architectures(some_space))
def test_training_memory_is_what_autograd_keeps(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    kept = kept_bytes(built(space, arch), torch.randn(32, *space.input_shape(arch)))
    # Group normalization keeps two numbers a group more: many, where a group is 2 channels × 3 steps.
    within = 0.03 if batch_norms(built(space, arch, "meta")) else 0.1
    assert cost(space, arch).train_activation_bytes == pytest.approx(kept, rel=within)


@given(architectures(some_space))
def test_a_larger_neighbour_costs_no_less(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    spent = cost(space, arch).to_dict()
    for grown in space.grown(arch):
        more = cost(space, grown).to_dict()
        assert all(more[name] >= spent[name] for name in spent)


TINY = TdnnSpace(
    classes=2,
    in_channels=3,
    steps=16,
    stem_widths=(4,),
    blocks=(BlockOptions((8, 16), (1, 3, 5), scale=2), BlockOptions((8, 12), (3,))),
    depths=(1, 2),
    aggregate_widths=(8, 12),
    divisor=4,
)


def arch_of(space: Space, **changed: Value) -> Arch:
    """The largest architecture but for these genes, `b0_width` for b0.width."""
    genes = {name.replace("_", "."): value for name, value in changed.items()}
    return space.arch({**space.largest(), **genes})


def test_what_follows_a_concatenation_takes_the_first_channels_of_each_part() -> None:
    where = regions(TINY, arch_of(TINY, b0_width=8, b1_width=8, aggregate_width=8))
    assert where["aggregate.conv.weight"][1] == (*range(8), *range(16, 24))  # of 16 + 12
    assert where["head.classifier.weight"][1] == (*range(8), *range(12, 20))  # of 12 + 12
    # Two Res2 groups of 8 channels each, of which 4 are used.
    assert where["blocks.0.enter.conv.weight"][0] == (*range(4), *range(8, 12))
    assert where["blocks.0.enter.bn.weight"][0] == where["blocks.0.leave.conv.weight"][1]
    assert where["blocks.0.dilated.convs.0.conv.weight"][:2] == (slice(0, 4), slice(0, 4))
    shallow = TINY.arch({g: v for g, v in TINY.largest().items() if g[:2] != "b1"} | {"depth": 1})
    assert regions(TINY, shallow)["aggregate.conv.weight"][1] == slice(0, 16)


@given(st.integers(0, 2**32 - 1))
def test_an_update_changes_exactly_the_coordinates_that_the_subnet_has(seed: int) -> None:
    rng = random.Random(seed)
    shared, arch = shared_weights(TINY), TINY.sample(rng)
    where = regions(TINY, arch)
    mean = OverlapMean(shapes_of(regions(TINY, TINY.largest())))
    ones = np.ones_like(gather(shared, where))
    mean.add(Update("d", ones, where, weight=rng.choice((0.5, 1, 3))))
    found = mean.result()
    merged, trained = stepped(shared, found), found.trained
    for name, tensor in shared.items():
        inside = np.zeros(tuple(tensor.shape), bool)
        if name in where:
            inside[np.ix_(*map(positions, where[name]))] = True
        assert np.array_equal(inside, (merged[name] != tensor).numpy()), name
        mask = trained[name]
        assert np.array_equal(inside, np.broadcast_to(np.asarray(mask), inside.shape)), name
    assert sum(int((merged[n] != t).sum()) for n, t in shared.items()) == cost(TINY, arch).params


def test_channels_that_an_architecture_leaves_out_do_not_matter_to_it() -> None:
    arch = arch_of(TINY, b0_width=8, b1_width=8, aggregate_width=8)
    shared, x = shared_weights(TINY), inputs(TINY, arch, 0)
    before = extract(TINY, arch, shared).train()(x)
    for name, region in regions(TINY, arch).items():
        outside = np.ones(tuple(shared[name].shape), bool)
        outside[np.ix_(*map(positions, region))] = False
        shared[name][torch.from_numpy(outside)] = torch.nan
    assert torch.equal(before, extract(TINY, arch, shared).train()(x))


@pytest.mark.parametrize(("scale", "dilation"), [(1, 1), (4, 3)])
def test_a_smaller_kernel_is_the_largest_with_zeros_around_it(scale: int, dilation: int) -> None:
    block = BlockOptions((8,), (1, 3, 5), dilation=dilation, scale=scale)
    space = replace(TINY, blocks=(block,), depths=(1,))
    shared, x = shared_weights(space), inputs(space, space.largest(), 0)
    small = extract(space, arch_of(space, b0_kernel=3), shared).train()(x)
    for name, tensor in shared.items():
        if ".dilated." in name and tensor.dim() == 4:
            tensor[..., [0, 4]] = 0
    large = extract(space, space.largest(), shared).train()(x)
    assert torch.allclose(small, large, atol=1e-6)


def test_the_statistics_are_weighted_mean_and_half_the_weighted_mean_absolute_deviation() -> None:
    pool: Any = built(TINY, TINY.largest()).get_submodule("head.pool")
    x = torch.randn(3, 12, 1, 16, generator=torch.Generator().manual_seed(0)).relu()
    weight = torch.nn.functional.hardsigmoid(pool.expand(pool.reduce(x))) + 1 / 16
    mean = np.average(x, axis=3, weights=weight.detach())
    distance = (x - torch.from_numpy(mean)[..., None]).abs()
    deviation = np.average(distance, axis=3, weights=weight.detach()) / 2
    by_numpy = np.concatenate([mean, deviation], 1)[..., 0]
    assert np.abs(pool(x).detach().numpy() - by_numpy).max() < 1e-5


def test_the_presets_build_and_run() -> None:
    for space in (HAR, DIGITS, MEL):
        check_description(space)
        for arch in (space.smallest(), space.largest(), space.sample(random.Random(0))):
            check_counts(space, arch)
            assert space.describe(arch)
    for space in (HAR, DIGITS):
        assert cost(space, space.smallest()).macs * 16 < cost(space, space.largest()).macs
    assert 3e6 < cost(HAR, HAR.largest()).macs < 6e6
    assert layout(MEL)["aggregate.conv.weight"].shape == (1536, 4 * 512, 1, 1)


def test_a_fleet_trains_it(tmp_path: Path) -> None:
    check_federated(DIGITS, tmp_path)


@pytest.mark.slow
def test_it_exports_with_float_and_int8_files_that_do_what_it_does(tmp_path: Path) -> None:
    check_export(DIGITS, DIGITS.arch({**DIGITS.smallest(), "b0.kernel": 5}), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_random_architectures_export(tmp_path: Path) -> None:
    rng = random.Random(0)
    for seed in range(50):
        space = (HAR, DIGITS, GROUPED)[seed % 3]
        check_export(space, space.sample(rng), tmp_path / str(seed), seed)


FIELDS: Mapping[str, object] = plain(TINY.to_dict())
BLOCK: Mapping[str, object] = {"widths": [8, 16], "scale": 2}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("classes", 1, "classes = .*at least 2"),
        ("steps", "16", "steps = .*whole numbers"),
        ("steps", 2, "steps = 2; at least stem_stride = 3"),
        ("stem_widths", [8, 4], "stem.width: options .*ascending"),
        ("stem_widths", [], "stem.width: options .*at least one"),
        ("stem_widths", 8, "stem_widths = 8"),
        ("stem_kernel", 4, "stem_kernel = 4; odd"),
        ("depths", [1], "depths = .*the last one must be 2"),
        ("depths", [], "depths = .*the last one must be 2"),
        ("depths", [0, 2], "depths = .*at least 1"),
        ("blocks", [], "blocks must be at least one"),
        ("blocks", "two", "blocks must be a list"),
        ("blocks", [3, 4], "blocks must be a list of tables"),
        ("aggregate_widths", [True], "aggregate_widths = "),
        ("norm_group", 3, "multiples of norm_group = 3"),
        ("norm_group", -1, "norm_group = "),
        ("divisor", 0, "divisor = "),
        ("width", [8], "unexpected keyword argument 'width'; fields"),
    ],
)
def test_a_space_that_cannot_be_names_the_field(field: str, value: object, said: str) -> None:
    stride = {"stem_stride": 3} if said.endswith("3") and field == "steps" else {}
    with pytest.raises(UsageError, match=said):
        space_from_dict({**FIELDS, **stride, field: value})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("kernels", [1, 2], "kernels = .*odd"),
        ("kernels", [3, 1], "b0.kernel: options .*ascending"),
        ("widths", [8, 9], "multiples of scale = 2 expected, not 9"),
        ("dilation", 0, "dilation = "),
        ("se", 1, "se = 1; true or false"),
        ("widths", None, "widths = None"),
        ("depth", 2, "unexpected keyword argument 'depth'"),
        ("widths", [6], "multiples of scale 2 × norm_group = 4 expected, not 6"),
    ],
)
def test_a_block_that_cannot_be_names_the_field(field: str, value: object, said: str) -> None:
    fields = {**FIELDS, "norm_group": 2, "blocks": [{**BLOCK, field: value}] * 2}
    with pytest.raises(UsageError, match=said):
        space_from_dict(fields)
