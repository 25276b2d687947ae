"""Predictors recover rankings, say how sure they are, and are told when they earn nothing."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fedofa.specialize.predictors import gaussian, linear, network, trees
from fedofa.specialize.predictors.blend import blend_of
from fedofa.specialize.predictors.contract import Fit, Predictor, Sample
from fedofa.specialize.predictors.features import encode
from fedofa.specialize.predictors.folds import arch_folds, folds_of
from fedofa.specialize.predictors.kinds import PREDICTORS
from fedofa.specialize.predictors.rank_report import rank_report
from fedofa.specialize.predictors.ranks import kendall_tau
from fedofa.specialize.zero_cost import saliencies, zero_cost_scores
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.space import Arch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DIGITS
from toy_search import ALL, TOY, Truth, linear_truth, macs_of

KINDS = [pytest.param(fit, id=name) for name, fit in PREDICTORS.items()]


def drawn(truth: Truth, rng: random.Random, count: int, group: str = "all") -> list[Sample]:
    archs = dict.fromkeys(DIGITS.sample(rng) for _ in range(count))
    return [Sample(arch, group, truth(arch)) for arch in archs]


def tau(predictor: Predictor, truth: Truth, archs: Sequence[Arch]) -> float:
    real = np.array([truth(arch) for arch in archs])
    return kendall_tau(predictor.predict(archs).score, real)


def fresh(rng: random.Random, count: int = 200) -> list[Arch]:
    return [DIGITS.sample(rng) for _ in range(count)]


# ── all of them ──────────────────────────────────────────────────────────────────────────────────

LEAST = {linear.fit: 0.9, gaussian.fit: 0.9, network.fit: 0.75}


@pytest.mark.parametrize("fit", KINDS)
def test_a_predictor_recovers_the_ranking_of_a_linear_truth(fit: Fit) -> None:
    truth, rng = linear_truth(DIGITS, 0), random.Random(0)
    predictor = fit(DIGITS, drawn(truth, rng, 150))
    assert tau(predictor, truth, fresh(rng)) > LEAST.get(fit, 0.6)


@pytest.mark.parametrize("fit", KINDS)
def test_a_few_dozen_measurements_rank_better_than_chance(fit: Fit) -> None:
    truth, rng = linear_truth(DIGITS, 0), random.Random(0)
    predictor = fit(DIGITS, drawn(truth, rng, 24))
    assert tau(predictor, truth, fresh(rng)) > 0.25


@pytest.mark.parametrize("fit", KINDS)
def test_groups_measured_on_other_examples_do_not_disturb_the_ranking(fit: Fit) -> None:
    """One group's examples are easier by far, which says nothing about its architectures."""
    truth, rng = linear_truth(DIGITS, 1), random.Random(1)
    samples = drawn(truth, rng, 80, "hard")
    easy = [Sample(s.arch, "easy", s.accuracy + 0.4) for s in drawn(truth, rng, 80)]
    archs = fresh(rng)
    both = tau(fit(DIGITS, samples + easy), truth, archs)
    assert both > tau(fit(DIGITS, samples), truth, archs) - 0.05
    before = [(s.arch, s.accuracy) for s in easy]
    fit(DIGITS, easy)
    assert [(s.arch, s.accuracy) for s in easy] == before


@pytest.mark.parametrize("fit", KINDS)
def test_where_nothing_differs_nothing_is_preferred(fit: Fit) -> None:
    rng = random.Random(0)
    for samples in (drawn(lambda _: 0.7, rng, 10), [Sample(DIGITS.smallest(), "one", 0.3)]):
        found = fit(DIGITS, samples).predict([DIGITS.largest(), DIGITS.smallest()])
        assert found.score == pytest.approx([0, 0], abs=1e-9)
        assert np.isfinite(found.spread).all()


@pytest.mark.parametrize("fit", KINDS)
def test_no_sample_is_a_usage_error_and_no_question_no_answer(fit: Fit) -> None:
    with pytest.raises(UsageError, match="no measured subnet"):
        fit(DIGITS, [])
    some = fit(DIGITS, drawn(linear_truth(DIGITS, 0), random.Random(0), 6))
    assert some.predict([]).score.shape == some.predict([]).spread.shape == (0,)


