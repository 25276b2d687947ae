"""The overlap-aware mean and the server optimizers against Flower's FedAvg and plain numpy."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.benchmarks.merging import KINDS, peak_supernets
from fedofa.protos.messages import EvaluateReply
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.server.aggregation.placement import Frame, numbers
from fedofa.server.aggregation.update import Merged
from fedofa.server.aggregation.update import Update as Change
from fedofa.server.exchange import Answer, in_order
from fedofa.server.local_grid import LocalGrid
from fedofa.server.optimizer import ServerOptimizer, ServerOptimizerConfig
from fedofa.supernet.axes import Region, Regions, regions, shape_of
from fedofa.supernet.space import Space
from fedofa.supernet.weights import gather, initial
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import stepped
from strategies import DIGITS, some_space
from torch import Tensor
from updates import index

Weights = dict[str, Tensor]
Update = tuple[Weights, Regions, float]


def positions(index: slice | tuple[int, ...]) -> list[int]:
    return list(range(index.start, index.stop)) if isinstance(index, slice) else list(index)


def noise(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def subnet_updates(space: Space, seed: int, clients: int) -> list[Update]:
    rng = random.Random(seed)
    found = []
    for client in range(clients):
        where = regions(space, space.sample(rng))
        values = {
            name: noise(shape_of(region), seed + client * 1000 + place)
            for place, (name, region) in enumerate(where.items())
        }
        found.append((values, where, rng.uniform(0.5, 900)))
    return found


def change(shared: Weights, values: Weights, where: Regions, weight: float) -> Change:
    """An update as the rules take it: new values less those that were sent."""
    flat = gather(values, {name: _whole(value) for name, value in values.items()})
    return Change("d", flat - gather(shared, where), where, weight)


def shapes(shared: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in shared.items()}


def merged(
    shared: Weights, updates: Sequence[Update]
) -> tuple[Weights, Mapping[str, Tensor | bool]]:
    mean = OverlapMean(shapes(shared))
    for values, where, weight in updates:
        mean.add(change(shared, values, where, weight))
    found = mean.result()
    return stepped(shared, found), found.trained


def dense_mean(
    shared: Weights, updates: Sequence[Update]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every update blown up to the full shape with a mask of ones and zeros, in float64."""
    means, masks = {}, {}
    for name, value in shared.items():
        total, count = np.zeros(tuple(value.shape)), np.zeros(tuple(value.shape))
        for values, where, weight in updates:
            if name not in where:
                continue
            full, mask = np.zeros(tuple(value.shape)), np.zeros(tuple(value.shape))
            at = np.ix_(*map(positions, where[name]))
            full[at], mask[at] = values[name].numpy(), 1.0
            total += weight * full
            count += weight * mask
        masks[name] = count > 0
        means[name] = np.where(
            masks[name], total / np.where(masks[name], count, 1), value.double().numpy()
        )
    return means, masks


def relative_gap(mine: Mapping[str, Tensor], theirs: Mapping[str, np.ndarray]) -> float:
    assert mine.keys() == theirs.keys()
    gap = sum(float(((mine[n].double().numpy() - theirs[n]) ** 2).sum()) for n in mine)
    norm = sum(float((theirs[n].astype(np.float64) ** 2).sum()) for n in theirs)
    return math.sqrt(gap / norm)


def test_with_all_clients_on_the_largest_subnet_it_is_flowers_fedavg() -> None:
    LocalGrid(ClientApp(), [])  # a Message asks which node and run it speaks for
    shared, whole = initial(DIGITS, 0), regions(DIGITS, DIGITS.largest())
    rng = random.Random(0)
    updates: list[Update] = [
        (
            {name: value + noise(value.shape, 31 * k) for name, value in shared.items()},
            whole,
            float(rng.randint(1, 2000)),
        )
        for k in range(7)
    ]
    replies = []
    for values, _, weight in updates:
        arrays = ArrayRecord({name: Array(value.numpy()) for name, value in values.items()})
        content = RecordDict({"a": arrays, "m": MetricRecord({"num-examples": int(weight)})})
        replies.append(Message(content, dst_node_id=1, message_type="train"))
    flower, _ = FedAvg().aggregate_train(1, replies)
    assert flower is not None
    mine, trained = merged(shared, updates)
    assert relative_gap(mine, {name: array.numpy() for name, array in flower.items()}) <= 1e-6
    assert all(mask is True for mask in trained.values())


