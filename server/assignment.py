"""Which subnet each client trains this round: a sampler's choice, and the coverage floor."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .samplers.assigned import Assigned, Outcome, Round
from .samplers.catalogue import SamplerConfig, sampler
from .samplers.floor import with_floor


def assign(config: SamplerConfig, this: Round, ages: Mapping[str, Tensor]) -> dict[str, Assigned]:
    """Client name → what it trains; `ages` are the rounds that each shared weight has waited.

    UsageError where the method cannot serve the space, or a client can train no subnet.
    """
    if not this.clients:
        return {}
    chosen = sampler(config, ages).assign(this)
    if config.coverage_floor is None:
        return chosen
    return with_floor(this, chosen, ages, config.coverage_floor)


def assign_some(
    config: SamplerConfig, this: Round, ages: Mapping[str, Tensor], most: int, attempt: int = 0
) -> dict[str, Assigned]:
    """`assign` for `most` of the round's clients, drawn anew in each round and attempt at it.

    The others count as busy. For one that the method leaves out another is drawn.
    """
    ranked = sorted(
        this.clients, key=lambda client: this.stream("asked", attempt, client.name).random()
    )
    taken = most
    while True:
        drawn = {client.name for client in ranked[:taken]}
        clients = [client for client in this.clients if client.name in drawn]
        part = replace(this, clients=clients, busy=[*this.busy, *ranked[taken:]])
        chosen = assign(config, part, ages)
        lack = most - len(chosen)
        if lack <= 0 or taken >= len(ranked):
            return chosen
        taken += lack


def remember(
    config: SamplerConfig, this: Round, ages: Mapping[str, Tensor], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """What the sampler wants to know in the next round."""
    return sampler(config, ages).observe(this, outcomes)