@pytest.mark.parametrize("fit", KINDS)
def test_a_fit_depends_on_the_samples_alone(fit: Fit) -> None:
    samples = drawn(linear_truth(DIGITS, 0), random.Random(0), 20)
    archs = fresh(random.Random(1), 5)
    first = fit(DIGITS, samples).predict(archs)
    np.random.seed(5)
    again = fit(DIGITS, samples).predict(archs)
    assert first.score.tolist() == again.score.tolist()
    assert first.spread.tolist() == again.spread.tolist()


@pytest.mark.parametrize("fit", [linear.fit, gaussian.fit])
def test_predictions_do_not_depend_on_the_order_of_measurements(fit: Fit) -> None:
    samples = drawn(linear_truth(DIGITS, 0), random.Random(0), 30)
    archs = fresh(random.Random(1), 5)
    one, other = fit(DIGITS, samples).predict(archs), fit(DIGITS, samples[::-1]).predict(archs)
    assert one.score == pytest.approx(other.score, abs=1e-8)
    assert one.spread == pytest.approx(other.spread, abs=1e-8)


def test_features_tell_any_two_architectures_apart() -> None:
    assert len({tuple(row) for row in encode(TOY, ALL)}) == len(ALL)
    assert encode(TOY, []).shape == (0, encode(TOY, ALL[:1]).shape[1])


# ── each for itself ──────────────────────────────────────────────────────────────────────────────


def test_the_linear_spread_is_that_of_residuals_left_out() -> None:
    truth, rng = linear_truth(DIGITS, 0), np.random.default_rng(0)
    samples = [
        Sample(s.arch, "all", s.accuracy + float(rng.normal(0, 0.03)))
        for s in drawn(truth, random.Random(0), 300)
    ]
    predictor = linear.fit(DIGITS, samples)
    assert predictor.predict([DIGITS.smallest()]).spread[0] == pytest.approx(0.03, rel=0.2)


def test_the_gaussian_ensemble_passes_near_what_it_saw_and_is_less_sure_elsewhere() -> None:
    truth = linear_truth(TOY, 0)
    seen = ALL[::24]
    predictor = gaussian.fit(TOY, [Sample(arch, "all", truth(arch)) for arch in seen])
    known, unknown = predictor.predict(seen), predictor.predict(ALL)
    real = np.array([truth(arch) for arch in seen])
    assert np.abs(known.score - (real - real.mean())).max() < 0.2 * real.std()
    assert known.spread.mean() < unknown.spread.mean()


def test_the_gaussian_ensemble_knows_how_far_it_is_off() -> None:
    """Of noisy measurements with known errors, the 80 % interval holds about 80 % of the truths."""
    rng, inside = np.random.default_rng(0), []
    for seed in range(6):
        truth = linear_truth(TOY, seed)
        seen = rng.permutation(len(ALL))[:40]
        samples = [
            Sample(ALL[at], "all", truth(ALL[at]) + float(rng.normal(0, 0.02)), 0.02) for at in seen
        ]
        found = gaussian.fit(TOY, samples).predict(ALL)
        off = np.array([truth(arch) for arch in ALL]) - np.mean([s.accuracy for s in samples])
        inside.append(np.abs(found.score - off) < 1.2816 * found.spread)
    assert 0.65 < float(np.mean(inside)) < 0.97


def test_a_measurement_with_a_large_error_counts_less() -> None:
    truth = linear_truth(TOY, 0)
    good = [Sample(arch, "all", truth(arch), 0.01) for arch in ALL[::20]]
    odd = ALL[10]
    errors = (0.01, 0.5)
    found = [
        gaussian.fit(TOY, [*good, Sample(odd, "all", truth(odd) + 0.5, error)]).predict([odd])
        for error in errors
    ]
    centre = np.mean([s.accuracy for s in good])
    sure, unsure = (abs(float(one.score[0]) - (truth(odd) - centre)) for one in found)
    assert unsure < sure


