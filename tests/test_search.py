"""Search finds what exhaustive search finds, within the budget and from its arguments alone."""

import itertools
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fedofa.specialize.predictor import Predictor, Sample, fit
from fedofa.specialize.search import (
    Evolution,
    evolve,
    largest_that_fits,
    random_that_fits,
)
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.mobilenet import MobileNetSpace, Stage
from fedofa.supernet.space import Arch, Space
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DIGITS

Truth = Callable[[Arch], float]

TOY = MobileNetSpace(
    classes=3,
    in_channels=1,
    resolutions=(8,),
    stem_widths=(4, 8),
    stages=(
        Stage(widths=(8, 12), depths=(1, 2), expands=(2, 3), kernels=(3, 5)),
        Stage(widths=(8, 16), depths=(1,), expands=(2, 3), kernels=(3,), stride=2),
    ),
    head_widths=(8, 16, 24),
)
SETTINGS = Evolution(population=24, generations=12, mutation=0.3)


def every(space: Space) -> Iterator[Arch]:
    """All architectures, once each: all combinations of options, completed by the space."""
    seen = set()
    for chosen in itertools.product(*(gene.options for gene in space.genes)):
        values = dict(zip((gene.name for gene in space.genes), chosen, strict=True))
        for gene in space.genes:
            if gene.needs and values.get(gene.needs[0], 0) < gene.needs[1]:
                values.pop(gene.name)
        arch = space.arch(values)
        if arch not in seen:
            seen.add(arch)
            yield arch


ALL = list(every(TOY))


def plain_sum(arch: Arch) -> float:
    return float(sum(arch.values()))


def macs_of(arch: Arch) -> int:
    return cost(TOY, arch).macs


def test_the_oracle_sees_the_whole_space() -> None:
    # Stem 2 · head 3 · second stage 2·2 · first stage 2·(depth 1: 2·2, depth 2: 4·4)
    assert len(ALL) == 2 * 3 * 4 * 2 * (4 + 16)
    rng = random.Random(0)
    assert {TOY.sample(rng) for _ in range(300)} <= set(ALL)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 1.0])
def test_evolution_finds_the_best_sum_of_all_that_fit(share: float) -> None:
    bound = share * macs_of(TOY.largest())

    def fits(arch: Arch) -> bool:
        return macs_of(arch) <= bound

    best = max(plain_sum(arch) for arch in ALL if fits(arch))
    asked = []

    def score(arch: Arch) -> float:
        asked.append(arch)
        return plain_sum(arch)

    found = evolve(TOY, score, fits, SETTINGS, random.Random(0))
    assert found.ranked[0][1] == best
    assert plain_sum(found.ranked[0][0]) == best
    assert all(fits(arch) for arch, _ in found.ranked)
    assert all(fits(arch) for arch in asked)
    assert len(asked) == len(set(asked)) == found.evaluations == len(found.ranked)
    assert [s for _, s in found.ranked] == sorted((s for _, s in found.ranked), reverse=True)
    assert list(found.history) == sorted(found.history)
    assert len(found.history) == SETTINGS.generations + 1
    assert found.history[-1] == best


def test_a_search_depends_on_its_arguments_alone() -> None:
    def fits(arch: Arch) -> bool:
        return macs_of(arch) <= 0.5 * macs_of(TOY.largest())

    first = evolve(TOY, plain_sum, fits, SETTINGS, random.Random(3))
    random.seed(99)
    assert evolve(TOY, plain_sum, fits, SETTINGS, random.Random(3)) == first
    assert evolve(TOY, plain_sum, fits, SETTINGS, random.Random(4)) != first


def test_seeds_that_fit_are_scored_and_others_never() -> None:
    small, large = TOY.smallest(), TOY.largest()

    def fits(arch: Arch) -> bool:
        return macs_of(arch) < macs_of(large)

    settings_ = Evolution(population=4, generations=1, mutation=0.1)
    found = evolve(TOY, plain_sum, fits, settings_, random.Random(0), seeds=(large, small))
    assert small in dict(found.ranked)
    assert large not in dict(found.ranked)


def test_equal_scores_keep_the_order_of_discovery() -> None:
    order = []

    def score(arch: Arch) -> float:
        order.append(arch)
        return 0.0

    found = evolve(TOY, score, lambda _: True, SETTINGS, random.Random(0))
    assert [arch for arch, _ in found.ranked] == order


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=30)
def test_the_baselines_fit_and_the_largest_cannot_grow(seed: int, share: float) -> None:
    low, high = macs_of(TOY.smallest()), macs_of(TOY.largest())
    bound = low + share * (high - low)

    def fits(arch: Arch) -> bool:
        return macs_of(arch) <= bound

    largest = largest_that_fits(TOY, fits, macs_of)
    assert fits(largest)
    assert not any(fits(arch) for arch in TOY.grown(largest))
    assert fits(random_that_fits(TOY, fits, random.Random(seed)))


