"""The resnet family: every kind of stem and block agrees with itself, and with what is published."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fedofa.protos.manifest import FILE_NAMES
from fedofa.specialize.filesize import predicted_size_bytes
from fedofa.supernet.axes import layout, regions
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import space_from_dict
from fedofa.supernet.families.resnet import ResNetSpace
from fedofa.supernet.families.resnet_options import Stage, Stem
from fedofa.supernet.families.resnet_presets import PRESETS
from fedofa.supernet.space import Arch, Space, Value, plain
from fedofa.supernet.weights import shapes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import (
    check_counts,
    check_description,
    check_export,
    check_federated,
    check_views,
)
from strategies import architectures, ascending, nested
from test_cost import built, counted_peak_bytes, kept_bytes
from torch import nn

OFA, SUPERFEDNAS = PRESETS["ofa-resnet"], PRESETS["superfednas-resnet"]
SLIM, SMALL, SMALL_32 = (
    PRESETS[name] for name in ("slim-resnet", "small-resnet", "small-resnet-32")
)
DEEP = ResNetSpace(
    classes=4,
    in_channels=3,
    resolutions=(21, 22),
    stem=Stem(widths=(8,), mids=(4, 8), repeats=(0, 1), pool=True),
    stages=(
        Stage((16, 24), (1, 2), (0.25, 0.5)),
        Stage((16, 32), (1, 2), (0.25, 0.5), stride=2, block="basic"),
    ),
    divisor=4,
)
"""Every operator: max pooling, both blocks, shortcuts with and without pooling of an odd map."""
GROUPED = ResNetSpace(
    classes=4,
    in_channels=1,
    resolutions=(12,),
    stem=Stem(),
    stages=(
        Stage((16,), (2,), (1,), block="basic"),
        Stage((32,), (1,), (0.5,), stride=2),
    ),
    ratios=(0.25, 0.5, 1),
    norm_group=4,
    divisor=4,
)
"""Slimmable, its stem on the first stage's axis, with group normalization."""

single_stems = st.builds(
    Stem, widths=st.one_of(st.just(()), ascending((4, 8, 12))), stride=st.sampled_from((1, 2))
)
deep_stems = st.builds(
    Stem,
    widths=st.one_of(st.just(()), ascending((8, 12))),
    mids=ascending((4, 8)),
    repeats=ascending((0, 1, 2)),
    stride=st.sampled_from((1, 2)),
    pool=st.booleans(),
)
expands = st.lists(
    st.sampled_from((0.2, 0.25, 0.5, 1, 1.5)), min_size=1, max_size=3, unique=True
).map(lambda chosen: tuple(sorted(chosen)))
stages = st.builds(
    Stage,
    widths=ascending((8, 12, 16, 24)),
    depths=ascending((1, 2)),
    expands=expands,
    stride=st.sampled_from((1, 2)),
    block=st.sampled_from(("basic", "bottleneck")),
)
spaces: st.SearchStrategy[Space] = st.builds(
    ResNetSpace,
    classes=st.integers(2, 5),
    in_channels=st.sampled_from((1, 3)),
    resolutions=ascending((16, 17, 19, 22)),  # some maps are odd where a shortcut pools them
    stem=st.one_of(single_stems, deep_stems),
    stages=st.lists(stages, min_size=1, max_size=2).map(tuple),
    ratios=st.sampled_from(((1,), (0.25, 1), (0.3, 0.5, 1))),
    norm_group=st.sampled_from((0, 0, 2, 4)),
    divisor=st.just(4),
)
some_space = st.one_of(st.sampled_from((SMALL, SMALL_32)), spaces, spaces, spaces)
half = settings(max_examples=25)


@given(nested(some_space), st.integers(0, 99))
def test_views_extraction_and_a_separate_module_agree(
    drawn: tuple[Space, Arch, Arch], seed: int
) -> None:
    check_views(*drawn, seed)


