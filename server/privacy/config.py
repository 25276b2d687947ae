"""The tables [privacy] and [secure]: what a run promises, refused before it starts if it cannot keep it."""

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...protos.fixed_point import MOST_CLIENTS
from ...protos.noise import fixed_point_range, share_std
from ...protos.secure_messages import MOST_CELLS
from ...supernet.errors import UsageError
from .accountant import LEAST_NOISE, Accountant, noise_for
from .adaptive_bound import AdaptiveBound, sum_noise
from .terms import Terms

BOUND = 4.0
"""How far a secure run lets a value move in a round where nothing else says it."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AdaptiveConfig(_Table):
    """A clipping bound that follows a quantile of the norms, noised; `clip` is where it begins."""

    quantile: float = Field(0.5, gt=0, lt=1)
    step: float = Field(0.2, gt=0, le=2)
    count_noise: float = Field(gt=0)


class SecureConfig(_Table):
    """Sums that the server sees and updates that it does not (`secure_server.py`).

    `threshold` devices of a round must stay to the end: a share of those asked, with a decimal point,
    or a number; more than half of them in any case. `least_cover` is the least number of devices over
    which a value is summed. A value moves by at most `bound` in a round, beyond it is cut; None: by 4 or,
    with [privacy], by what its clipping lets through. A device may take `letter_s` for a letter other
    than the training itself.
    """

    threshold: int | float = 2 / 3
    least_cover: int = Field(3, ge=2)
    most_cells: int = Field(1024, ge=1, le=MOST_CELLS)
    bound: float | None = Field(None, gt=0, le=1e6)
    letter_s: float = Field(60.0, gt=0, le=1e7)

    @field_validator("threshold", mode="before")
    @classmethod
    def _count_or_share(cls, value: object) -> object:
        count = isinstance(value, int) and not isinstance(value, bool) and value >= 2
        share = isinstance(value, float) and 0.5 < value <= 1
        if not (count or share):
            raise ValueError(
                "a number of devices of at least 2 (10), or a share of those asked, with a decimal "
                "point, above 0.5 and at most 1.0 (0.7)"
            )
        return value

    @property
    def least_devices(self) -> int:
        """A round needs so many devices."""
        return max(self.least_cover, self.threshold if isinstance(self.threshold, int) else 2)

    def terms(self, devices: int, bound: float) -> Terms:
        """One round's terms; UsageError where `devices` are too few for them, or too many."""
        if devices < self.least_devices:
            raise UsageError(
                f"secure.least_cover = {self.least_cover}, threshold = {self.threshold}: the round "
                f"has {devices} devices; wait for more with round.min_clients, or lower them"
            )
        if devices > MOST_CLIENTS:
            raise UsageError(
                f"secure: the round has {devices} devices; at most {MOST_CLIENTS} can be summed. Ask "
                "fewer with round.clients"
            )
        given = self.threshold
        asked = given if isinstance(given, int) else math.ceil(round(given * devices, 9))
        return Terms(max(asked, devices // 2 + 1), self.least_cover, bound, self.most_cells)


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """What a run's rounds do: `accountant` counts them, `sum_multiplier`·C is the noise on the sum.

    In mode `local` each device adds the share of one of `sharers`, and the server none.
    """

    accountant: Accountant
    sum_multiplier: float
    sharers: int
    epsilon: float

    def server_std(self, bound: float, mode: str) -> float:
        """Standard deviation of the noise that the server adds to each value of the sum."""
        return 0.0 if mode == "local" else self.sum_multiplier * bound

    def value_range(self, bound: float, mode: str) -> float:
        """The largest value that a device's update may hold, for secure sums."""
        std = share_std(bound, self.sum_multiplier, self.sharers) if mode == "local" else 0.0
        return fixed_point_range(bound, std)


class PrivacyConfig(_Table):
    """Client-level differential privacy of the merged weights: the whole run spends (epsilon, delta).

    `clip` bounds the L2 norm of each client's change, over its region. The noise multiplier is what
    makes the run's rounds spend `epsilon`, unless `noise_multiplier` says another, which then must
    not spend more. `mode`: the server adds the noise (`central`: it sees updates, or their sums with
    secure sums) or each device a share (`local`). `rate` below 1 is Poisson sampling of clients. Values
    assigned to fewer than `least_cover` clients keep their bytes.
    """

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=0.1)
    clip: float = Field(gt=0)
    mode: Literal["central", "local"] = "central"
    noise_multiplier: float | None = Field(None, ge=LEAST_NOISE)
    rate: float = Field(1.0, gt=0, le=1)
    least_cover: int = Field(1, ge=1)
    adaptive: AdaptiveConfig | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.mode == "local" and self.rate < 1:
            raise ValueError(
                f"privacy.rate = {self.rate} with mode = local: the server, against which devices add "
                "noise, sees who is drawn, so that drawing protects nobody; use rate = 1"
            )
        if self.mode == "local" and self.adaptive is not None:
            raise ValueError(
                "privacy.adaptive with mode = local: the server would see who is below the bound; use "
                "mode = central"
            )
        return self

    def plan(self, rounds: int, secure: SecureConfig | None = None) -> PrivacyPlan:
        """The noise of a run of so many rounds; UsageError when they would exceed the budget.

        Takes a second where `rate` is below 1.
        """
        noise = self.noise_multiplier
        if noise is None:
            try:
                noise = noise_for(self.epsilon, rounds, self.rate, self.delta)
            except ValueError as error:
                raise UsageError(f"privacy.epsilon = {self.epsilon}: {error}") from None
        accountant = Accountant(noise, self.delta, self.rate)
        if accountant.epsilon_after(rounds) > self.epsilon:
            raise UsageError(self._exceeded(accountant, rounds))
        return self._planned(accountant, rounds, secure)

    def go_on(self, noise: float, rounds: int, secure: SecureConfig | None = None) -> PrivacyPlan:
        """The plan of a run that began with this noise multiplier and now has so many rounds.

        UsageError when they would exceed the budget: noise cannot be added to what was published.
        """
        accountant = Accountant(noise, self.delta, self.rate)
        spent = accountant.epsilon_after(rounds)
        if spent > self.epsilon:
            raise UsageError(
                f"round.rounds = {rounds}: the run began with noise_multiplier = {noise:.4g}, and so "
                f"many rounds would spend {spent:.3g} of privacy.epsilon = {self.epsilon:g}; at most "
                f"{accountant.most_rounds(self.epsilon)} rounds, or start a new run"
            )
        return self._planned(accountant, rounds, secure)

    def _planned(
        self, accountant: Accountant, rounds: int, secure: SecureConfig | None
    ) -> PrivacyPlan:
        noise, spent = accountant.noise_multiplier, accountant.epsilon_after(rounds)
        split = sum_noise(noise, self.adaptive.count_noise) if self.adaptive else noise
        sharers = secure.least_cover if secure else 1
        return PrivacyPlan(accountant, split, sharers if self.mode == "local" else 1, spent)

    def first_bound(self) -> AdaptiveBound | None:
        """The adaptive bound of the first round, or None where the bound stays."""
        found = self.adaptive
        if found is None:
            return None
        return AdaptiveBound(self.clip, found.quantile, found.step, found.count_noise)

    def check_clients(self, clients: int) -> None:
        """UsageError when delta would allow to publish some client's data outright."""
        if self.delta * clients >= 1:
            raise UsageError(
                f"privacy.delta = {self.delta} with {clients} clients: below {1 / clients:.3g} is "
                "needed, or publishing one client's data would count as private"
            )

    def _exceeded(self, accountant: Accountant, rounds: int) -> str:
        spent = accountant.epsilon_after(rounds)
        most = accountant.most_rounds(self.epsilon)
        advice = f"at most {most} rounds, or " if most else ""
        needed = noise_for(self.epsilon, rounds, self.rate, self.delta)
        return (
            f"privacy.epsilon = {self.epsilon}: {rounds} rounds with noise_multiplier = "
            f"{accountant.noise_multiplier:g} would spend {spent:.3g} at delta = {self.delta:g}; "
            f"{advice}noise_multiplier = {needed:.4g}"
        )