@given(some_space, st.integers(0, 999), st.integers(1, 5))
@settings(max_examples=25)
def test_subnets_of_any_size_merge_as_dense_masked_arrays_would(
    space: Space, seed: int, clients: int
) -> None:
    shared, updates = initial(space, seed), subnet_updates(space, seed, clients)
    mine, trained = merged(shared, updates)
    dense, masks = dense_mean(shared, updates)
    assert relative_gap(mine, dense) <= 1e-6
    for name, mask in masks.items():
        assert np.array_equal(np.broadcast_to(np.asarray(trained[name]), mask.shape), mask)
        untouched = torch.from_numpy(~mask)
        assert torch.equal(mine[name][untouched], shared[name][untouched])


REGION = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 4), st.integers(1, 5)).map(
            lambda p: slice(p[0], max(p[0] + 1, p[1]))
        ),
        st.lists(st.integers(0, 4), min_size=1, unique=True).map(tuple),
    ),
    min_size=2,
    max_size=2,
).map(tuple)


@given(st.lists(st.tuples(REGION, st.floats(0.1, 100)), min_size=1, max_size=5), st.integers(0, 99))
def test_any_selections_merge_as_dense_masked_arrays_would(
    drawn: list[tuple[Region, float]], seed: int
) -> None:
    shared = {"w": noise((5, 5), seed), "other": noise((3,), seed)}
    updates: list[Update] = [
        ({"w": noise(shape_of(region), seed + k)}, {"w": region}, weight)
        for k, (region, weight) in enumerate(drawn)
    ]
    mine, trained = merged(shared, updates)
    dense, masks = dense_mean(shared, updates)
    assert relative_gap(mine, dense) <= 1e-6
    assert trained["other"] is False
    assert np.array_equal(np.broadcast_to(np.asarray(trained["w"]), (5, 5)), masks["w"])


def test_a_weight_nobody_trained_keeps_its_bytes() -> None:
    shared = {"w": torch.tensor([float("nan"), -0.0, 1e-45, 3.0]), "v": torch.tensor([-0.0])}
    mine, _ = merged(shared, [({"w": torch.tensor([5.0])}, {"w": (slice(3, 4),)}, 2.0)])
    assert mine["w"].numpy().tobytes()[:12] == shared["w"].numpy().tobytes()[:12]
    assert float(mine["w"][3]) == 5.0
    assert mine["v"].numpy().tobytes() == shared["v"].numpy().tobytes()


def test_each_weight_is_averaged_over_the_clients_that_hold_it() -> None:
    weights, trained = merged(
        {"w": torch.full((3,), 9.0)},
        [
            ({"w": torch.tensor([1.0])}, {"w": (slice(0, 1),)}, 1),
            ({"w": torch.tensor([4.0, 6.0])}, {"w": (slice(0, 2),)}, 2),
        ],
    )
    assert weights["w"].tolist() == [3.0, 6.0, 9.0]
    assert torch.as_tensor(trained["w"]).tolist() == [True, True, False]


@given(some_space, st.integers(0, 999))
@settings(max_examples=15)
def test_the_order_of_updates_does_not_matter(space: Space, seed: int) -> None:
    shared, updates = initial(space, seed), subnet_updates(space, seed, 5)
    one, _ = merged(shared, updates)
    shuffled = random.Random(seed).sample(updates, len(updates))
    other, _ = merged(shared, shuffled)
    assert relative_gap(other, {name: value.numpy() for name, value in one.items()}) <= 1e-6


