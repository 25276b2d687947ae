"""Weights in few bits: what rounding does, and training on rounded weights.

The oracles are numpy's own loops in float64, numbers worked out by hand, and float training at the
rounded weights.
"""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.batches import Step
from fedofa.client.device import data as data_of
from fedofa.client.local_step import LocalStep
from fedofa.client.students import Students
from fedofa.client.training import LocalTask, train
from fedofa.protos.device import DataSource, Device
from fedofa.protos.recipe import Recipe
from fedofa.supernet.axes import regions, take
from fedofa.supernet.batch import Batch
from fedofa.supernet.batchnorm import collect, load
from fedofa.supernet.called_layers import narrow
from fedofa.supernet.errors import UsageError
from fedofa.supernet.fake_quant import quantized
from fedofa.supernet.families.catalogue import PRESETS
from fedofa.supernet.subnet import static
from fedofa.supernet.weights import initial
from hypothesis import given
from hypothesis import strategies as st
from invariants import shared_weights
from strategies import DIGITS
from torch import Tensor
from torch.func import functional_call

FEW = (8, 4, 2)
KEY = (0, 1, "dev-0")
LARGEST, SMALLEST = DIGITS.largest(), DIGITS.smallest()
MEDIUM = DIGITS.sample(random.Random(8))
HEAD = "head.classifier.weight"
STEM, DEPTHWISE = "stem.conv.weight", "stages.0.0.depthwise.conv.weight"
ALONE = DataSource("fedofa.client.datasets:digits")

values_of = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
channels = st.one_of(
    st.lists(values_of, min_size=6, max_size=6),
    st.lists(st.sampled_from((-1.5, 0.0, 1.5, 3e-30, 3e38)), min_size=6, max_size=6),
    values_of.map(lambda value: [value] * 6),
)
shapes = st.sampled_from(((-1, 6), (-1, 2, 3), (-1, 1, 3, 2)))
kernels = st.builds(
    lambda rows, shape: torch.tensor(rows).reshape(shape),
    st.lists(channels, min_size=1, max_size=4),
    shapes,
)


def rounded(weight: Tensor, bits: int) -> Tensor:
    return quantized({"w": weight}, bits)["w"]


# ── what rounding does ───────────────────────────────────────────────────────────────────────────


@given(kernels, st.sampled_from(FEW))
def test_rounding_what_is_rounded_changes_nothing(weight: Tensor, bits: int) -> None:
    once = rounded(weight, bits)
    assert once.shape == weight.shape
    assert bool(once.isfinite().all())
    assert torch.equal(rounded(once, bits), once)
    assert torch.equal(rounded(-weight, bits), -once)


@given(kernels, st.sampled_from(FEW))
def test_a_channel_has_few_levels_and_no_weight_changes_its_sign(weight: Tensor, bits: int) -> None:
    for before, after in zip(weight.flatten(1), rounded(weight, bits).flatten(1), strict=True):
        found = set(after.tolist())
        assert len(found) <= (3 if bits == 2 else 2**bits - 1)
        if bits == 2:
            assert len({abs(level) for level in found if level}) <= 1
        assert bool((before * after >= 0).all())


@given(kernels, st.sampled_from((8, 4)))
def test_the_error_is_at_most_half_a_step(weight: Tensor, bits: int) -> None:
    before, after = weight.double().flatten(1), rounded(weight, bits).double().flatten(1)
    step = before.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert bool(((after - before).abs() <= step / 2 * (1 + 1e-4)).all())


@given(kernels, st.sampled_from(FEW))
def test_a_channel_is_rounded_by_itself_wherever_it_lies(weight: Tensor, bits: int) -> None:
    alone = torch.cat([rounded(channel, bits) for channel in weight.split(1)])  # type: ignore[no-untyped-call]
    assert torch.equal(rounded(weight, bits), alone)
    around = torch.full((len(weight) + 2, 8, *weight.shape[2:]), 7e30)
    inside = around[1:-1, 1 : 1 + weight.shape[1]]
    inside.copy_(weight)
    assert torch.equal(rounded(inside, bits), alone)


def test_levels_worked_out_by_hand() -> None:
    weight = torch.tensor([[7.0, 3.4, -0.6, 0.4], [-14.0, 13.2, 2.8, 0.0]])
    assert rounded(weight, 4).tolist() == [[7, 3, -1, 0], [-14, 14, 2, 0]]
    assert rounded(torch.tensor([[127.0, 0.4, -63.6, 126.4]]), 8).tolist() == [[127, 0, -64, 126]]
    # 0.7 · mean|w| is 0.7 in the first channel, and 1.4 in the second.
    weight = torch.tensor([[0.75, -2.0, 0.65, -0.6], [1.0, -1.0, 4.0, -2.0]])
    assert rounded(weight, 2).tolist() == [[1.375, -1.375, 0, 0], [0, 0, 3, -3]]


