"""Searches of several classes side by side: what is asked of the devices, and what is reported."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedofa.protos.manifest import FileKind
from fedofa.protos.subnets import Statistics
from fedofa.server import measured_subnets
from fedofa.server.class_budgets import class_budgets
from fedofa.server.class_choice import Candidate, Choice
from fedofa.server.class_search import search_classes
from fedofa.server.config import parse_config
from fedofa.server.evaluation import FederatedEvaluator, Target
from fedofa.server.figures import FileMeasured, Measured
from fedofa.server.specialized import latency_ms
from fedofa.specialize.predictors.contract import Sample
from fedofa.specialize.predictors.linear import fit
from fedofa.specialize.predictors.rank_report import rank_report
from fedofa.specialize.search.contract import Evaluated, Found
from fedofa.specialize.search.methods import METHODS
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.space import Arch
from fleets import Run, grid_of, small_config, small_fleet
from toy_search import ALL, TOY

EXAMPLES = 200


class Counting(FederatedEvaluator):
    """Measures by a formula, and remembers what was asked together."""

    asked: list[list[Target]]
    silent: Sequence[Budget] = ()

    def statistics(self, targets: Sequence[Target]) -> dict[int, Statistics]:
        return {at: {} for at, t in enumerate(targets) if t.budget not in self.silent}

    def accuracy(
        self, targets: Sequence[Target], statistics: Mapping[int, Statistics]
    ) -> dict[int, Measured]:
        self.asked.append(list(targets))
        return {at: measured_of(targets[at].arch) for at in statistics}


def measured_of(arch: Arch) -> Measured:
    """More of the expand ratio is better, more of the width is not."""
    good = sum(value for gene, value in arch.items() if gene.endswith("expand"))
    return Measured(100 + 5 * round(good), EXAMPLES)


def searched(
    folder: Path, method: str, silent: Sequence[Budget] = (), number: int = 1, **search: Any
) -> tuple[dict[str, Choice], Counting, list[str], dict[str, str]]:
    few = {"samples": 12, "finalists": 2, "random_baseline": 3, "population": 16, "generations": 3}
    fields = {**few, **search, "method": method}
    run = Run(folder, small_config(search=fields), grid_of(small_fleet(folder)))
    fleet, training = run.roll.gather(), run.training
    evaluator = Counting(run.exchange, fleet, training.space, training.weights, run.log)
    evaluator.asked, evaluator.silent = [], silent
    classes = class_budgets(run.config, training.space, fleet, run.log)
    told: list[str] = []
    failed: dict[str, str] = {}
    choices = search_classes(
        run.config, evaluator, classes, number, told.append, failed.__setitem__
    )
    return choices, evaluator, told, failed


@pytest.mark.parametrize("method", METHODS)
def test_every_method_searches_every_class_within_its_budget(method: str, tmp_path: Path) -> None:
    choices, evaluator, told, failed = searched(tmp_path, method)
    assert set(choices) == {"big", "small"}
    assert not failed
    assert told == ["measuring sampled subnets", "searching", "measuring finalists"]
    for name, choice in choices.items():
        mine = [
            t.arch for asked in evaluator.asked[:-1] for t in asked if t.budget == choice.budget
        ]
        assert mine == [one.arch for one in choice.found.evaluated]
        assert len(mine) == len(set(mine)) <= 6 + 2
        final = [t.arch for t in evaluator.asked[-1] if t.budget == choice.budget]
        assert final == [c.arch for c in choice.candidates]
        assert {c.origin for c in choice.candidates} >= {"searched", "random"}
        assert choice.best.measured.accuracy == max(c.measured.accuracy for c in choice.candidates)
        assert choice.method == method
        if name == "small":
            space = small_config().build_space()
            assert all(cost(space, arch).params <= 3000 for arch in (*mine, *final))


def test_prediction_takes_two_measurements_whatever_it_looks_at(tmp_path: Path) -> None:
    choices, evaluator, _, _ = searched(tmp_path, "predicted", population=40, generations=10)
    assert len(evaluator.asked) == 2
    for choice in choices.values():
        assert choice.chosen_from == 1
        assert choice.candidates[0].origin == "searched"
        assert choice.candidates[0].arch not in {one.arch for one in choice.found.evaluated}


def test_the_best_that_was_measured_is_held_against_random_with_an_allowance(
    tmp_path: Path,
) -> None:
    choices, _, _, _ = searched(tmp_path, "mutation")
    for choice in choices.values():
        assert choice.candidates[0].arch == choice.found.best.arch
        assert choice.chosen_from == choice.found.evaluations > 1


def test_a_search_depends_on_configuration_and_measurements_alone(tmp_path: Path) -> None:
    first, _, _, _ = searched(tmp_path / "a", "predicted")
    again, _, _, _ = searched(tmp_path / "b", "predicted")
    assert first == again


def test_a_supernet_that_is_searched_again_is_measured_elsewhere(tmp_path: Path) -> None:
    first, second, again = (
        searched(tmp_path / str(place), "random", number=number, samples=24)[0]
        for place, number in enumerate((1, 2, 2))
    )
    assert second == again
    for name, choice in first.items():
        archs = [{one.arch for one in c[name].found.evaluated} for c in (first, second)]
        drawn = [
            {one.arch for one in c[name].candidates if one.origin == "random"}
            for c in (first, second)
        ]
        assert len(archs[0] & archs[1]) < len(archs[0]) / 2  # the largest that fits is in both
        assert not drawn[0] & drawn[1]
        assert choice.method == "random"


def test_a_subnet_measured_again_counts_once_and_an_unfinished_search_is_repeated(
    tmp_path: Path,
) -> None:
    choices, evaluator, _, _ = searched(tmp_path, "random")
    sha, space = "1" * 64, evaluator.space

    def number(kind: measured_subnets.Search) -> int:
        return measured_subnets.next_search(tmp_path, sha, kind)

    def add(kind: measured_subnets.Search) -> Sequence[Sample]:
        measured_subnets.add(tmp_path, sha, kind, choices.values())
        return measured_subnets.samples(tmp_path, sha, space)

    assert number("evaluate") == number("specialize") == 1
    first = add("evaluate")
    assert {one.group for one in first} == {"1.big", "1.small"}
    assert (number("evaluate"), number("specialize")) == (1, 2)  # their job did not end
    assert add("evaluate") == first
    for _ in range(2):
        again = add("specialize")
        assert [(s.arch, s.accuracy) for s in again] == [(s.arch, s.accuracy) for s in first]
        assert {one.group for one in again} == {"2.big", "2.small"}
        assert (number("evaluate"), number("specialize")) == (1, 2)
    measured_subnets.finish(tmp_path)
    assert number("evaluate") == number("specialize") == 3
    assert measured_subnets.next_search(tmp_path, "2" * 64, "evaluate") == 1


def test_a_class_that_nobody_measures_leaves_the_others(tmp_path: Path) -> None:
    for method in ("predicted", "mutation"):
        choices, _, _, failed = searched(tmp_path / method, method, silent=[Budget(params=3000)])
        assert set(choices) == {"big"}
        assert set(failed) == {"small"}
        assert "no device answered" in failed["small"]


def test_when_nobody_answers_there_is_no_choice(tmp_path: Path) -> None:
    silent = [Budget(params=3000), Budget()]
    choices, _, _, failed = searched(tmp_path, "mutation", silent=silent)
    assert not choices
    assert set(failed) == {"big", "small"}


def test_an_unknown_method_names_those_that_there_are() -> None:
    for field in ("method", "predictor"):
        with pytest.raises(UsageError, match=rf"search\.{field}.*(predicted|linear)"):
            parse_config({"classes": {"a": {}}, "search": {field: "magic"}})


# ── what is reported ─────────────────────────────────────────────────────────────────────────────


def choice(correct: Sequence[tuple[str, int]]) -> Choice:
    candidates = tuple(
        Candidate(arch, origin, 1000, Measured(right, EXAMPLES))
        for arch, (origin, right) in zip(ALL, correct, strict=False)
    )
    samples = tuple(Evaluated(arch, 0.5, 0.01) for arch in ALL[:3])
    return Choice(
        device_class="any",
        budget=Budget(),
        best=max(candidates, key=lambda c: c.measured.accuracy),
        statistics={},
        candidates=candidates,
        method="predicted",
        found=Found(samples),
        chosen_from=1,
        rank=rank_report(TOY, [Sample(s.arch, "a", s.score, s.error) for s in samples], fit),
    )


def test_searched_is_claimed_only_where_the_interval_is_above_zero() -> None:
    far = choice([("searched", 190), ("largest", 150), *[("random", 120 + at) for at in range(5)]])
    near = choice([("searched", 151), ("largest", 150), *[("random", 148 + at) for at in range(5)]])
    assert far.to_row()["searched"] is True
    assert near.to_row()["searched"] is False
    assert near.to_row()["audit"]["improvement"]["low"] < 0 < near.to_row()["over_random"]["mean"]


def test_measured_latencies_stand_beside_the_predicted_one() -> None:
    found = replace(
        choice([("searched", 140), ("random", 160)]),
        predicted_ms={"tflite_int8": 2.5, "onnx_int8": 9.0},
    )
    some = Measured(1, 2)
    timed = {"dev-1": 0.001, "dev-2": 0.004, "dev-3": 0.002}
    figures: dict[FileKind, FileMeasured] = {
        "tflite_int8": FileMeasured(some, some, 1, 0.1, latency_s=timed),
        "tflite_fp32": FileMeasured(some, some, 1, 0.1),
        "onnx_int8": FileMeasured(some, some, 1, 0.1),
    }
    nobody = {"median": None, "slowest": None, "devices": 0}
    assert latency_ms(found.predicted_ms, figures) == {
        "tflite_int8": {"predicted": 2.5, "median": 2.0, "slowest": 4.0, "devices": 3},
        "onnx_int8": {"predicted": 9.0, **nobody},
    }


def test_a_random_subnet_that_measures_best_is_taken_and_not_claimed() -> None:
    found = choice([("searched", 140), ("random", 160), ("random", 150)])
    assert found.best.origin == "random"
    assert found.to_row()["searched"] is False


def test_without_anything_to_compare_with_nothing_is_claimed() -> None:
    for others in ([], [("random", 0)], [("random", 100)]):
        row = choice([("searched", 190), *others]).to_row()
        assert row["searched"] is False
    assert choice([("searched", 190)]).to_row()["audit"] is None
