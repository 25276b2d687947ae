"""The best subnet for each device class: searched by measuring on the devices, then measured again.

The classes' searches go side by side: what all of them want measured next travels in one exchange
for norm statistics and one for accuracy. Each search's last proposals are measured in the same
exchange as the largest subnet that fits and random ones that fit, and the best measured one is
chosen. With the method `predicted` that makes four exchanges in all: a sample, and what a predictor
learned from it thinks best, however many subnets it looks at.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..protos.subnets import Statistics
from ..specialize.predictors.contract import Sample
from ..specialize.predictors.kinds import PREDICTORS
from ..specialize.predictors.rank_report import rank_report
from ..specialize.search.contract import Fits, Method, Scored, Task
from ..specialize.search.evolution import Evolution
from ..specialize.search.feasible import largest_that_fits, new_ones, random_that_fits
from ..specialize.search.loop import Run
from ..specialize.search.methods import METHODS
from ..specialize.search.predicted import Predicted
from ..specialize.zero_cost import zero_cost_scores
from ..supernet.cost import cost
from ..supernet.randomness import stream
from ..supernet.space import Arch, Space
from .class_budgets import ClassBudget
from .class_choice import Candidate, Choice
from .config import RunConfig
from .evaluation import FederatedEvaluator, Target
from .figures import Measured
from .specialize_config import SearchConfig

_Found = dict[Arch, tuple[Measured, Statistics]]


@dataclass(slots=True)
class _Search:
    """A class's search: under way, or with its last proposals in hand."""

    run: Run
    task: Task
    last: list[Arch] = field(default_factory=list)
    over: bool = False

    def ask(self) -> list[Arch]:
        """What to measure next; as few as finalists that are the last are kept for them."""
        if self.over:
            return []
        asked = self.run.ask()
        ends = self.run.found.evaluations + len(asked) >= self.task.evaluations
        self.over = not asked or (ends and len(asked) <= self.task.at_once)
        if self.over:
            self.last = asked
            return []
        return asked


def search_classes(
    config: RunConfig,
    evaluator: FederatedEvaluator,
    classes: Mapping[str, ClassBudget],
    number: int,
    tell: Callable[[str], None],
    fail: Callable[[str, str], None],
) -> dict[str, Choice]:
    """Class → choice; one that no device could measure is reported to `fail` and left out.

    `number` says which search of this supernet it is, from 1: each draws other subnets.
    """
    tell("measuring sampled subnets")
    space = evaluator.space
    searches = _begun(config, evaluator, classes, number)
    asked, told = _asked(searches), False
    while asked:
        measured = _measure(evaluator, classes, asked, fail)
        for name in asked.keys() - measured.keys():
            del searches[name]
        for name, found in measured.items():
            searches[name].run.tell([_scored(found[arch][0]) for arch in asked[name]])
        if not told:
            tell("searching")
            told = True
        asked = _asked(searches)
    if not searches:
        return {}
    if not told:
        tell("searching")
    drawn = {
        name: _finalists(config.search, space, one, _stream(config, "random", name, number))
        for name, one in searches.items()
    }
    tell("measuring finalists")
    final = _measure(evaluator, classes, drawn, fail)
    return _choices(config.search, space, classes, searches, drawn, final)


def _stream(config: RunConfig, what: str, name: str, number: int) -> random.Random:
    """A class's draws; those of the first search are the ones that a run always had."""
    return stream(config.seed, what, name, *([number] if number > 1 else []))


