"""What rounds of noise cost: (ε, δ) of a Gaussian mechanism, composed, by Google's dp-accounting.

With every client in every round, `rounds` releases of noise multiplier z are one of z/√rounds, and ε is
exact (Balle and Wang 2018). With Poisson sampling ε comes from the distribution of the privacy loss
(PLD, Koskela et al. 2020; Doroshenko et al. 2022), an upper bound that is near the truth.

**What is assumed.** Neighbours: the same clients, one of them with no change (zero-out), accounted like
adding or removing one. Where replacing one is meant, double the noise. δ should be well below
1 / clients.

**Sampling.** `rate` < 1 is right only if each client is drawn by itself with that probability, in each
round anew, by randomness that nobody sees, and

- what the drawn clients train must not hang on who else is drawn: assign to everybody, then draw, and
  divide by rate · assigned;
- every draw publishes, also one that nobody answers. A round that is abandoned for too few replies
  tells who was not drawn, and the next one draws from those that were.

A sampler of fixed size, one that takes whoever is free, a draw from the run's seed, which devices are
told, or one that the observer sees: none is Poisson sampling against that observer, and gains nothing here.
The rate is then 1, and a client that was not asked in some round has only spent less than is counted.
"""

from dataclasses import dataclass

MOST_ROUNDS = 2**20
# Of the distribution's grid: bounds stay bounds, at 10⁴ rounds by 1.5 % above those of 10⁻⁴.
_LOSS_STEP = 1e-3
_TOLERANCE = 1e-4
_MOST_NOISE = 2.0**20
LEAST_NOISE = 0.1
"""Noise multipliers below protect nobody, and their distributions take minutes."""


@dataclass(frozen=True, slots=True)
class Accountant:
    """Rounds of noise multiplier z = standard deviation / sensitivity, at sampling probability `rate`."""

    noise_multiplier: float
    delta: float
    rate: float = 1.0

    def epsilon_after(self, rounds: int) -> float:
        """ε at `delta` after so many rounds; infinite where δ alone is spent."""
        if rounds == 0:
            return 0.0
        # Loaded here: a configuration is read without it.
        if self.rate == 1.0:
            from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

            return float(get_epsilon_gaussian(self.noise_multiplier / rounds**0.5, self.delta))
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

        once = PoissonSampledDpEvent(self.rate, GaussianDpEvent(self.noise_multiplier))
        accountant = PLDAccountant(value_discretization_interval=_LOSS_STEP)
        return float(accountant.compose(once, rounds).get_epsilon(self.delta))

    def most_rounds(self, epsilon: float) -> int:
        """The largest number of rounds that spends no more than `epsilon`; 0 if one is too many."""
        fits, above = 0, 1
        while above <= MOST_ROUNDS and self.epsilon_after(above) <= epsilon:
            fits, above = above, 2 * above
        while above - fits > 1:
            middle = (fits + above) // 2
            if self.epsilon_after(middle) <= epsilon:
                fits = middle
            else:
                above = middle
        return fits


def noise_for(epsilon: float, rounds: int, rate: float, delta: float) -> float:
    """The least noise multiplier with which `rounds` rounds spend no more than `epsilon`.

    Too large by at most one part in 10⁴, never too small; at least `LEAST_NOISE`. ValueError where no
    noise is enough.
    """

    def spent(noise: float) -> float:
        return Accountant(noise, delta, rate).epsilon_after(rounds)

    above = 1.0
    while spent(above) > epsilon:
        above *= 2
        if above > _MOST_NOISE:
            raise ValueError(f"no noise makes {rounds} rounds spend ε = {epsilon} at δ = {delta}")
    below = max(above / 2, LEAST_NOISE)
    while below < above and spent(below) <= epsilon:
        above, below = below, max(below / 2, LEAST_NOISE)
    while above - below > _TOLERANCE * above:
        middle = (below + above) / 2
        if spent(middle) <= epsilon:
            above = middle
        else:
            below = middle
    return above
