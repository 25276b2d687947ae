"""What one subnet gains over another on the same examples, as devices tell it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fedofa.client.app import app as honest_app
from fedofa.client.device import data as data_of
from fedofa.protos.messages import EvaluateReply, MessageError
from fedofa.protos.subnets import flat_statistics, set_statistics
from fedofa.server.evaluation import FederatedEvaluator, Target
from fedofa.server.paired import Paired, read_paired
from fedofa.supernet.axes import regions, take
from fedofa.supernet.cost import Budget
from fedofa.supernet.subnet import static
from fedofa.supernet.weights import initial
from fleets import Run, grid_of, small_config, small_fleet
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_the_gain_and_its_error_are_those_of_the_differences(
    right: list[tuple[bool, bool]],
) -> None:
    found = Paired(0, 0, 0, 0)
    for first, second in right:
        found += Paired(first & second, first & (not second), second & (not first), 1)
    differences = np.array([int(second) - int(first) for first, second in right])
    assert found.gain == pytest.approx(differences.mean())
    assert found.error == pytest.approx(differences.std() / np.sqrt(len(right)), abs=1e-9)
    assert found.first.correct == sum(first for first, _ in right)
    assert found.second.correct == sum(second for _, second in right)


def reply(correct: tuple[int, ...], gained: tuple[int, ...]) -> EvaluateReply:
    return EvaluateReply(device="d", examples=10, correct=correct, gained=gained)


def test_counts_that_cannot_be_are_refused() -> None:
    assert read_paired(reply((6, 7), (0, 3)), 10) == Paired(4, 2, 3, 10)
    for correct, gained in (
        ((6, 7), ()),  # not told
        ((6, 7), (0, 8)),  # more gained than right
        ((3, 7), (0, 2)),  # five right in both, three in the first
        ((6, 7), (0, 5)),  # six right in one alone, or both, and five more
    ):
        with pytest.raises(MessageError, match="evaluation"):
            read_paired(reply(correct, gained), 10)


def test_a_device_of_many_examples_counts_less_with_the_same_gain() -> None:
    found = Paired(500, 100, 300, 1000).lighter(0.1)
    assert found == Paired(50, 10, 30, 100)
    assert Paired(4, 2, 3, 10).lighter(1.0) == Paired(4, 2, 3, 10)


def test_devices_compare_two_sets_of_weights_example_by_example(tmp_path: Path) -> None:
    devices = small_fleet(tmp_path)
    run = Run(tmp_path, small_config(), grid_of(devices, honest_app))
    space, shared = run.training.space, [initial(run.training.space, seed) for seed in (3, 4)]
    evaluator = FederatedEvaluator(run.exchange, run.roll.gather(), space, shared[1], run.log)
    arch = space.smallest()
    before, after = Target(arch, Budget(params=3000), shared[0]), Target(arch, Budget(params=3000))
    statistics = evaluator.statistics([before, after])
    found = evaluator.compared(before, after, statistics)
    rights = []
    for place, weights in enumerate(shared):
        module = static(space, arch, take(weights, regions(space, arch))).eval()
        set_statistics(module, flat_statistics(statistics[place]), 0)
        right = []
        for data in map(data_of, devices):
            with torch.no_grad():
                logits = module(torch.from_numpy(data.normalized(data.validation.x)))
            right.append(logits.argmax(1).numpy() == data.validation.y)
        rights.append(np.concatenate(right))
    first, second = rights
    assert found == Paired(
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((second & ~first).sum()),
        len(first),
    )
    assert found.gained
    assert found.lost
