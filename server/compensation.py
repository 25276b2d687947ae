"""Kernels rounded by second moments from the devices, where that is better than the nearest levels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..protos.subnets import Statistics
from ..specialize.compensate import compensated as rounded_by
from ..specialize.scheme import NARROW
from ..supernet.axes import Weights, put, regions, take
from ..supernet.kernel_inputs import SecondMoments, observed
from .chosen import Work
from .evaluation import FederatedEvaluator, Target
from .second_moments import numbers

MOST_SUBNETS, MOST_NUMBERS = 8, 2**22
"""In one question to the devices, whose answers are kept in memory."""


class Candidate(NamedTuple):
    """A subnet with rounded kernels, and its norm statistics with them."""

    target: Target
    statistics: Statistics


def compensated(
    evaluator: FederatedEvaluator,
    works: Sequence[Work],
    nearest: Mapping[int, Candidate],
    examples: int,
) -> dict[int, Candidate]:
    """Of the subnets by place, those that the devices find more likely so than with the nearest levels.

    A place is absent too where no device answered one of the questions.
    """
    found = dict[int, Candidate]()
    for some in _questions(evaluator, works, nearest):
        # The inputs are those of the network that is not rounded.
        plain = [Target(works[at].chosen.arch, works[at].chosen.budget) for at in some]
        known = {place: works[at].chosen.statistics for place, at in enumerate(some)}
        moments = evaluator.inputs(plain, known, examples)
        told = {some[place]: mine for place, mine in moments.items()}
        changed = [
            replace(nearest[at].target, weights=_weights(evaluator, nearest[at].target, mine))
            for at, mine in told.items()
        ]
        statistics = evaluator.statistics(changed) if changed else {}
        pairs = {
            at: (nearest[at], Candidate(changed[place], statistics[place]))
            for place, at in enumerate(told)
            if place in statistics
        }
        found |= _better(evaluator, pairs)
    return found


def _questions(
    evaluator: FederatedEvaluator, works: Sequence[Work], places: Mapping[int, Candidate]
) -> Iterator[list[int]]:
    """Places whose answers fit into memory together."""
    some, together = list[int](), 0
    for at in places:
        count = numbers(observed(evaluator.space, works[at].chosen.arch))
        if some and (len(some) == MOST_SUBNETS or together + count > MOST_NUMBERS):
            yield some
            some, together = [], 0
        some, together = [*some, at], together + count
    if some:
        yield some


def _weights(evaluator: FederatedEvaluator, target: Target, moments: SecondMoments) -> Weights:
    """The shared weights with the subnet's kernels of 4 bits at the levels that its moments give."""
    where = regions(evaluator.space, target.arch)
    narrow = {name: where[name] for name in moments if target.widths.get(name) == NARROW}
    weights = dict(evaluator.weights)
    for name, own in take(evaluator.weights, narrow).items():
        weights[name] = weights[name].detach().clone()
        put(weights[name], where[name], rounded_by(own, moments[name], NARROW))
    return weights


def _better(
    evaluator: FederatedEvaluator, pairs: Mapping[int, tuple[Candidate, Candidate]]
) -> dict[int, Candidate]:
    both = [one for pair in pairs.values() for one in pair]
    if not both:
        return {}
    sums = evaluator.likelihoods(
        [one.target for one in both], {at: one.statistics for at, one in enumerate(both)}, [1.0]
    )
    return {
        at: changed
        for place, (at, (_, changed)) in enumerate(pairs.items())
        if {2 * place, 2 * place + 1} <= sums.keys() and sums[2 * place + 1] < sums[2 * place]
    }
