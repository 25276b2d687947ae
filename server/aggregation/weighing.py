"""How much each client's update weighs: by examples, all alike, or by label discrepancy (FedDisco).

FedDisco (Ye et al. 2023): p_k ∝ ReLU(n_k - a·d_k + b), with n_k the share of the examples and d_k the
share of the label discrepancies, both over the round's participants. The discrepancy of a client is
the Kullback-Leibler divergence of its label distribution from the fleet's reference, the uniform one.
Its constants go together with this form: with the L2 distance the same ones silence most clients.
Deviations: participants are those that were asked, since updates are merged as they come; a client
that does not tell its labels counts with the mean discrepancy of the others; where all weights come
to nothing, or so few remain that they stand for less than `LEAST_EFFECTIVE` of the participants, the
shares of examples are used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST_EFFECTIVE = 0.3
PAPERS_PARTICIPANTS = 10


@dataclass(frozen=True, slots=True)
class Holder:
    """A client of this round: its examples, capped, and its label counts if it tells them."""

    name: str
    examples: float
    labels: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Weighed:
    """Name → weight, in units of examples; and what the weights came from, in words."""

    weights: Mapping[str, float]
    note: str = ""


def by_examples(holders: Sequence[Holder]) -> Weighed:
    """The number of examples."""
    return Weighed({holder.name: holder.examples for holder in holders})


def uniform(holders: Sequence[Holder]) -> Weighed:
    """All alike."""
    return Weighed({holder.name: 1.0 for holder in holders})


def by_discrepancy(holders: Sequence[Holder], a: float, b: float) -> Weighed:
    """FedDisco's weights; with a = b = 0 the number of examples.

    Shares of n and d shrink as more take part, and b does not: beyond ten participants, of how many its
    value is, it is b · 10 / participants. Left as it is it would make the weights of a large fleet
    uniform.
    """
    b = b * min(1.0, PAPERS_PARTICIPANTS / len(holders))
    total = sum(holder.examples for holder in holders)
    found = {h.name: discrepancy(h.labels) for h in holders if h.labels is not None}
    if not found:
        note = "no device shares its label counts: weighed by examples"
        return Weighed(by_examples(holders).weights, note)
    typical = sum(found.values()) / len(found)
    apart = {holder.name: found.get(holder.name, typical) for holder in holders}
    most = sum(apart.values())
    raw = {
        h.name: max(h.examples / total - a * (apart[h.name] / most if most else 0) + b, 0.0)
        for h in holders
    }
    share = sum(raw.values())
    if share <= 0:
        return Weighed(by_examples(holders).weights, "no client had any weight: by examples")
    effective = share**2 / sum(value**2 for value in raw.values())
    if effective < LEAST_EFFECTIVE * len(holders):
        note = f"{effective:.1f} of {len(holders)} clients had all the weight: by examples"
        return Weighed(by_examples(holders).weights, note)
    return Weighed({name: total * value / share for name, value in raw.items()})


def capped(weighed: Weighed, most: float) -> Weighed:
    """The same, with no weight above the share `most` of their sum, which stays the same.

    What a client has above it is spread over the others in proportion to their weights. Fewer than
    three clients keep what they have; where the share is too small for their number, all weigh alike.
    """
    weights, count = dict(weighed.weights), len(weighed.weights)
    total = sum(weights.values())
    if count < 3 or total <= 0 or max(weights.values()) <= most * total:
        return weighed
    if most * count <= 1:
        return Weighed(dict.fromkeys(weights, total / count), weighed.note)
    bound = most * total
    ordered = sorted(weights, key=lambda name: weights[name], reverse=True)
    for cut in range(1, count):
        others = ordered[cut:]
        rest, room = sum(weights[name] for name in others), total - cut * bound
        # The largest of the others: where it fits, all do. Those that have nothing share alike.
        parts = {n: weights[n] / rest if rest > 0 else 1 / len(others) for n in others}
        if parts[others[0]] * room <= bound:
            break
    return Weighed(
        {name: bound if name not in parts else parts[name] * room for name in weights},
        weighed.note,
    )


def discrepancy(labels: Sequence[int]) -> float:
    """Kullback-Leibler divergence of a label distribution from the uniform one, in nats, ≥ 0."""
    total = sum(labels)
    shares = [count / total for count in labels if count]
    return max(0.0, math.log(len(labels)) + sum(share * math.log(share) for share in shares))
