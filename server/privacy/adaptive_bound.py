"""A clipping bound that follows a private quantile of the updates' norms (Andrew et al. 2021).

Each round the noised share b̃ of clients whose update is no longer than the bound moves the bound towards
the quantile γ that is to lie below it: C ← C · exp(-η · (b̃ - γ)).

    b̃ = 1/2 + (Σ (b_i - 1/2) + N(0, σ_b²)) / n

with b_i in {0, 1} and n the number of assigned clients, which depends on no data. A client that does not
report counts 0 instead of ±1/2.

Budget: a client's ±1/2 moves the count by at most 1/2, so that it is a Gaussian mechanism of noise
multiplier 2σ_b, on the same client and in the same round as the sum with z_Δ. Together they are one
mechanism of multiplier z with z^-2 = z_Δ^-2 + (2σ_b)^-2. The accountant counts z; the sum gets the
larger z_Δ, `sum_noise`. Nothing is spent besides.
"""

import math
from dataclasses import dataclass, replace

from ...protos.noise import GaussianNoise
from ...supernet.errors import UsageError


@dataclass(frozen=True, slots=True)
class AdaptiveBound:
    """The bound of the coming round, the quantile γ, the step η, and the count's noise σ_b."""

    value: float
    quantile: float = 0.5
    step: float = 0.2
    count_noise: float = 10.0

    def at(self, value: float) -> "AdaptiveBound":
        """The same with another bound: where a resumed run had come to."""
        return replace(self, value=value)

    def after(
        self, below: int, reported: int, clients: float, noise: GaussianNoise
    ) -> "AdaptiveBound":
        """The next round's bound: `below` of `reported` updates were not longer than this one's.

        `clients` is how many were assigned, or expected to be drawn.
        """
        centred = below - reported / 2 + float(noise.draw(1, self.count_noise)[0])
        # A share beyond 0 or 1 is the noise's.
        share = min(max(0.5 + centred / clients, 0.0), 1.0)
        return replace(self, value=self.value * math.exp(-self.step * (share - self.quantile)))


def sum_noise(noise_multiplier: float, count_noise: float) -> float:
    """z_Δ, the noise multiplier of the sum where the quantile's count is published too.

    UsageError when the count alone would spend more than `noise_multiplier` allows.
    """
    rest = noise_multiplier**-2 - (2 * count_noise) ** -2
    if rest <= 0:
        raise UsageError(
            f"privacy.adaptive.count_noise = {count_noise}: more than half of the noise multiplier "
            f"is needed, {noise_multiplier / 2:.4g}; a twentieth of the clients is usual"
        )
    return float(rest**-0.5)
