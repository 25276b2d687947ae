"""What is particular to a search method: its paper's own promise, checked on a listed space."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from fedofa.specialize.predictors.contract import Prediction, Predictor, Sample
from fedofa.specialize.predictors.linear import fit
from fedofa.specialize.search.bandit import Bandit, worth
from fedofa.specialize.search.contract import Evaluated, Task
from fedofa.specialize.search.evolution import Evolution
from fedofa.specialize.search.linas import Linas
from fedofa.specialize.search.loop import Run, one_by_one, search
from fedofa.specialize.search.nsga2 import Nsga2
from fedofa.specialize.search.pareto import front_of, hypervolume, nondominated, points_of
from fedofa.specialize.search.policy_gradient import (
    PolicyGradient,
    chances_of,
    draw,
    feasible_gradient,
    log_gradient,
    probabilities,
)
from fedofa.specialize.search.predicted import Predicted
from fedofa.specialize.search.preselect import Preselect
from fedofa.specialize.search.random_search import RandomSearch
from fedofa.specialize.search.soft_sampler import SoftSampler, softly
from fedofa.supernet.errors import UsageError
from fedofa.supernet.space import Arch, Space
from toy_search import ALL, FLAT, TOY, linear_truth, macs_of, plain_sum


def anything(_: Arch) -> bool:
    return True


# ── evolution, prediction ────────────────────────────────────────────────────────────────────────


def test_evolution_breeds_from_the_better_half_only() -> None:
    """With no mutation, children hold nothing but options of the better half."""
    run = Run(Evolution(population=8, mutation=0.0), Task(FLAT, anything, 60), random.Random(1))
    truth = linear_truth(FLAT, 0)
    first = run.ask()
    run.tell(one_by_one(truth)(first))
    better = sorted(first, key=truth, reverse=True)[: 8 // 2]
    allowed = {item for arch in better for item in arch.items()}
    children = run.ask()
    assert children
    assert all(set(child.items()) <= allowed for child in children)


def test_what_was_predicted_to_be_best_is_measured_next() -> None:
    truth = linear_truth(TOY, 2)
    task = Task(TOY, anything, 48, at_once=8)
    run = Run(Predicted(fit, share=40 / 48), task, random.Random(0))
    first = run.ask()
    assert len(first) == 40
    run.tell(one_by_one(truth)(first))
    found = run.ask()
    assert len(found) == 8
    predictor = fit(TOY, [Sample(arch, "", truth(arch)) for arch in first])
    scores = {arch: predictor.predict([arch]).score[0] for arch in ALL if arch not in first}
    best = sorted(scores, key=lambda arch: scores[arch], reverse=True)[:8]
    # Evolution looks at 150 of the 960, so that it need not see all of the best.
    assert len(set(found) & set(best)) >= 3


def test_measurements_of_other_groups_teach_the_predictor() -> None:
    truth = linear_truth(TOY, 3)
    others = tuple(Sample(arch, "other", truth(arch) + 0.3) for arch in ALL[::4])
    alone = Task(TOY, anything, 8, at_once=4)
    helped = Task(TOY, anything, 8, at_once=4, related=lambda: others)
    scores = [
        [
            search(Predicted(fit), task, one_by_one(truth), random.Random(seed)).best.score
            for seed in range(4)
        ]
        for task in (alone, helped)
    ]
    assert sum(scores[1]) > sum(scores[0])
    assert scores[1] == pytest.approx([max(map(truth, ALL))] * 4, abs=0.05)


# ── LINAS and NSGA-II ────────────────────────────────────────────────────────────────────────────


def volume(archs: list[Evaluated]) -> float:
    points = points_of(archs, lambda arch: (float(macs_of(arch)),))
    return hypervolume(points, (0.0, float(macs_of(TOY.largest()) + 1)))


def test_nsga2_finds_the_front_of_exact_objectives() -> None:
    def objectives(archs: list[Arch]) -> np.ndarray:
        return np.array([(-plain_sum(arch), float(macs_of(arch))) for arch in archs])

    found = Nsga2(population=40, generations=30).front(
        TOY, anything, objectives, random.Random(0), []
    )
    whole = [Evaluated(arch, plain_sum(arch), 0) for arch in ALL]
    mine = [Evaluated(arch, plain_sum(arch), 0) for arch in found]
    assert volume(mine) >= 0.99 * volume(whole)
    assert nondominated(objectives(found[:2])).all()


def test_linas_spans_the_front_with_an_eighth_of_the_evaluations_and_beats_random() -> None:
    gains = []
    for seed in range(4):
        truth = linear_truth(TOY, seed)
        low = min(map(truth, ALL))

        def score(arch: Arch, truth: object = truth, low: float = low) -> float:
            return truth(arch) - low  # type: ignore[operator,no-any-return]

        task = Task(TOY, anything, 120)
        mine, drawn = (
            search(method, task, one_by_one(score), random.Random(seed)).evaluated
            for method in (Linas(fit, population=30), RandomSearch())
        )
        whole = volume([Evaluated(arch, score(arch), 0) for arch in ALL])
        assert volume(list(mine)) >= 0.95 * whole
        gains.append(volume(list(mine)) >= volume(list(drawn)))
    assert sum(gains) >= 3


def test_the_front_that_was_evaluated_is_the_same_for_the_same_seed() -> None:
    def front(seed: int) -> tuple[Evaluated, ...]:
        task = Task(TOY, anything, 40)
        truth = one_by_one(linear_truth(TOY, 0))
        return front_of(
            search(Linas(fit), task, truth, random.Random(seed)).evaluated, task.keep_small
        )

    assert front(5) == front(5)
    assert front(5) != front(6)


# ── policy gradient ──────────────────────────────────────────────────────────────────────────────


def policy(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {gene.name: rng.normal(0, 1, len(gene.options)) for gene in TOY.genes}


def chance(logits: dict[str, np.ndarray], arch: Arch) -> float:
    return math.prod(
        float(probabilities(logits[gene.name])[gene.options.index(arch[gene.name])])
        for gene in TOY.genes
        if gene.name in arch
    )


def tight(arch: Arch) -> bool:
    return macs_of(arch) <= 0.4 * macs_of(TOY.largest())


def flat(parts: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([parts[gene.name] for gene in TOY.genes])


def test_the_policy_draws_with_its_own_chances() -> None:
    logits = policy(0)
    assert sum(chance(logits, arch) for arch in ALL) == pytest.approx(1)
    rng = random.Random(0)
    drawn = Counter(draw(TOY, chances_of(logits), rng) for _ in range(4000))
    likely = max(ALL, key=lambda arch: chance(logits, arch))
    assert drawn[likely] / 4000 == pytest.approx(chance(logits, likely), rel=0.25)


def test_the_estimated_gradient_of_what_fits_converges_to_the_exact_one() -> None:
    logits = policy(1)
    inside = [arch for arch in ALL if tight(arch)]
    share = sum(chance(logits, arch) for arch in inside)
    exact = (
        sum(chance(logits, arch) * flat(log_gradient(TOY, logits, arch)) for arch in inside) / share
    )
    rng = random.Random(0)

    def error(draws: int, times: int) -> float:
        found = [flat(feasible_gradient(TOY, tight, logits, draws, rng)) for _ in range(times)]
        return float(np.sqrt(np.mean([np.sum((one - exact) ** 2) for one in found])))

    few, many = error(30, 30), error(1080, 4)
    assert few / many == pytest.approx(6, rel=0.5)  # √(1080 / 30)
    assert np.linalg.norm(exact) > 3 * many


def test_the_gradient_of_a_log_chance_is_that_of_the_chance() -> None:
    logits, arch, step = policy(2), ALL[77], 1e-6
    found = flat(log_gradient(TOY, logits, arch))
    numeric = []
    for gene in TOY.genes:
        for place in range(len(gene.options)):
            moved = {name: values.copy() for name, values in logits.items()}
            moved[gene.name][place] += step
            numeric.append((math.log(chance(moved, arch)) - math.log(chance(logits, arch))) / step)
    assert found == pytest.approx(np.array(numeric), abs=1e-4)


def test_a_policy_in_a_tiny_feasible_set_goes_on_with_what_is_new() -> None:
    fitting = sorted(ALL, key=macs_of)[:6]
    task = Task(TOY, lambda arch: arch in fitting, 50)
    found = search(PolicyGradient(), task, one_by_one(plain_sum), random.Random(0))
    assert found.evaluations >= 4
    assert found.best.score >= sorted(map(plain_sum, fitting))[-2]


# ── bandit ───────────────────────────────────────────────────────────────────────────────────────


def test_every_option_is_tried_before_any_is_tried_again() -> None:
    most = max(len(gene.options) for gene in FLAT.genes)
    task = Task(FLAT, anything, most)
    found = search(Bandit(), task, one_by_one(plain_sum), random.Random(0))
    times = Counter(item for one in found.evaluated for item in one.arch.items())
    for gene in FLAT.genes:
        counts = [times[gene.name, option] for option in gene.options]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1 + most - len(gene.options)


def test_an_options_worth_is_its_mean_reward_and_its_confidence() -> None:
    a, b = TOY.smallest(), TOY.largest()
    known = {a: Evaluated(a, 1.0, 0), b: Evaluated(b, 3.0, 0)}
    found = worth(known, 0.5, Counter())
    bonus = 0.5 * math.sqrt(2 * math.log(2) / 1)
    assert found["stem.width", 4] == pytest.approx(0 + bonus)
    assert found["stem.width", 8] == pytest.approx(1 + bonus)


# ── soft sampling ────────────────────────────────────────────────────────────────────────────────


def test_cold_sampling_takes_the_best_and_hot_sampling_takes_any() -> None:
    scores, rng = [0.3, 0.9, 0.1, 0.7], random.Random(0)
    assert softly(scores, 1e-6, 3, rng) == [1, 3, 0]
    hot = Counter(softly(scores, 1e9, 1, rng)[0] for _ in range(4000))
    expected = 1000
    assert sum((hot[at] - expected) ** 2 / expected for at in range(4)) < 16.3  # p = 0.001


class Wrong:
    """Prefers what is worst."""

    def predict(self, archs: list[Arch]) -> Prediction:
        scores = np.array([-linear_truth(TOY, 0)(arch) for arch in archs])
        return Prediction(scores, np.zeros(len(archs)))


def always_wrong(_space: Space, _samples: object) -> Predictor:
    return Wrong()


def test_softness_survives_a_predictor_that_is_wrong() -> None:
    def best(temperature: float) -> float:
        method = SoftSampler(always_wrong, first=2, pool=40, temperature=temperature, decay=1.0)
        found = [
            search(
                method,
                Task(TOY, anything, 20),
                one_by_one(linear_truth(TOY, 0)),
                random.Random(seed),
            )
            for seed in range(5)
        ]
        return sum(one.best.score for one in found)

    assert best(5.0) > best(1e-6)


# ── preselection ─────────────────────────────────────────────────────────────────────────────────


def test_the_best_of_each_size_is_evaluated_and_nothing_else() -> None:
    prior = linear_truth(TOY, 0)
    task = Task(TOY, tight, 20, prior=prior)
    found = search(Preselect(bins=5, pool=3000), task, one_by_one(plain_sum), random.Random(0))
    archs = [one.arch for one in found.evaluated]
    assert len(archs) == 5
    assert [macs_of(arch) for arch in archs] == sorted(map(macs_of, archs), reverse=True)
    inside = [arch for arch in ALL if tight(arch)]
    low, high = math.log(min(map(macs_of, inside))), math.log(max(map(macs_of, inside)))
    bins = [min(4, int((math.log(macs_of(arch)) - low) / (high - low) * 5)) for arch in inside]
    for place in range(5):
        mine = [arch for arch, at in zip(inside, bins, strict=True) if at == place]
        assert max(mine, key=prior) in archs


def test_preselection_without_a_score_says_so() -> None:
    with pytest.raises(UsageError, match="prior"):
        search(Preselect(), Task(TOY, anything, 5), one_by_one(plain_sum), random.Random(0))