def test_the_networks_gradients_are_those_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=7)
    layers = [rng.normal(size=shape) for shape in ((2, 4, 3), (2, 1, 3), (2, 3, 1), (2, 1, 1))]

    def loss(layers: Sequence[np.ndarray]) -> float:
        return float(np.sum((network._forward(layers, x)[1] - y) ** 2) / (2 * len(y)))

    found = network.gradients(layers, x, y)
    for place, layer in enumerate(layers):
        for at in np.ndindex(layer.shape):
            moved = [one.copy() for one in layers]
            moved[place][at] += 1e-6
            assert found[place][at] == pytest.approx((loss(moved) - loss(layers)) / 1e-6, abs=1e-4)


# ── blends of scores ─────────────────────────────────────────────────────────────────────────────


def test_a_blend_ranks_what_was_measured_at_least_as_well_as_its_best_score() -> None:
    for seed in range(4):
        truth = linear_truth(TOY, seed)
        scores = {str(at): linear_truth(TOY, 100 * seed + at + 1) for at in range(3)}
        scores["macs"] = lambda arch: -float(macs_of(arch))
        samples = [Sample(arch, "all", truth(arch)) for arch in ALL[::16]]
        archs = [sample.arch for sample in samples]
        blended = tau(blend_of(scores)(TOY, samples), truth, archs)
        alone = [
            abs(kendall_tau(np.array([s(a) for a in archs]), np.array([truth(a) for a in archs])))
            for s in scores.values()
        ]
        assert blended >= max(alone)


def test_a_blend_finds_the_sum_of_two_scores() -> None:
    one, two = linear_truth(TOY, 1), linear_truth(TOY, 2)
    samples = [Sample(arch, "all", one(arch) + two(arch)) for arch in ALL[::16]]
    fit = blend_of({"one": one, "two": two})
    assert tau(fit(TOY, samples), lambda arch: one(arch) + two(arch), ALL) > 0.85


def test_a_score_that_is_no_number_counts_nothing() -> None:
    truth = linear_truth(TOY, 1)
    samples = [Sample(arch, "all", truth(arch)) for arch in ALL[::16]]
    fit = blend_of({"nan": lambda _: math.nan, "truth": truth})
    assert tau(fit(TOY, samples), truth, ALL) == pytest.approx(1)
    with pytest.raises(UsageError, match="at least one score"):
        blend_of({})


def test_zero_cost_scores_add_up_over_nested_subnets() -> None:
    from fedofa.supernet.weights import initial

    weights = initial(TOY, 0)
    scores = zero_cost_scores(TOY, weights, 0)
    assert set(scores) == {"macs", "params", "weight_norm", "saliency"}
    for score in scores.values():
        assert 0 < score(TOY.smallest()) < score(TOY.largest())
        for arch in ALL[::40]:
            assert all(score(larger) >= score(arch) for larger in TOY.grown(arch))
    assert scores["params"](TOY.largest()) == cost(TOY, TOY.largest()).params
    total = sum(float(value.abs().sum()) for value in weights.values())
    assert scores["weight_norm"](TOY.largest()) == pytest.approx(total, rel=1e-5)
    salient = saliencies(TOY, weights, 0)
    assert {name: value.shape for name, value in salient.items()} == {
        name: value.shape for name, value in weights.items()
    }


# ── ranks ────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=10))
def test_kendalls_tau_counts_pairs(pairs: list[tuple[int, int]]) -> None:
    agree = untied_a = untied_b = 0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[:i]:
            agree += ((a > c) - (a < c)) * ((b > d) - (b < d))
            untied_a, untied_b = untied_a + (a != c), untied_b + (b != d)
    expected = agree / math.sqrt(untied_a * untied_b) if untied_a and untied_b else 0.0
    a, b = (np.array(side, float) for side in zip(*pairs, strict=True))
    assert kendall_tau(a, b) == pytest.approx(expected)