def test_ternary_levels_are_those_of_the_papers_formula() -> None:
    weight = torch.randn(40, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    for before, after in zip(weight.double().numpy(), rounded(weight, 2).numpy(), strict=True):
        kept = np.abs(before) > 0.7 * np.abs(before).mean()
        np.testing.assert_allclose(
            after, np.sign(before) * kept * np.abs(before)[kept].mean(), rtol=1e-6
        )


@pytest.mark.parametrize("bits", FEW)
def test_channels_that_are_zero_or_all_alike_keep_their_values(bits: int) -> None:
    weight = torch.tensor([[0.0] * 5, [0.3] * 5, [-1e-38] * 5, [3e38] * 5])
    assert torch.equal(rounded(weight, bits), weight)


@pytest.mark.parametrize("bits", FEW)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_not_rounded_away(bits: int, wrong: float) -> None:
    after = rounded(torch.tensor([[1.0, wrong, 0.0], [1.0, -1.0, 0.0]]), bits)
    assert not bool(after[0].isfinite().any())
    assert after[1].tolist() == [1, -1, 0]


def test_with_32_bits_the_values_are_the_very_ones() -> None:
    values = {"w": torch.ones(2, 2, requires_grad=True)}
    assert quantized(values, 32) is values


@pytest.mark.parametrize("bits", FEW)
def test_norm_scales_and_biases_are_left_alone(bits: int) -> None:
    values = {"bn.weight": torch.randn(3), "bias": torch.randn(3), "gain": torch.tensor(0.3)}
    found = quantized(values, bits)
    assert all(found[name] is value for name, value in values.items())


@pytest.mark.parametrize("bits", [0, 1, 3, 16, 64, -8, 8.0, True, "8", None])
def test_another_width_is_refused_with_the_allowed_ones(bits: Any) -> None:
    with pytest.raises(UsageError, match=rf"bits = {bits!r}; allowed: 32, 8, 4, 2"):
        quantized({}, bits)


@given(kernels, st.sampled_from(FEW))
def test_gradients_go_straight_through(weight: Tensor, bits: int) -> None:
    leaf = weight.clone().requires_grad_()
    coefficients = torch.linspace(-1, 2, leaf.numel()).view_as(leaf)
    (rounded(leaf, bits) * coefficients).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, coefficients)
    assert torch.equal(leaf, weight)


@pytest.mark.parametrize("bits", FEW)
def test_a_module_called_with_rounded_values_is_the_rounded_module(bits: int) -> None:
    values = take(shared_weights(DIGITS), regions(DIGITS, SMALLEST))
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    module = static(DIGITS, SMALLEST, quantized(leaves, bits)).train()
    x = torch.randn(4, *DIGITS.input_shape(SMALLEST), generator=torch.Generator().manual_seed(0))
    called = functional_call(module, dict(quantized(leaves, bits)), x)
    assert torch.equal(called, module(x))
    called.square().sum().backward()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(leaves[name].grad, parameter.grad)


# ── training on rounded weights ──────────────────────────────────────────────────────────────────


def batch_of(rows: int = 12) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, *DIGITS.input_shape(LARGEST))).astype(np.float32)
    return Batch(torch.from_numpy(x), torch.from_numpy(rng.integers(0, 10, rows)))


def gradients(local: LocalStep, recipe: Recipe, batch: Batch) -> tuple[float, dict[str, Any]]:
    """A step's loss and gradients, its students chosen by the step itself; the gradients are taken."""
    students = Students(DIGITS, LARGEST, recipe, KEY)
    step = Step(0, 0, batch)
    loss = local.fill(batch, students.of(step, lambda arch: local.rate(batch, arch)))
    found = {name: leaf.grad for name, leaf in local.leaves.items()}
    for leaf in local.leaves.values():
        leaf.grad = None
    return loss, found


RECIPES: list[dict[str, Any]] = [
    {"students": "none", "clip_norm": 1.0},
    {"random_subnets": 2, "attentive": "worst"},
    {"students": "smallest", "combine": "project"},
    {"random_subnets": 2, "one_pass": True},
    {"students": "random", "train_assigned": False, "learn": "labels"},
]


@pytest.mark.parametrize("fields", RECIPES, ids=str)
def test_a_step_in_few_bits_has_the_gradients_of_float_at_the_rounded_weights(
    fields: dict[str, Any],
) -> None:
    recipe, batch = Recipe(**fields), batch_of()
    values = take(shared_weights(DIGITS, 3), regions(DIGITS, LARGEST))
    local = LocalStep(DIGITS, LARGEST, recipe, values, batch.labels_b, 4)
    for _ in range(2):
        held = quantized({name: leaf.detach() for name, leaf in local.leaves.items()}, 4)
        in_float = LocalStep(DIGITS, LARGEST, recipe, held, batch.labels_b)
        assert local.rate(batch, SMALLEST) == in_float.rate(batch, SMALLEST)
        mine, theirs = (gradients(one, recipe, batch) for one in (local, in_float))
        assert mine[0] == theirs[0]
        assert mine[1].keys() == theirs[1].keys()
        for name, gradient in theirs[1].items():
            assert (mine[1][name] is None) == (gradient is None)
            assert gradient is None or torch.equal(mine[1][name], gradient), name
        with torch.no_grad():  # the second time round the weights are rounded anew
            for leaf in local.leaves.values():
                leaf += 0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1))


