"""Batch-norm statistics merged from devices against one place, and against two-pass numpy."""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedofa.supernet.batchnorm import Moments, collect, load, merge
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import batch_norms

from strategies import DIGITS, architectures


def module_of(space: Space, arch: Arch, seed: int) -> nn.Module:
    module = space.build(arch)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return module


def batches_of(space: Space, arch: Arch, seed: int, count: int) -> list[Tensor]:
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    shape = space.input_shape(arch)
    return [3 * torch.randn(rng.randint(2, 6), *shape, generator=generator) for _ in range(count)]


def pooled(module: nn.Module, batches: list[Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of every norm layer's inputs, all kept and counted in two passes."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in batch_norms(module)}
    module = copy.deepcopy(module).train()
    for name, layer in batch_norms(module).items():
        layer.register_forward_pre_hook(
            lambda _layer, inputs, name=name: seen[name].append(
                inputs[0].detach().double().transpose(0, 1).flatten(1).numpy().copy()
            )
        )
    with torch.no_grad():
        for x in batches:
            module(x)
    joined = {name: np.concatenate(parts, axis=1) for name, parts in seen.items()}
    return {name: (x.mean(axis=1), x.var(axis=1)) for name, x in joined.items()}


@given(architectures(), st.integers(0, 99), st.integers(1, 4))
@settings(max_examples=20)
def test_statistics_merged_from_devices_equal_those_of_one_place(
    drawn: tuple[Space, Arch], seed: int, devices: int
) -> None:
    space, arch = drawn
    module = module_of(space, arch, seed)
    batches = batches_of(space, arch, seed, devices + 3)
    parts = [collect(copy.deepcopy(module), batches[place::devices]) for place in range(devices)]
    many, one = copy.deepcopy(module), copy.deepcopy(module)
    load(many, merge(parts))
    load(one, collect(module, batches))
    by_hand = pooled(module, batches)
    for name, layer in batch_norms(many).items():
        same = batch_norms(one)[name]
        for mine, theirs, oracle in (
            (layer.running_mean, same.running_mean, by_hand[name][0]),
            (layer.running_var, same.running_var, by_hand[name][1]),
        ):
            assert mine is not None
            assert theirs is not None
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(mine, oracle, rtol=1e-5, atol=1e-5)


def test_with_one_batch_evaluation_then_gives_what_training_mode_gave() -> None:
    module = module_of(DIGITS, DIGITS.largest(), 0)
    (x,) = batches_of(DIGITS, DIGITS.largest(), 0, 1)
    with torch.no_grad():
        expected = module.train()(x)
        load(module, collect(module, [x]))
        np.testing.assert_allclose(module.eval()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_collecting_leaves_the_module_as_it_was(training: bool) -> None:
    module = module_of(DIGITS, DIGITS.smallest(), 0).train(training)
    if training:
        module.stem.eval()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    collect(module, batches_of(DIGITS, DIGITS.smallest(), 0, 2))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(layer.track_running_stats for layer in batch_norms(module).values())
    assert [layer.training for layer in module.modules()] == modes
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    assert not any(parameter.grad is not None for parameter in module.parameters())


def test_a_module_is_put_back_also_when_a_batch_does_not_fit() -> None:
    module = module_of(DIGITS, DIGITS.smallest(), 0).eval()
    with pytest.raises(RuntimeError):
        collect(module, [torch.zeros(2, 3, 8, 8)])
    assert not module.training
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    assert all(layer.track_running_stats for layer in batch_norms(module).values())


def test_moments_come_in_the_modules_order_whatever_the_order_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.first(x))
            return y

    assert list(collect(Backwards(), [torch.randn(4, 3)])) == ["last", "first"]


def test_a_constant_channel_has_no_negative_variance() -> None:
    value, count = 0.1, 7
    squares = np.array([count * value**2 * (1 - 1e-15)])
    assert float(Moments(count, np.array([count * value]), squares).variance[0]) >= 0


def test_moments_of_other_layers_are_refused() -> None:
    module = module_of(DIGITS, DIGITS.smallest(), 0)
    found = collect(module, batches_of(DIGITS, DIGITS.smallest(), 0, 1))
    fewer = dict(list(found.items())[1:])
    with pytest.raises(ValueError, match=r"stem\.bn"):
        merge([found, fewer])
    with pytest.raises(ValueError, match=r"stem\.bn"):
        load(module, fewer)
    assert merge([]) == {}
