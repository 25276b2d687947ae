"""FedLAW's rule alone: its neutral knobs, its slopes, liars, and proxy losses that lead nowhere."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.protos.recipe import Recipe
from fedofa.server.aggregation import mixture as mixture_module
from fedofa.server.aggregation.catalogue import AggregationConfig
from fedofa.server.aggregation.fedlaw import FedLaw, Learner, Lesson, Pace, Slope
from fedofa.server.aggregation.mixture import Mixture
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.server.aggregation.spool import Spool
from fedofa.server.aggregation.update import Merged, Update
from fedofa.server.optimizer import ServerOptimizer, ServerOptimizerConfig
from fedofa.server.proxy_loss import ProxySet, SubnetLoss
from fedofa.server.samplers.assigned import Assigned
from fedofa.supernet.axes import Weights, layout
from fedofa.supernet.families.mobilenet import Stage
from fedofa.supernet.weights import Shapes, shapes_of, size_of
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import shared_weights
from strategies import space_of
from torch import Tensor
from updates import SHAPES, agree, dense, folded, updates

SMOOTH = space_of(
    (Stage((4, 8), (1, 2), (1, 2), (3, 5), stride=1, act="silu"),),
    1,
    project=True,
    classes=4,
    in_channels=1,
    resolutions=(7, 8),
    stem_widths=(4, 8),
    head_widths=(8, 16),
    stem_act="silu",
    head_act="silu",
    divisor=4,
)
"""Small, and without kinks, which small differences would see."""
QUICK = Pace(epochs=5, lr=0.1, shrink=True)


def weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.normal(size=s).astype(np.float32)) for n, s in SHAPES.items()}


@dataclass
class Squares:
    """Half the squared distance to a target, two batches an epoch; `wholes` replaces what is told."""

    target: Weights
    wholes: list[float] = field(default_factory=list)
    bad: float = 0.0

    def whole(self, found: Weights) -> float:
        return self.wholes.pop(0) if self.wholes else self._of(found)

    def batches(self, epoch: int) -> Iterator[Slope]:
        yield self._slope
        yield self._slope

    def _of(self, found: Weights) -> float:
        return sum(
            0.5 * float((found[n] - t).double().square().sum()) for n, t in self.target.items()
        )

    def _slope(self, found: Weights) -> tuple[float, Mapping[str, Tensor]]:
        return self._of(found), {n: found[n] - t + self.bad for n, t in self.target.items()}


def lesson(loss: Squares, previous: Weights) -> Lesson:
    return Lesson(loss, previous, ServerOptimizer(ServerOptimizerConfig(), 1).ahead)


def law(found: list[Update], loss: Squares, pace: Pace = QUICK, seed: int = 0) -> Merged:
    return folded(FedLaw(SHAPES, lesson(loss, weights(seed)), pace), found)


def same_bits(one: Merged, other: Merged) -> None:
    agree(one, other)
    assert one.delta.keys() == other.delta.keys()
    for name, delta in one.delta.items():
        assert delta.numpy().tobytes() == other.delta[name].numpy().tobytes(), name


@given(updates(), st.booleans())
@settings(max_examples=30)
def test_without_learning_it_is_the_weighted_mean_bit_for_bit(
    found: list[Update], shrink: bool
) -> None:
    mine = law(found, Squares(weights(1)), Pace(3, 0.0, shrink))
    same_bits(mine, folded(OverlapMean(SHAPES), found))
    assert mine.shrink == 1


@given(updates(), st.integers(0, 99))
@settings(max_examples=30)
def test_it_is_the_mean_over_holders_with_weights_that_sum_to_one(
    found: list[Update], seed: int
) -> None:
    # Two clients of one subnet share the object that says where it lies.
    found = [*found, replace(found[0], device="twin", delta=-found[0].delta)]
    spool = Spool(SHAPES)
    for update in found:
        spool.add(update)
    offset_k = np.random.default_rng(seed).normal(size=len(found))
    mixed = Mixture(spool, SHAPES)
    mean = mixed.mean(offset_k)
    for name, change in mixed.frame.tensors(mean.change).items():
        values, prior = dense(found, name)
        lambdas = prior * np.exp(offset_k).reshape(-1, *[1] * len(SHAPES[name]))
        total = lambdas.sum(axis=0)
        lambdas /= np.where(total > 0, total, 1)
        assert np.allclose(lambdas.sum(axis=0)[total > 0], 1)
        expected = (lambdas * np.nan_to_num(values)).sum(axis=0)
        np.testing.assert_allclose(change.numpy(), expected, rtol=1e-4, atol=1e-5)
        covered = mixed.frame.tensors(mean.covered)[name]
        assert np.array_equal(covered.numpy(), total > 0)


@given(updates(least=2), st.integers(0, 99), st.sampled_from([0.0, 0.6]))
@settings(max_examples=30)
def test_slopes_are_those_of_small_differences(
    found: list[Update], seed: int, momentum: float
) -> None:
    """Also with clipped updates and with the server's momentum, which the step will add."""
    found = [replace(update, scale=1 / (1 + place)) for place, update in enumerate(found)]
    spool, rng = Spool(SHAPES), np.random.default_rng(seed)
    for update in found:
        spool.add(update)
    config = ServerOptimizerConfig(optimizer="momentum", momentum=momentum, lr=0.7)
    ahead = ServerOptimizer(config, 1, {f"m/{n}": v for n, v in weights(5).items()}).ahead
    loss = Squares(weights(seed + 1))
    learner = Learner(Mixture(spool, SHAPES), Lesson(loss, weights(seed), ahead), QUICK)
    free = 0.5 * rng.normal(size=len(found) + 1)
    _, slopes = learner.slopes(free[:-1], float(free[-1]), loss._slope)
    for place in range(len(free)):
        ends = []
        for by in (0.01, -0.01):
            moved = free.copy()
            moved[place] += by
            ends.append(learner.whole(moved[:-1], float(moved[-1])))
        measured = (ends[0] - ends[1]) / 0.02
        assert slopes[place] == pytest.approx(measured, rel=5e-3, abs=5e-3)