def test_folded_in_a_fixed_order_whatever_the_order_of_arrival_gives_equal_bytes() -> None:
    shared, updates = initial(DIGITS, 0), subnet_updates(DIGITS, 0, 5)
    body = EvaluateReply(device="d", examples=1, correct=())
    answers = [
        Answer(node, body, gather(values, {n: _whole(v) for n, v in values.items()}))
        for node, (values, _, _) in enumerate(updates)
    ]
    found = set()
    for seed in range(12):
        arrival = random.Random(seed).sample(answers, len(answers))
        mean = OverlapMean(shapes(shared))
        for answer in in_order(arrival, range(len(answers))):
            _, where, weight = updates[answer.node]
            assert answer.values is not None
            mean.add(Change("d", answer.values.astype(np.float32), where, weight))
        found.add(b"".join(value.numpy().tobytes() for value in mean.result().delta.values()))
    assert len(found) == 1


def _whole(value: Tensor) -> Region:
    return tuple(slice(0, size) for size in value.shape)


def test_answers_come_in_order_each_once_and_failures_keep_their_place() -> None:
    body = EvaluateReply(device="d", examples=1, correct=())
    values: dict[int, Any] = {7: np.arange(3, dtype=np.float32), 9: np.arange(2, dtype=np.float64)}
    given_answers = [
        Answer(5, None, None, "error 2: gone"),
        Answer(9, body, values[9]),
        Answer(8, body, None),
        Answer(7, body, values[7]),
    ]
    for seed in range(24):
        arrival = random.Random(seed).sample(given_answers, 4)
        found = list(in_order(arrival, [7, 6, 9, 5, 8]))
        assert [answer.node for answer in found] == [7, 9, 5, 8]  # node 6 never answered
        assert [answer.failure for answer in found] == ["", "", "error 2: gone", ""]
        for answer in found:
            if answer.node in values:
                assert answer.values is not None
                assert answer.values.dtype == values[answer.node].dtype
                assert np.array_equal(answer.values, values[answer.node])


def test_memory_does_not_grow_with_the_number_of_clients() -> None:
    """One running sum: what the fold holds is one array per tensor, of the tensor's size."""
    where: Regions = {"w": (slice(0, 64), slice(0, 32)), "v": (slice(0, 10),)}
    delta = np.ones(64 * 32 + 10, np.float32)
    sizes = []
    for clients in (2, 200):
        mean = OverlapMean({"w": (64, 64), "v": (10,)})
        for _ in range(clients):
            mean.add(Change("d", delta, dict(where), 1.0))
        sizes.append(mean._total.numel() + _held_elements(mean.counts()))
    assert sizes == [2 * (64 * 64 + 10)] * 2


@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_regions_values_are_numbered_as_in_an_array_of_numbers(
    data: st.DataObject, shape: list[int]
) -> None:
    region = tuple(data.draw(index(size)) for size in shape)
    oracle = np.arange(math.prod(shape)).reshape(shape)[np.ix_(*map(positions, region))]
    assert numbers(tuple(shape), region).tolist() == oracle.reshape(-1).tolist()


def test_placing_a_subnet_costs_what_its_own_values_do() -> None:
    """No array of the whole tensor's size is made for each subnet: this one would be 35 TB."""
    frame = Frame({"v": (8,), "w": (1 << 40, 4)})
    place = frame.placement({"v": (slice(2, 4),), "w": (slice(5, 7), (3, 1))})
    assert place.source is not None
    assert place.target is not None
    assert place.source.tolist() == [0, 1, 2, 3, 4, 5]
    assert place.target.tolist() == [2, 3, 8 + 23, 8 + 21, 8 + 27, 8 + 25]


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_takes_the_memory_of_weights_one_sum_and_one_update(kind: str) -> None:
    peak = peak_supernets(kind, (10,))[10]
    # A margin for Python's own objects and for pages that the kernel counts late.
    assert 2 <= peak <= 3.1


def _held_elements(weights: Weights) -> int:
    return sum(value.numel() for value in weights.values())


