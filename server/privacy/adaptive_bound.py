"""A clipping bound that follows a private quantile of the updates' norms (Andrew et al. 2021).

Each round the noised share b̃ of clients whose update is no longer than the bound moves the bound towards
the quantile γ that is to lie below it: C ← C · exp(-η · (b̃ - γ)).

    b̃ = 1/2 + (Σ (b_i - 1/2) + N(0, σ_b²)) / n

with b_i in {0, 1} and n the number of assigned clients, which depends on no data. A client that does not
report counts 0 instead of ±1/2.

Budget: neighbouring runs differ in one client that has no change in one of them, and that replies in both
(`private_mean`). No change is never longer than the bound and counts +1/2; an update that is longer counts
-1/2. So one client moves the count by up to 1, not by the 1/2 of Andrew et al., whose neighbours lack the
client, and the sum by up to C, both at once: the update that is cut moves both. Noise of σ_b makes the
count a Gaussian mechanism of noise multiplier σ_b, beside the sum with z_Δ, and together they are one
mechanism of multiplier z with z^-2 = z_Δ^-2 + σ_b^-2. The accountant counts z; the sum gets the larger
z_Δ, `sum_noise`. Nothing is spent besides.
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

    UsageError when the count alone would spend all that `noise_multiplier` allows.
    """
    if count_noise <= noise_multiplier:
        raise UsageError(
            f"privacy.adaptive.count_noise = {count_noise}: more than the noise multiplier is "
            f"needed, {noise_multiplier:.4g}; a twentieth of the clients is usual where that is more"
        )
    return float((noise_multiplier**-2 - count_noise**-2) ** -0.5)