def _begun(
    config: RunConfig,
    evaluator: FederatedEvaluator,
    classes: Mapping[str, ClassBudget],
    number: int,
) -> dict[str, _Search]:
    search, space = config.search, evaluator.space
    sampled = max(4, search.samples // len(config.classes))
    prior = None
    if search.method == "preselect":
        prior = zero_cost_scores(space, evaluator.weights, config.seed)["saliency"]
    searches: dict[str, _Search] = {}
    for name, bounds in classes.items():
        task = Task(
            space,
            bounds.fits,
            evaluations=sampled + search.finalists,
            at_once=search.finalists,
            start=(_largest(space, bounds.fits),),
            prior=prior,
            related=_related(searches, name),
        )
        run = Run(_method(search, sampled), task, _stream(config, "search", name, number))
        searches[name] = _Search(run, task)
    return searches


def _method(search: SearchConfig, sampled: int) -> Method:
    fit = PREDICTORS[search.predictor]
    if search.method != "predicted":
        return METHODS[search.method](fit)
    return Predicted(
        fit,
        share=sampled / (sampled + search.finalists),
        looks=search.population + search.generations * search.population // 2,
        within=Evolution(search.population, search.mutation),
    )


def _related(searches: Mapping[str, _Search], own: str) -> Callable[[], list[Sample]]:
    """What the other classes' searches have measured by then, each a group of its own."""
    return lambda: [
        sample for name in searches if name != own for sample in _samples(name, searches[name])
    ]


def _samples(name: str, search: _Search) -> list[Sample]:
    return [Sample(e.arch, name, e.score, e.error) for e in search.run.found.evaluated]


def _asked(searches: Mapping[str, _Search]) -> dict[str, list[Arch]]:
    return {name: asked for name, one in searches.items() if (asked := one.ask())}


def _finalists(
    search: SearchConfig, space: Space, one: _Search, rng: random.Random
) -> dict[Arch, str]:
    """Subnet → origin: the search's own, its first choice first, then what it is held against."""
    largest = _largest(space, one.task.fits)
    known = [e.arch for e in one.run.found.ranked]
    best = known[: max(1, search.finalists - len(one.last))]
    # By prediction the last proposals are the choice; else the best that was measured is.
    own = [*one.last, *best] if _predicts(search, one) else [*best, *one.last]
    origins = dict.fromkeys(own, "searched")
    origins.setdefault(largest, "largest")
    others = new_ones(
        lambda: random_that_fits(space, one.task.fits, rng), search.random_baseline, origins
    )
    return origins | dict.fromkeys(others, "random")  # fewer where hardly anything else fits


def _predicts(search: SearchConfig, one: _Search) -> bool:
    """Whether the first choice is one that a predictor chose, before it was measured."""
    return search.method == "predicted" and bool(one.last)


def _choices(
    search: SearchConfig,
    space: Space,
    classes: Mapping[str, ClassBudget],
    searches: Mapping[str, _Search],
    drawn: Mapping[str, Mapping[Arch, str]],
    final: Mapping[str, _Found],
) -> dict[str, Choice]:
    samples = [sample for name in searches for sample in _samples(name, searches[name])]
    rank = rank_report(space, samples, PREDICTORS[search.predictor])
    choices = {}
    for name, found in final.items():
        candidates = tuple(
            Candidate(arch, origin, cost(space, arch).macs, found[arch][0])
            for arch, origin in drawn[name].items()
        )
        # Between equal measurements, fewer multiply-accumulates.
        best = max(candidates, key=lambda c: (c.measured.accuracy, -c.macs))
        evaluated = searches[name].run.found
        choices[name] = Choice(
            device_class=name,
            budget=classes[name].budget,
            best=best,
            statistics=found[best.arch][1],
            candidates=candidates,
            method=search.method,
            found=evaluated,
            chosen_from=1 if _predicts(search, searches[name]) else evaluated.evaluations,
            rank=rank,
            predicted_ms=classes[name].predicted_ms(best.arch),
        )
    return choices


def _largest(space: Space, fits: Fits) -> Arch:
    return largest_that_fits(space, fits, lambda arch: cost(space, arch).macs)


def _scored(measured: Measured) -> Scored:
    return Scored(measured.accuracy, measured.error)


def _measure(
    evaluator: FederatedEvaluator,
    classes: Mapping[str, ClassBudget],
    archs: Mapping[str, Iterable[Arch]],
    fail: Callable[[str, str], None],
) -> dict[str, _Found]:
    """Class → subnet → accuracy and norm statistics, each class's on the same devices."""
    keys = [(name, arch) for name, mine in archs.items() for arch in mine]
    targets = [Target(arch, classes[name].budget) for name, arch in keys]
    statistics = evaluator.statistics(targets)
    measured = evaluator.accuracy(targets, statistics)
    found: dict[str, _Found] = {}
    for name in archs:
        places = [place for place, (owner, _) in enumerate(keys) if owner == name]
        if all(place in measured for place in places):
            found[name] = {keys[at][1]: (measured[at], statistics[at]) for at in places}
        else:
            fail(
                name,
                f"no device answered for {sum(at not in measured for at in places)} of its "
                f"{len(places)} subnets; start a device whose class may hold them",
            )
    return found