def test_kendalls_tau_of_hand_made_rankings() -> None:
    assert kendall_tau(np.array([1.0, 2, 3]), np.array([10.0, 20, 30])) == 1
    assert kendall_tau(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1
    assert kendall_tau(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)


@given(st.integers(1, 40), st.integers(1, 8))
def test_every_sample_is_held_out_once(count: int, folds: int) -> None:
    parts = folds_of(count, folds)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert len(parts) == min(folds, count)


@given(st.lists(st.sampled_from(ALL[:9]), min_size=1, max_size=30), st.integers(1, 6))
def test_all_measurements_of_a_subnet_are_held_out_together(archs: list[Arch], folds: int) -> None:
    parts = arch_folds(archs, folds)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(archs)))
    held = [{archs[at] for at in part} for part in parts]
    assert sum(map(len, held)) == len(set(archs))


# ── the rank report ──────────────────────────────────────────────────────────────────────────────


def samples_of(truth: Truth, archs: Sequence[Arch], error: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(a, "all", truth(a) + float(rng.normal(0, error or 1e-12)), error) for a in archs]


def test_a_predictor_that_sees_more_than_size_earns_its_place() -> None:
    report = rank_report(TOY, samples_of(linear_truth(TOY, 0), ALL[::8], 0.005), linear.fit)
    assert report.verdict == "earns its place"
    assert report.tau > 0.8 > report.tau_macs
    assert report.gain[0] > 0
    assert report.ceiling is not None
    assert report.tau < report.ceiling + 0.1
    assert report.regret[5] <= report.regret[3] <= report.regret[1]
    assert report.to_dict()["verdict"] == report.verdict


def test_where_size_is_everything_a_predictor_earns_nothing() -> None:
    report = rank_report(TOY, samples_of(lambda a: macs_of(a) / 1e5, ALL[::12]), linear.fit)
    assert report.tau_macs > 0.99
    assert report.verdict == "no better than MACs alone"
    assert report.ceiling is None


def test_where_accuracies_are_noise_a_predictor_earns_nothing() -> None:
    noise = np.random.default_rng(1).normal(0.5, 0.1, len(ALL))
    table = dict(zip(ALL, map(float, noise), strict=True))
    report = rank_report(TOY, samples_of(table.__getitem__, ALL[::12], 0.1), linear.fit)
    assert report.verdict == "no better than MACs alone"
    assert report.ceiling is not None
    assert report.ceiling < 0.6


def test_noise_that_was_measured_twice_is_no_better_learned() -> None:
    noise = np.random.default_rng(1).normal(0.5, 0.1, len(ALL))
    table = dict(zip(ALL, map(float, noise), strict=True))
    once = samples_of(table.__getitem__, ALL[::30], 0.01)
    report = rank_report(TOY, [*once, *(replace(s, group="again") for s in once)], trees.fit)
    assert report.subnets == len(once)
    assert report.verdict == "no better than MACs alone"
    few = [replace(s, group=group) for s in once[:9] for group in ("one", "two")]
    assert rank_report(TOY, few, trees.fit).verdict == "too few to say"


def test_of_a_few_subnets_nothing_is_said() -> None:
    few = samples_of(linear_truth(TOY, 0), ALL[::120])
    assert rank_report(TOY, few, linear.fit).verdict == "too few to say"
    assert rank_report(TOY, few[:1], linear.fit).verdict == "too few to say"


def test_nothing_is_compared_between_groups() -> None:
    """Two groups whose levels differ: across them even a blind predictor would look good."""
    truth = linear_truth(TOY, 0)
    low = [Sample(a, "low", truth(a), 0.01) for a in ALL[:200:10]]
    high = [Sample(a, "high", truth(a) + 5, 0.01) for a in ALL[200::10]]
    report = rank_report(TOY, [*low, *high], linear.fit)
    assert report.rmse_of_mean < 1
    assert report.tau_macs < 0.7


def test_the_ceiling_falls_as_errors_grow() -> None:
    truth = linear_truth(TOY, 0)
    found = [
        rank_report(TOY, samples_of(truth, ALL[::12], error), linear.fit).ceiling
        for error in (0.001, 0.05, 0.5)
    ]
    assert found[0] > 0.9 > found[1] > found[2]  # type: ignore[operator]