def test_random_baselines_differ() -> None:
    rng = random.Random(0)
    assert len({random_that_fits(TOY, lambda _: True, rng) for _ in range(20)}) > 10


def test_when_next_to_nothing_fits_the_searches_still_find_it() -> None:
    least = TOY.smallest()

    def only(arch: Arch) -> bool:
        return arch == least

    found = evolve(TOY, plain_sum, only, Evolution(4, 2, 0.1), random.Random(0))
    assert [arch for arch, _ in found.ranked] == [least]
    assert largest_that_fits(TOY, only, macs_of) == least


def test_when_nothing_fits_it_is_a_usage_error() -> None:
    def never(_: Arch) -> bool:
        return False

    for search in (
        lambda: largest_that_fits(TOY, never, macs_of),
        lambda: random_that_fits(TOY, never, random.Random(0)),
        lambda: evolve(TOY, plain_sum, never, SETTINGS, random.Random(0)),
        lambda: evolve(TOY, plain_sum, never, SETTINGS, random.Random(0), seeds=(TOY.smallest(),)),
    ):
        with pytest.raises(UsageError, match="no architecture fits"):
            search()


# ── the predictor ────────────────────────────────────────────────────────────────────────────────


def linear_truth(space: Space, seed: int) -> Truth:
    """An accuracy that is a sum of one number per gene and option."""
    rng = np.random.default_rng(seed)
    gain = {(g.name, o): rng.normal() * 0.05 for g in space.genes for o in g.options}

    def truth(arch: Arch) -> float:
        return float(0.5 + sum(gain[name, value] for name, value in arch.items()))

    return truth


def drawn(truth: Truth, rng: random.Random, count: int, group: str = "all") -> list[Sample]:
    archs = dict.fromkeys(DIGITS.sample(rng) for _ in range(count))
    return [Sample(arch, group, truth(arch)) for arch in archs]


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def rank_correlation(predictor: Predictor, truth: Truth, archs: list[Arch]) -> float:
    guessed, real = [predictor(arch) for arch in archs], [truth(arch) for arch in archs]
    return float(np.corrcoef(ranks(guessed), ranks(real))[0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_the_predictor_recovers_the_ranking_of_a_linear_truth(seed: int) -> None:
    truth, rng = linear_truth(DIGITS, seed), random.Random(seed)
    samples = drawn(truth, rng, 150)
    predictor = fit(DIGITS, samples)
    fresh = [DIGITS.sample(rng) for _ in range(200)]
    assert rank_correlation(predictor, truth, fresh) > 0.97
    assert rank_correlation(predictor, truth, [sample.arch for sample in samples]) > 0.98


def test_a_few_dozen_measurements_rank_far_better_than_chance() -> None:
    truth, rng = linear_truth(DIGITS, 0), random.Random(0)
    predictor = fit(DIGITS, drawn(truth, rng, 24))
    assert rank_correlation(predictor, truth, [DIGITS.sample(rng) for _ in range(200)]) > 0.6


def test_groups_measured_on_other_examples_do_not_disturb_the_ranking() -> None:
    """One group's examples are easier by far, which says nothing about its architectures."""
    truth, rng = linear_truth(DIGITS, 1), random.Random(1)
    samples = drawn(truth, rng, 80, "hard")
    easy = [Sample(s.arch, "easy", s.accuracy + 0.4) for s in drawn(truth, rng, 80)]
    fresh = [DIGITS.sample(rng) for _ in range(200)]
    assert rank_correlation(fit(DIGITS, samples + easy), truth, fresh) > 0.97
    before = [(s.arch, s.accuracy) for s in easy]
    fit(DIGITS, easy)
    assert [(s.arch, s.accuracy) for s in easy] == before


def test_where_nothing_differs_nothing_is_preferred() -> None:
    rng = random.Random(0)
    predictor = fit(DIGITS, drawn(lambda _: 0.7, rng, 10))
    assert predictor(DIGITS.largest()) == pytest.approx(predictor(DIGITS.smallest()))
    single = fit(DIGITS, [Sample(DIGITS.smallest(), "one", 0.3)])
    assert single(DIGITS.largest()) == pytest.approx(single(DIGITS.smallest()))


def test_predictions_do_not_depend_on_the_order_of_measurements() -> None:
    truth, rng = linear_truth(DIGITS, 0), random.Random(0)
    samples = drawn(truth, rng, 30)
    one, other = fit(DIGITS, samples), fit(DIGITS, samples[::-1])
    arch = DIGITS.sample(rng)
    assert one(arch) == pytest.approx(other(arch), abs=1e-9)