def net_loss(trained: list[Assigned], examples: int = 24) -> tuple[SubnetLoss, Shapes]:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(examples, 1, 8, 8)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 4, examples))
    loss = SubnetLoss(SMOOTH, trained, ProxySet(x, y, examples), Recipe(), (0, 1))
    return loss, {name: tensor.shape for name, tensor in layout(SMOOTH).items()}


def moves(trained: list[Assigned], size: float) -> list[Update]:
    """An update of each subnet, of random changes."""
    rng, found = np.random.default_rng(3), []
    for place, one in enumerate(trained):
        where = one.regions(SMOOTH)
        count = size_of(shapes_of(where))
        delta = size * rng.normal(size=count).astype(np.float32)
        found.append(Update(f"d{place}", delta, where, 10.0 + place))
    return found


def test_slopes_through_a_networks_subnets_are_those_of_small_differences() -> None:
    trained = [
        Assigned(SMOOTH.largest()),
        Assigned(SMOOTH.smallest()),
        Assigned(SMOOTH.sample(random.Random(4)), offset=3),
    ]
    loss, shapes = net_loss(trained)
    spool = Spool(shapes)
    for update in moves(trained, 0.05):
        spool.add(update)
    ahead = ServerOptimizer(ServerOptimizerConfig(), 1).ahead
    lesson_of_net = Lesson(loss, shared_weights(SMOOTH, 3), ahead)
    learner = Learner(Mixture(spool, shapes), lesson_of_net, QUICK)
    free = np.asarray([0.3, -0.2, 0.1, 0.05])
    (of,) = loss.batches(0)
    told, slopes = learner.slopes(free[:-1], float(free[-1]), of)
    # One batch of everything: the whole loss is its loss, whatever the order.
    assert told == pytest.approx(learner.whole(free[:-1], float(free[-1])), rel=1e-5)
    measured = []
    for place in range(len(free)):
        by = 0.01 * np.eye(len(free))[place]
        ends = [learner.whole((free + s * by)[:-1], float((free + s * by)[-1])) for s in (1, -1)]
        measured.append((ends[0] - ends[1]) / 0.02)
    np.testing.assert_allclose(slopes, measured, rtol=0.03, atol=3e-4)
    assert np.abs(slopes[:3]).max() > 1e-3


