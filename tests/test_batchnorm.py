"""Batch-norm statistics merged from devices against one place, and against two-pass numpy."""

import copy
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.app import app as honest_app
from fedofa.client.data import client_data
from fedofa.client.device import of_node
from fedofa.protos.flower import from_record, to_record
from fedofa.protos.messages import MomentsReply
from fedofa.server.evaluation import FederatedEvaluator, Target
from fedofa.supernet.batchnorm import Moments, collect, load, merge
from fedofa.supernet.cost import Budget
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import batch_norms, extract
from fleets import Run, grid_of, small_config, small_fleet
from flwr.app import Context, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DIGITS, architectures
from torch import Tensor, nn


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


# ── over messages, on a fleet ────────────────────────────────────────────────────────────────────


def spoiling(change: Callable[[Any], Any]) -> Callable[[Message, Context], Message]:
    """The ClientApp, but dev-1's moments are changed on their way."""

    def app(message: Message, context: Context) -> Message:
        reply = honest_app(message=message, context=context)
        if message.metadata.message_type != "query.moments":
            return reply
        if of_node(context.node_config, context.run_config).name != "dev-1":
            return reply
        body, values = from_record(MomentsReply, reply.content)
        assert values is not None
        return Message(to_record(body, change(values)), reply_to=message)

    return app


def evaluator(folder: Path, app: Any) -> tuple[Run, FederatedEvaluator]:
    run = Run(folder, small_config(), grid_of(small_fleet(folder), app))
    run.training.weights = {name: value + 0.01 for name, value in run.training.weights.items()}
    fleet, training = run.roll.gather(), run.training
    found = FederatedEvaluator(run.exchange, fleet, training.space, training.weights, run.log)
    found.batch_size = 32
    return run, found


def in_one_place(run: Run, devices: list[int], arch: Arch) -> dict[str, Moments]:
    """The same batches, one device after the other, without messages."""
    module = extract(run.training.space, arch, run.training.weights)
    batches = []
    for place in devices:
        mine = client_data(small_fleet(run.folder)[place].source)
        x = torch.from_numpy(mine.normalized(mine.train.x))
        batches += [part for part in torch.split(x, 32) if len(part) >= 2]
    return collect(module, batches)


def assert_same(mine: Mapping[str, Moments], theirs: Mapping[str, Moments]) -> None:
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].count == theirs[name].count
        np.testing.assert_allclose(mine[name].mean, theirs[name].mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mine[name].variance, theirs[name].variance, rtol=1e-5)


def test_the_fleets_statistics_are_those_of_one_place(tmp_path: Path) -> None:
    run, asked = evaluator(tmp_path, honest_app)
    space = run.training.space
    small, large = space.smallest(), space.largest()
    bound = Budget(params=3000)
    found = asked.statistics([Target(small, bound), Target(large, Budget())])
    assert_same(found[0], in_one_place(run, [0, 1, 2], small))
    assert_same(found[1], in_one_place(run, [0], large))  # the others may not hold it


@pytest.mark.parametrize(
    "change",
    [
        lambda values: np.where(np.arange(len(values)) == 3, np.nan, values),
        lambda values: values[:-1],
        lambda values: values.astype(np.float32),
        lambda values: None,
    ],
    ids=["nan", "short", "dtype", "none"],
)
def test_one_devices_bad_moments_are_left_out_and_named(
    tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    run, asked = evaluator(tmp_path, spoiling(change))
    small = run.training.space.smallest()
    found = asked.statistics([Target(small, Budget(params=3000))])[0]
    assert_same(found, in_one_place(run, [0, 2], small))
    (told,) = run.events("no_answer")
    assert told["device"] == "dev-1"
    assert "moments" in told["reason"]
