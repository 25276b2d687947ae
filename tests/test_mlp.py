"""The mlp family: its networks agree with themselves, train over a fleet and export."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from buffers import peak_bytes
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.server.aggregation.update import Update
from fedofa.supernet.axes import regions
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS, space_from_dict
from fedofa.supernet.families.mlp import MlpSpace
from fedofa.supernet.space import Arch, Space, plain
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
from torch import nn

SMALL, ADULT = PRESETS["mlp-small"], PRESETS["mlp-adult"]
GROUPED = replace(ADULT, norm_group=8)  # type: ignore[type-var]
PLAIN = replace(ADULT, norm=False)  # type: ignore[type-var]

normalizations = st.sampled_from(((True, 0), (True, 0), (False, 0), (True, 4)))
spaces: st.SearchStrategy[Space] = normalizations.flatmap(
    lambda norm: st.builds(
        MlpSpace,
        classes=st.integers(2, 5),
        features=st.integers(1, 20),
        widths=ascending((4, 8, 12, 20)),
        hidden_widths=ascending((4, 8, 16, 24), most=3),
        depths=ascending((0, 1, 2, 3), most=3),
        norm=st.just(norm[0]),
        norm_group=st.just(norm[1]),
    )
)
"""Small spaces: up to three blocks; batch, group or no normalization."""

some_space = st.one_of(st.sampled_from((SMALL, ADULT)), spaces, spaces, spaces)


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
    module, batch = built(space, arch), 64
    kept = kept_bytes(module, torch.randn(batch, *space.input_shape(arch)))
    # The loss keeps labels and logarithms; batch normalization four vectors a batch, group
    # normalization two numbers a group.
    kept -= 8 + 4 * space.layers(arch)[-1].out_channels + 4 / batch
    kept -= sum(16 * norm.num_features / batch for norm in batch_norms(module).values())
    kept -= sum(8 * m.num_groups for m in module.modules() if isinstance(m, nn.GroupNorm))
    assert cost(space, arch).train_activation_bytes == pytest.approx(kept, abs=1)


@given(architectures(some_space))
def test_a_larger_neighbour_costs_no_less(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    spent = cost(space, arch).to_dict()
    for grown in space.grown(arch):
        more = cost(space, grown).to_dict()
        assert all(more[name] >= spent[name] for name in spent)


def test_a_network_without_blocks_is_what_its_two_layers_compute() -> None:
    space = MlpSpace(
        classes=3, features=5, widths=(4, 8), hidden_widths=(4,), depths=(0, 2), norm=False
    )
    arch = space.arch({"width": 4, "depth": 0})
    shared, x = shared_weights(space), inputs(space, arch, 0)
    first, bias = shared["stem.linear.weight"][:4], shared["stem.linear.bias"][:4]
    last = shared["classifier.weight"][:, :4], shared["classifier.bias"]
    by_hand = torch.relu(x @ first.T + bias) @ last[0].T + last[1]
    assert torch.allclose(extract(space, arch, shared)(x), by_hand, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_an_update_changes_exactly_the_coordinates_that_the_subnet_has(seed: int) -> None:
    shared, arch = shared_weights(SMALL), SMALL.sample(random.Random(seed))
    where = regions(SMALL, arch)
    mean = OverlapMean(shapes_of(regions(SMALL, SMALL.largest())))
    mean.add(Update("d", np.ones_like(gather(shared, where)), where, weight=2.0))
    merged = stepped(shared, mean.result())
    for name, tensor in shared.items():
        inside = np.zeros(tuple(tensor.shape), bool)
        if name in where:
            inside[np.ix_(*map(positions, where[name]))] = True
        assert np.array_equal(inside, (merged[name] != tensor).numpy()), name


def test_the_presets_build_and_run() -> None:
    for space in (SMALL, ADULT):
        check_description(space)
        for arch in (space.smallest(), space.largest(), space.sample(random.Random(0))):
            check_counts(space, arch)
            assert space.describe(arch)
        assert cost(space, space.smallest()).macs * 16 < cost(space, space.largest()).macs


def test_a_fleet_trains_it(tmp_path: Path) -> None:
    check_federated(ADULT, tmp_path)


def test_it_exports_with_float_and_int8_files_that_do_what_it_does(tmp_path: Path) -> None:
    check_export(ADULT, ADULT.sample(random.Random(1)), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_random_architectures_export(tmp_path: Path) -> None:
    rng = random.Random(0)
    for seed in range(50):
        space = (SMALL, ADULT, GROUPED, PLAIN)[seed % 4]
        check_export(space, space.sample(rng), tmp_path / str(seed), seed)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("classes", 1, "classes = .*at least 2"),
        ("features", 0, "features = .*at least 1"),
        ("features", [3], "features = .*whole numbers"),
        ("widths", [8, 4], "gene width: options .*ascending"),
        ("widths", [], "gene width: options .*at least one"),
        ("hidden_widths", "wide", "hidden_widths = 'wide'"),
        ("hidden_widths", [], "b0.hidden: options .*at least one"),
        ("depths", [], "gene depth: options .*at least one"),
        ("depths", [-1, 2], "depths = .*at least 0"),
        ("norm", "batch", "norm = 'batch'; true or false"),
        ("norm_group", 5, "widths = .*multiples of norm_group = 5 expected, not 16"),
        ("layers", 3, "unexpected keyword argument 'layers'; fields"),
    ],
)
def test_a_space_that_cannot_be_names_the_field(field: str, value: object, said: str) -> None:
    fields = {**plain(SMALL.to_dict()), field: value}
    with pytest.raises(UsageError, match=said):
        space_from_dict(fields)


def test_groups_without_normalization_are_refused() -> None:
    with pytest.raises(UsageError, match="norm_group = 4; needs norm = true"):
        space_from_dict({**plain(SMALL.to_dict()), "norm": False, "norm_group": 4})
