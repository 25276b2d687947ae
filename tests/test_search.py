"""Search finds what exhaustive search finds, within the budget and from its arguments alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from fedofa.specialize.predictors.linear import fit
from fedofa.specialize.search.contract import Found, Known, Method, Proposals, Scored, Task
from fedofa.specialize.search.evolution import Evolution
from fedofa.specialize.search.feasible import edits, largest_that_fits, random_that_fits
from fedofa.specialize.search.loop import Run, one_by_one, search
from fedofa.specialize.search.methods import METHODS
from fedofa.specialize.search.mutation import Mutation
from fedofa.supernet.errors import UsageError
from fedofa.supernet.space import Arch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_search import ALL, FLAT, TOY, every, linear_truth, macs_of, plain_sum

HALF = 0.5 * macs_of(TOY.largest())
SEARCHING = sorted(METHODS.keys() - {"random", "preselect"})


def made(name: str) -> Method:
    return METHODS[name](fit)


def within_half(arch: Arch) -> bool:
    return macs_of(arch) <= HALF


def task(evaluations: int = 40, **changes: object) -> Task:
    fields: dict[str, object] = {"fits": within_half, "prior": plain_sum, **changes}
    return Task(TOY, evaluations=evaluations, **fields)  # type: ignore[arg-type]


def test_the_oracle_sees_the_whole_space() -> None:
    # Stem 2 · head 3 · second stage 2·2 · first stage 2·(depth 1: 2·2, depth 2: 4·4)
    assert len(ALL) == 2 * 3 * 4 * 2 * (4 + 16)
    rng = random.Random(0)
    assert {TOY.sample(rng) for _ in range(300)} <= set(ALL)


# ── what holds for every method ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at_once", [1, 7])
def test_only_what_fits_is_evaluated_once_and_within_the_number_of_evaluations(
    name: str, at_once: int
) -> None:
    asked: list[Arch] = []

    def evaluate(archs: Sequence[Arch]) -> list[Scored]:
        asked.extend(archs)
        return [Scored(plain_sum(arch)) for arch in archs]

    found = search(made(name), task(30, at_once=at_once), evaluate, random.Random(0))
    assert all(within_half(arch) for arch in asked)
    assert [one.arch for one in found.evaluated] == asked
    assert len(asked) == len(set(asked)) == found.evaluations <= 30
    if name != "preselect":  # which asks for one a bin and no more
        assert found.evaluations == 30
    best = [one.score for one in found.best_so_far]
    assert best == sorted(best)
    assert best[-1] == found.best.score == max(plain_sum(arch) for arch in asked)
    assert [one.score for one in found.ranked] == sorted(map(plain_sum, asked), reverse=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_search_depends_on_its_arguments_alone(name: str) -> None:
    score = one_by_one(plain_sum)
    first = search(made(name), task(25), score, random.Random(3))
    random.seed(99)
    assert search(made(name), task(25), score, random.Random(3)) == first
    assert search(made(name), task(25), score, random.Random(4)) != first


@pytest.mark.parametrize("name", METHODS)
def test_when_next_to_nothing_fits_it_is_found_and_the_search_ends(name: str) -> None:
    least = TOY.smallest()
    found = search(
        made(name),
        task(50, fits=lambda arch: arch == least),
        one_by_one(plain_sum),
        random.Random(0),
    )
    assert [one.arch for one in found.evaluated] == [least]


@pytest.mark.parametrize("name", METHODS)
def test_a_search_starts_where_it_is_told_to_if_that_fits(name: str) -> None:
    start = (TOY.largest(), TOY.smallest())
    found = search(made(name), task(20, start=start), one_by_one(plain_sum), random.Random(0))
    assert found.evaluated[0].arch == TOY.smallest()
    assert TOY.largest() not in {one.arch for one in found.evaluated}


@pytest.mark.parametrize("name", SEARCHING)
def test_what_was_seen_guides_what_is_asked_next(name: str) -> None:
    """Over six truths, the later half of the evaluations is better than random ones are."""
    gains = []
    for seed in range(6):
        truth = linear_truth(TOY, seed)
        found = search(made(name), task(32, at_once=4), one_by_one(truth), random.Random(seed))
        later = [one.score for one in found.evaluated[16:]]
        drawn = [truth(random_that_fits(TOY, within_half, random.Random(i))) for i in range(40)]
        spread = max(truth(arch) for arch in ALL) - min(truth(arch) for arch in ALL)
        gains.append((sum(later) / len(later) - sum(drawn) / len(drawn)) / spread)
    assert sum(gains) / len(gains) > 0.02


def test_no_architecture_that_fits_is_a_usage_error() -> None:
    def never(_: Arch) -> bool:
        return False

    for attempt in (
        lambda: largest_that_fits(TOY, never, macs_of),
        lambda: random_that_fits(TOY, never, random.Random(0)),
        lambda: task(fits=never),
    ):
        with pytest.raises(UsageError, match="no architecture fits"):
            attempt()


@pytest.mark.parametrize("changes", [{"evaluations": 0}, {"at_once": 0}])
def test_a_search_without_evaluations_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        task(**changes)


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Scripted:
    """Proposes what it is told to, and remembers what it was sent."""

    script: Sequence[Sequence[Arch]]
    sent: list[list[float]]

    def __call__(self, task: Task, known: Known, rng: random.Random) -> Proposals:
        for batch in self.script:
            self.sent.append([one.score for one in (yield batch)])


def test_a_method_is_sent_known_evaluations_without_another_one() -> None:
    a, b, c = ALL[:3]
    method = Scripted([[a, b, a], [b], [c]], [])
    asked: list[Arch] = []

    def evaluate(archs: Sequence[Arch]) -> list[Scored]:
        asked.extend(archs)
        return [Scored(float(len(asked))) for _ in archs]

    search(method, task(fits=lambda _: True), evaluate, random.Random(0))
    assert asked == [a, b, c]
    assert method.sent == [[2.0, 2.0, 2.0], [2.0], [3.0]]


def test_a_proposal_beyond_the_number_of_evaluations_is_cut_and_the_method_ended() -> None:
    method = Scripted([ALL[:3], ALL[3:9]], [])
    found = search(method, task(5, fits=lambda _: True), one_by_one(plain_sum), random.Random(0))
    assert [one.arch for one in found.evaluated] == ALL[:5]
    assert len(method.sent) == 1


def test_a_method_that_breaks_a_bound_is_stopped_before_the_evaluation() -> None:
    def never(_: Sequence[Arch]) -> list[Scored]:
        raise NotImplementedError

    with pytest.raises(AssertionError, match="does not fit"):
        search(Scripted([[TOY.largest()]], []), task(), never, random.Random(0))


def test_asking_again_before_telling_is_refused() -> None:
    run = Run(made("random"), task(), random.Random(0))
    run.ask()
    with pytest.raises(AssertionError, match="not told"):
        run.ask()


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(UsageError, match="finite number expected"):
        search(made("random"), task(), one_by_one(lambda _: score), random.Random(0))


def test_a_negative_error_is_refused() -> None:
    with pytest.raises(UsageError, match="standard error"):
        Scored(0.5, -0.1)


def test_equal_scores_keep_the_order_of_discovery() -> None:
    found = search(made("evolution"), task(), one_by_one(lambda _: 0.0), random.Random(0))
    assert found.ranked == found.evaluated
    assert found.best == found.evaluated[0]
    assert Found(found.evaluated).best_so_far == (found.evaluated[0],) * found.evaluations


# ── drawing and editing ──────────────────────────────────────────────────────────────────────────


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


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_an_edit_changes_one_gene_and_what_begins_or_ceases_to_matter_through_it(seed: int) -> None:
    arch = TOY.sample(random.Random(seed))
    found = list(edits(TOY, arch))
    assert len({edit.arch for edit in found}) == len(found)
    assert len(found) == sum(len(g.options) - 1 for g in TOY.genes if g.name in arch)
    needs = {gene.name: gene.needs for gene in TOY.genes}
    for edit in found:
        assert TOY.arch(edit.arch) == edit.arch
        assert edit.arch[edit.gene] == edit.option != arch[edit.gene]
        changed = {g for g in {*arch, *edit.arch} if arch.get(g) != edit.arch.get(g)}
        assert all((needs[gene] or ("",))[0] == edit.gene for gene in changed - {edit.gene})


# ── the best of all ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 1.0])
@pytest.mark.parametrize(
    "method",
    [Evolution(24, 0.3), made("mutation"), made("predicted")],
    ids=lambda m: type(m).__name__,
)
def test_with_many_evaluations_the_best_sum_of_all_that_fit_is_found(
    method: Method, share: float
) -> None:
    bound = share * macs_of(TOY.largest())

    def fits(arch: Arch) -> bool:
        return macs_of(arch) <= bound

    best = max(plain_sum(arch) for arch in ALL if fits(arch))
    asked = task(160, fits=fits, at_once=8)
    assert search(method, asked, one_by_one(plain_sum), random.Random(0)).best.score == best


def test_one_edit_at_a_time_finds_the_best_sum_trying_every_option_once() -> None:
    """Where genes add up, an option that did not help once never helps."""
    archs = list(every(FLAT))
    needed = 1 + sum(len(gene.options) - 1 for gene in FLAT.genes)
    for seed in range(20):
        truth = linear_truth(FLAT, seed)
        asked = Task(FLAT, lambda _: True, needed)
        found = search(Mutation(starts=1), asked, one_by_one(truth), random.Random(seed))
        assert found.best.score == pytest.approx(max(map(truth, archs)))