class Reference:
    """Reddi et al. 2021, algorithm 2, and FedAvgM, weight by weight in float64."""

    def __init__(self, config: ServerOptimizerConfig, weights: np.ndarray) -> None:
        self.c, self.w = config, weights.astype(np.float64)
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)

    def step(self, mean: np.ndarray, mask: np.ndarray) -> None:
        for i in np.ndindex(*self.w.shape):
            if not mask[i]:
                continue
            delta = mean[i] - self.w[i]
            if self.c.optimizer == "none":
                self.w[i] = mean[i]
            elif self.c.optimizer == "momentum":
                self.m[i] = 0.9 * self.m[i] + delta
                self.w[i] += self.c.rate * self.m[i]
            else:
                self.m[i] = self.c.beta1 * self.m[i] + (1 - self.c.beta1) * delta
                gap = delta**2 if self.c.optimizer == "yogi" else 0.0
                if self.c.optimizer == "yogi":
                    self.v[i] -= (1 - self.c.beta2) * gap * np.sign(self.v[i] - gap)
                else:
                    self.v[i] = self.c.beta2 * self.v[i] + (1 - self.c.beta2) * delta**2
                self.w[i] += self.c.rate * self.m[i] / (math.sqrt(self.v[i]) + self.c.tau)
            self.w[i] *= self.c.shrink


@pytest.mark.parametrize("kind", ["none", "momentum", "adam", "yogi"])
@given(seed=st.integers(0, 999), shrink=st.sampled_from([1.0, 0.9]))
@settings(max_examples=15)
def test_server_optimizers_step_as_their_formulas_say(kind: str, seed: int, shrink: float) -> None:
    fields: dict[str, Any] = {
        "none": {},
        "momentum": {"lr": 0.7, "momentum": 0.9},
        "adam": {"lr": 0.7, "tau": 0.01},
        "yogi": {"lr": 0.7, "tau": 0.01},
    }[kind]
    config = ServerOptimizerConfig(optimizer=kind, shrink=shrink, **fields)
    rng = np.random.default_rng(seed)
    weights = {"w": torch.from_numpy(rng.normal(size=(3, 4)).astype(np.float32))}
    reference, state = Reference(config, weights["w"].numpy()), Weights()
    for round_ in range(4):
        mean = torch.from_numpy(rng.normal(size=(3, 4)).astype(np.float32))
        choices: list[Tensor | bool] = [True, False, torch.from_numpy(rng.random((3, 4)) < 0.5)]
        mask = choices[int(rng.integers(3))]
        full = np.broadcast_to(np.asarray(mask), (3, 4))
        delta = torch.where(torch.from_numpy(full.copy()), mean - weights["w"], 0.0)
        # A new optimizer each round, as after a resume: the state is all that it needs.
        optimizer = ServerOptimizer(config, 4, state)
        before, old_state = weights["w"].numpy().copy(), {k: v.clone() for k, v in state.items()}
        weights = optimizer.step(weights, Merged({"w": delta}, {"w": mask}))
        state = optimizer.state
        reference.step(mean.double().numpy(), full)
        np.testing.assert_allclose(weights["w"].numpy(), reference.w, rtol=1e-4, atol=1e-5)
        assert weights["w"].numpy()[~full].tobytes() == before[~full].tobytes(), round_
        for key, value in old_state.items():
            assert state[key].numpy()[~full].tobytes() == value.numpy()[~full].tobytes()


def test_the_plain_mean_needs_no_state() -> None:
    optimizer = ServerOptimizer(ServerOptimizerConfig(), 4)
    found = Merged({"w": torch.ones(2)}, {"w": True})
    assert optimizer.step({"w": torch.zeros(2)}, found)["w"].tolist() == [1, 1]
    assert optimizer.state == {}


@pytest.mark.parametrize(
    ("rounds", "expected"), [(1, 0), (10, 0), (20, 0.5), (40, 0.75), (500, 0.8)]
)
def test_momentum_that_is_not_given_remembers_a_tenth_of_the_run(
    rounds: int, expected: float
) -> None:
    config = ServerOptimizerConfig(optimizer="momentum")
    assert config.momentum_of(rounds) == pytest.approx(expected)
    assert ServerOptimizerConfig(optimizer="momentum", momentum=0.9).momentum_of(rounds) == 0.9