@given(updates(least=2), st.integers(0, 99))
@settings(max_examples=15)
def test_the_order_of_updates_does_not_change_a_bit(found: list[Update], seed: int) -> None:
    shuffled = random.Random(seed).sample(found, len(found))
    one, other = law(found, Squares(weights(1))), law(shuffled, Squares(weights(1)))
    same_bits(one, other)
    assert (one.shrink, one.notes) == (other.shrink, other.notes)


@given(updates(least=2))
@settings(max_examples=15)
def test_what_nobody_trained_does_not_change(found: list[Update]) -> None:
    mine, mean = law(found, Squares(weights(1))), folded(OverlapMean(SHAPES), found)
    assert mine.trained["unused"] is False
    for name in ("w", "v"):
        assert np.array_equal(np.asarray(mine.trained[name]), np.asarray(mean.trained[name]))


def test_a_liar_gets_hardly_any_weight_and_the_honest_share_the_rest() -> None:
    start, target, rng = weights(0), weights(1), np.random.default_rng(2)
    way = np.concatenate([(target[n] - start[n]).numpy().reshape(-1) for n in ("w", "v")])
    where = {n: tuple(slice(0, s) for s in SHAPES[n]) for n in ("w", "v")}

    def noisy(by: float) -> np.ndarray:
        return (by * rng.normal(size=way.shape)).astype(np.float32)

    honest = [Update(f"d{k}", way + noisy(0.1), where, 50.0) for k in range(4)]
    # It claims more examples than anybody else.
    liar = Update("liar", noisy(3.0), where, 200.0)
    goal = {n: target[n] for n in ("w", "v")}
    rule = AggregationConfig(rule="fedlaw", law_epochs=100, law_lr=0.2, law_shrink=False)
    found = folded(rule.fold(SHAPES, {}, lesson(Squares(goal), start)), [*honest, liar])
    spool = Spool(SHAPES)
    for update in [*honest, liar]:
        spool.add(update)
    learner = Learner(Mixture(spool, SHAPES), lesson(Squares(goal), start), rule._pace())
    descended = learner.descended()
    assert descended is not None
    share_k = np.exp(descended[0]) * [50, 50, 50, 50, 200]
    share_k /= share_k.sum()
    assert share_k[4] < 0.03
    assert share_k[:4].min() > 0.2
    assert "(liar)" in found.notes[0]
    assert found.shrink == 1
    change = np.concatenate([found.delta[n].numpy().reshape(-1) for n in ("w", "v")])
    assert np.abs(change - way).max() < 0.3
    mean = folded(OverlapMean(SHAPES), [*honest, liar])
    far = np.concatenate([mean.delta[n].numpy().reshape(-1) for n in ("w", "v")])
    assert np.abs(far - way).max() > 1


