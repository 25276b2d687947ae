"""Which subnet each client trains this round: a sampler's choice, and the coverage floor."""

from collections.abc import Mapping, Sequence
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


def remember(
    config: SamplerConfig, this: Round, ages: Mapping[str, Tensor], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """What the sampler wants to know in the next round."""
    return sampler(config, ages).observe(this, outcomes)