def trained(bits: int, epochs: int = 3, seed: int = 0, **fields: Any) -> dict[str, Tensor]:
    """A subnet's values after training on all digits."""
    data = data_of(Device("d", ALONE))
    values = take(initial(DIGITS, seed), regions(DIGITS, MEDIUM))
    recipe = Recipe(students="none", epochs=epochs, **fields)
    task = LocalTask(DIGITS, MEDIUM, recipe, recipe.lr, (seed, 1, "d"), bits)
    train(task, values, data.normalized(data.train.x), data.train.y)
    return values


def accuracy(values: dict[str, Tensor], bits: int) -> float:
    """Right answers with weights of this width, norm statistics from the training examples."""
    data = data_of(Device("d", ALONE))
    module = static(DIGITS, MEDIUM, quantized(values, bits))
    load(module, collect(module, [torch.from_numpy(data.normalized(data.train.x))]))
    with torch.no_grad():
        logits = module.eval()(torch.from_numpy(data.normalized(data.validation.x)))
    return float((logits.argmax(1).numpy() == data.validation.y).mean())


def test_training_in_few_bits_reaches_what_float_reaches_and_more_than_rounding_after_it() -> None:
    in_float = trained(32)
    assert accuracy(in_float, 32) > 0.9
    assert accuracy(trained(8), 8) > accuracy(in_float, 32) - 0.05
    assert accuracy(trained(2), 2) > accuracy(in_float, 2) + 0.05


@pytest.mark.parametrize("bits", FEW)
def test_a_device_returns_rounded_weights_unless_the_recipe_wants_the_float_ones(bits: int) -> None:
    returned = trained(bits, epochs=1, steps=2)
    shadow = trained(bits, epochs=1, steps=2, return_quantized=False)
    for name, value in quantized(shadow, bits).items():
        assert torch.equal(returned[name], value), name
    assert not torch.equal(shadow[HEAD], returned[HEAD])


def test_sampling_one_width_trains_in_it_and_returns_float_weights() -> None:
    # No kernel keeps more than 8 bits, so with that width alone it is a device of 8 bits.
    sampled = trained(32, epochs=1, sample_bits=(8,))
    alone = trained(8, epochs=1, return_quantized=False)
    assert all(torch.equal(sampled[name], alone[name]) for name in alone)
    plain, floats = trained(32, epochs=1), trained(32, epochs=1, sample_bits=(32,))
    assert all(torch.equal(plain[name], floats[name]) for name in plain)


def test_every_step_draws_a_width_and_kernels_over_one_channel_keep_8_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[tuple[int, int, int]] = []
    fill = LocalStep.fill

    def noting(step: LocalStep, *arguments: Any) -> float:
        loss = fill(step, *arguments)
        stem, depthwise, head = (width_of(step._held[name]) for name in (STEM, DEPTHWISE, HEAD))
        held.append((stem, depthwise, head))
        return loss

    monkeypatch.setattr(LocalStep, "fill", noting)
    first, again = (trained(32, epochs=2, sample_bits=(32, 8, 4)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert held[: len(held) // 2] == held[len(held) // 2 :]
    assert set(held) == {(32, 32, 32), (8, 8, 8), (8, 8, 4)}
    for widths in set(held):
        assert 0.15 < held.count(widths) / len(held) < 0.55


def test_what_is_sampled_rounds_kernels_and_not_the_tables_that_files_keep() -> None:
    space = PRESETS["small-vit"]
    arch = space.smallest()
    values = take(shared_weights(space), regions(space, arch))
    step = LocalStep(
        space, arch, Recipe(sample_bits=(4,)), values, torch.zeros(2, dtype=torch.long)
    )
    changed = {n for n, held in step._held.items() if not torch.equal(held, values[n])}
    assert changed == set(narrow(space, arch))
    assert any(v.dim() >= 2 for n, v in values.items() if n not in changed)


def width_of(kernel: Tensor) -> int:
    """The least width whose levels its values are."""
    rows = kernel.detach().flatten(1)
    share = rows / rows.abs().amax(1, keepdim=True)
    for bits in (4, 8):
        steps = share * (2 ** (bits - 1) - 1)
        if torch.allclose(steps, steps.round(), atol=1e-4):
            return bits
    return 32


def test_a_device_of_few_bits_trains_in_its_own_whatever_is_sampled() -> None:
    own, told = trained(4, epochs=1), trained(4, epochs=1, sample_bits=(32, 8))
    assert all(torch.equal(own[name], told[name]) for name in own)


def test_a_device_of_32_bits_returns_the_same_either_way() -> None:
    first, second = (trained(32, steps=2, return_quantized=own) for own in (True, False))
    assert all(torch.equal(first[name], second[name]) for name in first)