def test_a_shrink_factor_is_found_where_weights_are_too_large() -> None:
    start = weights(0)
    where = {n: tuple(slice(0, s) for s in SHAPES[n]) for n in ("w", "v")}
    found = [Update("d", np.zeros(26, np.float32), where, 1.0)]
    goal = {n: 0.8 * start[n] for n in ("w", "v")}
    merged = law(found, Squares(goal), Pace(60, 0.02, shrink=True))
    assert merged.shrink == pytest.approx(0.8, rel=0.01)
    stepped = ServerOptimizer(ServerOptimizerConfig(), 1).step(start, merged)
    np.testing.assert_allclose(stepped["w"].numpy(), goal["w"].numpy(), rtol=0.02)
    assert stepped["unused"] is start["unused"]
    assert law(found, Squares(goal), Pace(60, 0.02, shrink=False)).shrink == 1


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Squares(weights(1), wholes=[math.nan]), "not finite"),
        (Squares(weights(1), wholes=[math.inf]), "not finite"),
        (Squares(weights(1), bad=math.nan), "not finite"),
        (Squares(weights(1), wholes=[1.0, math.nan]), "does not count"),
        (Squares(weights(1), wholes=[1.0, 1.1]), "does not count"),
        (Squares(weights(1), wholes=[1.0, 1.0]), "does not count"),
    ],
)
def test_what_is_no_better_or_no_number_does_not_count_and_is_said(
    loss: Squares, words: str
) -> None:
    rng = np.random.default_rng(0)
    where = {"w": (slice(0, 5), slice(0, 3))}
    found = [
        Update(f"d{k}", rng.normal(size=15).astype(np.float32), where, 3.0 + k) for k in (0, 1)
    ]
    mine = law(found, loss)
    same_bits(mine, folded(OverlapMean(SHAPES), found))
    assert mine.shrink == 1
    assert len(mine.notes) == 1
    assert words in mine.notes[0]


def test_one_update_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held beside it is flat arrays of the supernet's size, their number the same for all."""
    made: list[int] = []
    zeros = torch.zeros

    def counted(*shape: int, **options: torch.dtype) -> Tensor:
        made.append(1)
        return zeros(*shape, **options)

    monkeypatch.setattr(mixture_module.torch, "zeros", counted)
    counts = []
    where = {"v": (slice(0, 6),)}
    for clients in (2, 50):
        spool = Spool(SHAPES)
        for place in range(clients):
            spool.add(Update(f"d{place:02d}", np.ones(6, np.float32), where, 1.0))
        made.clear()
        mixed = Mixture(spool, SHAPES)
        mean = mixed.mean(np.zeros(clients))
        mixed.slopes(np.zeros(clients), mean, torch.ones(size_of(SHAPES)))
        counts.append(len(made))
        alive = [update.delta for update in mixed.updates(np.zeros(clients))]
        assert len({id(delta.base) for delta in alive}) == clients
    assert counts[0] == counts[1]


@given(st.sampled_from(["none", "momentum"]), st.integers(0, 99), st.floats(0.5, 1.5))
@settings(max_examples=20)
def test_what_lies_ahead_is_what_the_step_does(kind: str, seed: int, shrink: float) -> None:
    fields: dict[str, Any] = {} if kind == "none" else {"lr": 0.3, "momentum": 0.7}
    config = ServerOptimizerConfig(optimizer=kind, **fields)
    state = {f"m/{n}": v for n, v in weights(seed + 1).items()} if kind == "momentum" else {}
    optimizer, previous, delta = ServerOptimizer(config, 1, state), weights(seed), weights(seed + 2)
    base, gain = optimizer.ahead(previous)
    mask = torch.from_numpy(np.random.default_rng(seed).random(SHAPES["v"]) < 0.5)
    expected = {n: shrink * (base[n] + gain * delta[n]) for n in previous}
    before = {n: v.clone() for n, v in previous.items()}
    trained: dict[str, Tensor | bool] = {"w": True, "v": mask, "unused": False}
    stepped = optimizer.step(previous, Merged(delta, trained, shrink=shrink))
    torch.testing.assert_close(stepped["w"], expected["w"])
    torch.testing.assert_close(stepped["v"][mask], expected["v"][mask])
    assert torch.equal(stepped["v"][~mask], before["v"][~mask])
    assert torch.equal(stepped["unused"], before["unused"])


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_a_step_that_is_no_sum_has_nothing_ahead(kind: str) -> None:
    with pytest.raises(ValueError, match=f"server.optimizer = {kind}"):
        ServerOptimizer(ServerOptimizerConfig(optimizer=kind), 1).ahead(weights(0))
