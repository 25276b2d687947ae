"""The search benchmark's regrets and tables, over truths that are made up."""

from collections.abc import Callable

import numpy as np
import pytest
from fedofa.benchmarks.search import methods, run
from fedofa.benchmarks.search_table import CAPS, MARKS, Record, beside, largest, rows, within
from fedofa.benchmarks.search_truth import SPACE, Truth, digits_much_validation, every
from fedofa.client.datasets import digits
from fedofa.supernet.cost import cost
from fedofa.supernet.space import Arch

ARCHS = list(every(SPACE))


def truth(score: Callable[[Arch], float], seed: int = 0) -> Truth:
    table = {arch: score(arch) for arch in ARCHS}
    return Truth(seed, table, {arch: value - 0.1 for arch, value in table.items()}, (500, 400))


def by_size(arch: Arch) -> float:
    return 0.5 + cost(SPACE, arch).macs / 1e6


def test_the_space_is_large_enough_to_say_something() -> None:
    assert len(ARCHS) == len(set(ARCHS)) == 432
    for cap in CAPS:
        fitting = within(truth(by_size), cap)
        assert 100 < len(fitting) < len(ARCHS)
        assert all(
            cost(SPACE, arch).macs <= CAPS[cap] * cost(SPACE, SPACE.largest()).macs
            for arch in fitting
        )


def test_regret_is_what_the_best_evaluated_one_lacks_in_points() -> None:
    """Where small is good, the largest, from which all begin, is the worst of all."""
    found = truth(lambda arch: 1.0 - by_size(arch))
    fitting = within(found, "tight")
    best = max(found.validation[arch] for arch in fitting)
    (record,) = run(found, "tight", "mutation", methods()["mutation"], 1)
    assert record.evaluations == MARKS[-1]
    assert list(record.regret) == sorted(record.regret, reverse=True)
    assert 0 <= record.regret[-1] <= record.regret[0]
    assert record.regret[0] < 100 * (best - found.validation[largest(fitting)])
    assert record.validation == pytest.approx(best - record.regret[1] / 100)
    assert record.test == pytest.approx(record.validation - 0.1)


def test_one_fit_is_another_search_at_each_mark() -> None:
    found = truth(by_size)
    (record,) = run(found, "tight", "predicted once", methods()["predicted once"], 1)
    assert len(record.regret) == len(MARKS)
    assert record.evaluations == MARKS[-1]


def record(seed: int, regret: float, test: float, method: str = "a") -> Record:
    return Record(method, "tight", seed, 0, (regret,) * 4, 100, 0.9, test)


def test_the_table_says_whether_the_goal_is_met_and_searched_may_be_said() -> None:
    rng = np.random.default_rng(0)
    near = [record(seed, 0.3, 0.85 + float(rng.normal(0, 0.001))) for seed in range(5)]
    far = [record(seed, 0.31, 0.8 + float(rng.normal(0, 0.01)), "random") for seed in range(5)]
    loose = [Record(r.method, "loose", *_rest(r)) for r in (*near, *far)]
    table = rows([*near, *far, *loose], ["a", "random"])
    assert [(row["cap"], row["method"]) for row in table] == [
        ("tight", "a"), ("tight", "random"), ("loose", "a"), ("loose", "random"),
    ]  # fmt: skip
    assert [row["within goal"] for row in table[:2]] == [True, False]
    assert [row["searched"] for row in table[:2]] == [True, False]
    assert table[0]["regret at 25"] == "0.30 ± 0.00"


def _rest(record: Record) -> tuple[int, int, tuple[float, ...], int, float, float]:
    return (
        record.seed,
        record.repeat,
        record.regret,
        record.evaluations,
        record.validation,
        record.test,
    )


def test_what_no_method_can_do_stands_beside() -> None:
    (tight, loose) = beside([truth(by_size)])
    assert tight["best by validation"] == tight["best by test"]
    assert float(tight["mean"].split(" / ")[0]) < float(tight["largest"].split(" / ")[0])
    assert tight["subnets"] < loose["subnets"]


def test_much_validation_takes_the_same_examples_and_no_other() -> None:
    usual = digits(client=1, clients=4)
    found = digits_much_validation(client=1, clients=4)
    total = len(usual.train) + len(usual.validation)
    assert len(found.train) + len(found.validation) == total
    assert len(found.validation) == pytest.approx(0.4 * total, abs=1)
    both = np.concatenate([found.train.x, found.validation.x]).reshape(total, -1)
    before = np.concatenate([usual.train.x, usual.validation.x]).reshape(total, -1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, before.tolist()))