@given(architectures(some_space))
def test_a_built_module_has_the_sizes_that_its_space_says(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    check_counts(space, arch)
    check_description(space)
    module = built(space, arch, "meta")
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == shapes_of(regions(space, arch))


@half
@given(architectures(some_space))
def test_peak_memory_is_what_stepping_through_the_module_finds(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    module, x = built(space, arch, "meta"), torch.zeros(1, *space.input_shape(arch), device="meta")
    assert cost(space, arch).peak_activation_bytes == counted_peak_bytes(module, x)


@half
@given(architectures(some_space))
def test_training_memory_is_what_autograd_keeps(drawn: tuple[Space, Arch]) -> None:
    """But for the statistics: a few numbers a channel of a batch, or a group of an example."""
    space, arch = drawn
    kept = kept_bytes(built(space, arch), torch.randn(32, *space.input_shape(arch)))
    assert cost(space, arch).train_activation_bytes == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("name", list(PRESETS))
def test_training_memory_of_the_presets_is_never_estimated_too_low(name: str) -> None:
    space, batch = PRESETS[name], 2 if name == "ofa-resnet" else 8
    arch = space.smallest()
    kept = kept_bytes(built(space, arch), torch.randn(batch, *space.input_shape(arch)))
    assert 0.99 * kept <= cost(space, arch).train_activation_bytes <= 1.001 * kept


@given(architectures(some_space))
def test_a_larger_neighbour_costs_no_less(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    spent = cost(space, arch).to_dict()
    for grown in space.grown(arch):
        more = cost(space, grown).to_dict()
        assert all(more[name] >= spent[name] for name in spent)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_comes_back_from_its_description_and_counts_right(name: str) -> None:
    space = PRESETS[name]
    check_description(space)
    for arch in (space.smallest(), space.largest(), space.sample(random.Random(0))):
        check_counts(space, arch)


@pytest.mark.parametrize("name", ["small-resnet", "small-resnet-32"])
def test_the_small_presets_span_more_than_16_times_their_smallest(name: str) -> None:
    space = PRESETS[name]
    low, high = cost(space, space.smallest()).macs, cost(space, space.largest()).macs
    assert 5e6 < high < 8e6
    assert low < high / 16


def architecture(
    space: Space, values: Mapping[str, Value], depths: Sequence[int], expand: Any
) -> Arch:
    """Of these values, depths per stage, and expand ratios: one, or one a block in their order."""
    found, ratios = (
        dict(values),
        iter(expand if isinstance(expand, list) else [expand] * sum(depths)),
    )
    for i, depth in enumerate(depths):
        found[f"s{i}.depth"] = depth
        found |= {f"s{i}.b{j}.expand": next(ratios) for j in range(depth)}
    return space.arch(found)


def stage_widths(*widths: int) -> dict[str, int]:
    return {f"s{i}.width": width for i, width in enumerate(widths)}


OFA_LARGEST = {"resolution": 224, "stem.mid": 32, "stem.width": 64} | stage_widths(
    256, 512, 1024, 2048
)
OFA_SMALLEST = {"resolution": 224, "stem.mid": 24, "stem.width": 40, "stem.repeat": 0}
OFA_MIXED = {"resolution": 128, "stem.mid": 24, "stem.width": 64, "stem.repeat": 0}


@pytest.mark.parametrize(
    ("arch", "macs", "params"),
    [
        (
            architecture(OFA, {**OFA_LARGEST, "stem.repeat": 1}, (4, 4, 6, 4), 0.35),
            7_491_643_904,
            48_105_992,
        ),
        (
            architecture(
                OFA, {**OFA_SMALLEST, **stage_widths(168, 336, 664, 1328)}, (2, 2, 4, 2), 0.2
            ),
            962_192_128,
            6_539_280,
        ),
        (
            architecture(
                OFA,
                {**OFA_MIXED, **stage_widths(168, 336, 664, 1328)},
                (4, 4, 4, 2),
                [0.25, 0.35, 0.35, 0.25, 0.25, 0.2, 0.35, 0.2, 0.25, 0.35, 0.2, 0.25, 0.35, 0.35],
            ),
            651_430_784,
            11_244_384,
        ),
        # ResNet-50D (He et al. 2019); its MACs are ResNet-50's 4,089,184,256 with the deep stem.
        (
            architecture(OFA, {**OFA_LARGEST, "stem.repeat": 1}, (3, 4, 6, 3), 0.25),
            4_089_184_256 - 112**2 * 3 * 64 * 49 + 112**2 * 9 * (3 * 32 + 32 * 32 + 32 * 64),
            25_576_264,
        ),
    ],
    ids=["largest", "smallest", "mixed", "resnet-50d"],
)
def test_once_for_all_networks_cost_what_is_published(arch: Arch, macs: int, params: int) -> None:
    """Counted on the modules that once-for-all's own code extracts."""
    spent = cost(OFA, arch)
    assert (spent.macs, spent.params) == (macs, params)


def test_the_superfednas_supernet_has_71_9_million_parameters_for_100_classes() -> None:
    space = replace(SUPERFEDNAS, classes=100)
    assert cost(space, space.largest()).params == 71_910_948
    low, high = cost(SUPERFEDNAS, SUPERFEDNAS.smallest()), cost(SUPERFEDNAS, SUPERFEDNAS.largest())
    assert 0.45e9 < low.macs < high.macs < 3.75e9  # the bounds of its four budgets


@pytest.mark.parametrize(
    ("widths", "expand", "macs", "params"),
    [
        (
            (128, 256, 512, 1024),
            [0.18, 0.1, 0.1, 0.18, 0.14, 0.1, 0.14, 0.14, 0.1, 0.1, 0.1, 0.1],
            458_237_952,
            8_176_266,
        ),
        (
            (128, 304, 512, 1024),
            [0.18, 0.14, 0.18, 0.14, 0.1, 0.1, 0.18, 0.14, 0.14, 0.14, 0.1, 0.14],
            558_704_640,
            10_008_218,
        ),
        (
            (232, 512, 816, 2048),
            [0.25, 0.1, 0.14, 0.14, 0.1, 0.1, 0.22, 0.14, 0.14, 0.14, 0.1, 0.1],
            1_558_482_944,
            32_274_666,
        ),
    ],
)
def test_networks_of_deepfednas_cost_what_is_published(
    widths: tuple[int, ...], expand: list[float], macs: int, params: int
) -> None:
    """SuperFedNAS's space with elastic widths. The third row is one of 8 in 60 whose table entry
    differs from the network that its own code extracts: that network's.
    """
    options = ((128, 232), (256, 304, 512), (512, 816), (1024, 2048))
    pairs = zip(SUPERFEDNAS.stages, options, strict=True)
    space = replace(SUPERFEDNAS, stages=tuple(replace(s, widths=w) for s, w in pairs))
    values = {"resolution": 32, "stem.width": 64, **stage_widths(*widths)}
    spent = cost(space, architecture(space, values, (3, 3, 3, 3), expand))
    assert (spent.macs, spent.params) == (macs, params)


def test_a_slimmable_network_scales_every_channel_axis_alike() -> None:
    """ResNet-18 for 32×32 images, in the widths of HeteroFL."""
    whole = cost(SLIM, SLIM.largest())
    assert (whole.macs, whole.params) == (555_422_720, 11_173_962)
    full = layout(SLIM)
    for ratio in SLIM.ratios:
        values = {**SLIM.largest(), "ratio": ratio}
        for name, shape in shapes_of(regions(SLIM, SLIM.arch(values))).items():
            scaled = [
                size if axis is None else size * ratio
                for size, axis in zip(full[name].shape, full[name].axes, strict=True)
            ]
            assert list(shape) == scaled, name


def test_a_stem_without_widths_of_its_own_needs_no_projection_behind_it() -> None:
    projections = {name.split(".shortcut")[0] for name in layout(SLIM) if ".shortcut" in name}
    assert projections == {"stages.1.0", "stages.2.0", "stages.3.0"}
    assert any(name.startswith("stages.0.0.shortcut") for name in layout(SMALL))


def test_groups_of_a_subnet_are_groups_of_the_supernet() -> None:
    for arch in (GROUPED.smallest(), GROUPED.largest()):
        layers = list(built(GROUPED, arch, "meta").modules())
        norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
        assert len(norms) == 9
        assert {norm.num_channels / norm.num_groups for norm in norms} == {4}
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


def test_a_description_of_an_architecture_gives_widths_and_ratios() -> None:
    assert DEEP.describe(DEEP.largest()) == "r22 8*2-8 24[e0.5 e0.5] 32[e0.5 e0.5]"
    assert SLIM.describe(SLIM.smallest()) == "r32 4 4[e1 e1] 8[e1 e1] 16[e1 e1] 32[e1 e1]"


STAGE = {"widths": [8], "depths": [1], "expands": [0.5]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 1}, ["classes", "1"]),
        ({"in_channels": 0}, ["in_channels", "0"]),
        ({"divisor": 0}, ["divisor", "0"]),
        ({"resolutions": [3, 28]}, ["resolutions = (3, 28)", "at least 4"]),
        ({"resolutions": [28, 20]}, ["resolution", "[28, 20]", "ascending"]),
        ({"resolutions": []}, ["resolution"]),
        ({"resolutions": "28"}, ["resolutions", "28"]),
        ({"ratios": [0.5]}, ["ratios = (0.5,)", "must be 1"]),
        ({"ratios": []}, ["ratios", "must be 1"]),
        ({"ratios": [0.5, 0.25, 1]}, ["ratio", "ascending"]),
        ({"ratios": [0, 1]}, ["ratios = (0, 1)", "above 0"]),
        ({"ratios": [float("nan"), 1]}, ["ratios", "nan"]),
        ({"ratios": [True]}, ["ratios", "True"]),
        ({"norm_group": 3}, ["norm_group = 3", "divisor = 4"]),
        ({"norm_group": -1}, ["norm_group", "-1"]),
        ({"stem": None}, ["stem", "None"]),
        ({"stem": {"width": [8]}}, ["width", "fields"]),
        ({"stem": {"widths": [8, 4]}}, ["stem.width", "[8, 4]", "ascending"]),
        ({"stem": {"widths": [6]}}, ["stem: widths = (6,)", "divisor = 4"]),
        ({"stem": {"mids": [8]}}, ["mids = (8,)", "repeats = ()"]),
        ({"stem": {"mids": [8], "repeats": [-1]}}, ["repeats", "-1"]),
        ({"stem": {"mids": [6], "repeats": [0]}}, ["stem: mids = (6,)", "divisor = 4"]),
        ({"stem": {"stride": 3}}, ["stem: stride = 3", "(1, 2)"]),
        ({"stem": {"pool": 1}}, ["pool = 1", "true or false"]),
        ({"stages": 3}, ["stages"]),
        ({"stages": []}, ["stages"]),
        ({"stages": [1]}, ["stages"]),
        ({"stages": [{"widths": [8]}]}, ["depths", "fields"]),
        ({"stages": [{**STAGE, "widths": [8, 10]}]}, ["stage 0: widths = (8, 10)", "10", "= 4"]),
        ({"stages": [{**STAGE, "widths": {"a": 1}}]}, ["widths", "whole numbers"]),
        ({"stages": [{**STAGE, "depths": [0, 1]}]}, ["depths = (0, 1)", "at least 1"]),
        ({"stages": [{**STAGE, "expands": [0.5, 0.25]}]}, ["s0.b0.expand", "ascending"]),
        ({"stages": [{**STAGE, "expands": ["a"]}]}, ["expands", "'a'"]),
        ({"stages": [{**STAGE, "expands": [9]}]}, ["expands = (9,)", "at most 8"]),
        ({"stages": [{**STAGE, "stride": 4}]}, ["stage: stride = 4", "(1, 2)"]),
        ({"stages": [{**STAGE, "block": "wide"}]}, ["block = 'wide'", "basic, bottleneck"]),
        ({"colour": "red"}, ["colour", "fields"]),
    ],
)
def test_a_space_that_cannot_be_is_a_usage_error(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        space_from_dict({**plain(SMALL.to_dict()), **change})
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", [SMALL, GROUPED], ids=["batch-norm", "group-norm"])
def test_a_fleet_trains_it(space: ResNetSpace, tmp_path: Path) -> None:
    check_federated(space, tmp_path, rounds=2)


def check_files(space: ResNetSpace, arch: Arch, folder: Path, seed: int = 0) -> None:
    """What every family's files must be, and as large as predicted."""
    check_export(space, arch, folder, seed)
    for kind, name in FILE_NAMES.items():
        predicted = predicted_size_bytes(kind, space.layers(arch))
        assert predicted == pytest.approx((folder / name).stat().st_size, rel=0.05), kind


@pytest.mark.slow
def test_it_exports_with_float_and_int8_files_that_do_what_it_does(tmp_path: Path) -> None:
    check_files(DEEP, DEEP.largest(), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_50_random_architectures_export(tmp_path: Path) -> None:
    rng = random.Random(3)
    for seed in range(50):
        space = (SMALL, SMALL_32, DEEP)[seed % 3]
        check_files(space, space.sample(rng), tmp_path / str(seed), seed)


@pytest.mark.slow
def test_group_normalization_exports(tmp_path: Path) -> None:
    check_export(GROUPED, GROUPED.largest(), tmp_path)
