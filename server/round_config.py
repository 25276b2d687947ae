"""The [round] table: whom a round asks, what ends it, and versions in place of rounds."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ONLY = {
    "clients": "sync",
    "enough_replies": "sync",
    "groups": "sync",
    "buffer": "async",
    "concurrency": "async",
    "max_staleness": "async",
    "staleness_power": "async",
}
"""Fields that one mode alone uses."""
STALENESS_POWER = 0.5
MOST_GROUPS = 64


class RoundConfig(BaseModel):
    """Rounds of training: how many, how long each may take, how many replies make one.

    With `mode` sync a round asks all devices that are free, or `clients` of them, drawn anew. It ends
    when all have answered, at its deadline, or as soon as `enough_replies` good updates are in: so
    many, or, with a decimal point, that share of the devices asked.

    With `mode` async (`versions.py`) `concurrency` devices are at work at any time (None: all), and
    `buffer` good updates make the next version of the weights, a round. An update of weights that
    are s versions old counts (1 + s)^-staleness_power (None: 0.5) times, and nothing where s is more
    than `max_staleness`.

    No device counts for more than `max_examples_ratio` times the examples of the fleet's median one, and
    among three or more that are asked none has more than `max_weight_share` of their weight.
    With `groups` so many processes beside the server's check and fold the updates as they arrive.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Literal["sync", "async"] = "sync"
    rounds: int = Field(12, ge=1)
    deadline_s: float = Field(120.0, gt=0, le=1e7)
    min_replies: int = Field(1, ge=1)
    min_clients: int = Field(1, ge=1)
    clients: int | None = Field(None, ge=1)
    enough_replies: int | float | None = None
    buffer: int | None = Field(None, ge=1)
    concurrency: int | None = Field(None, ge=1)
    max_staleness: int | None = Field(None, ge=0)
    staleness_power: float | None = Field(None, ge=0, le=4)
    join_timeout_s: float = Field(120.0, gt=0)
    max_update_ratio: float = Field(20.0, gt=0)
    max_examples_ratio: float = Field(20.0, gt=1)
    max_weight_share: float = Field(0.5, gt=0, le=1)
    keep_checkpoints: int = Field(2, ge=1)
    groups: int | None = Field(None, ge=1, le=MOST_GROUPS)

    @field_validator("enough_replies", mode="before")
    @classmethod
    def _count_or_share(cls, value: object) -> object:
        if value is None:
            return None
        count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        share = isinstance(value, float) and 0 < value <= 1
        if not (count or share):
            raise ValueError(
                "a number of replies of at least 1 (10), or a share of the devices asked, with a "
                "decimal point, above 0 and at most 1.0 (0.8)"
            )
        return value

    @model_validator(mode="after")
    def _uses_its_fields(self) -> Self:
        for name, mode in ONLY.items():
            if getattr(self, name) is not None and self.mode != mode:
                raise ValueError(
                    f"round.{name} = {getattr(self, name)} is used with round.mode = {mode} only; "
                    f"round.mode is {self.mode}"
                )
        if self.mode == "async" and self.buffer is None:
            raise ValueError(
                "round.buffer is needed with round.mode = async: how many good updates make the "
                "next version, for instance a tenth of the devices"
            )
        if self.buffer is not None and self.buffer < self.min_replies:
            raise ValueError(
                f"round.buffer = {self.buffer}: fewer than min_replies = {self.min_replies}, no "
                "version would have enough; raise it or lower min_replies"
            )
        return self

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        least, most = self.min_replies, self.clients
        if most is not None and most < least:
            raise ValueError(
                f"round.clients = {most}: fewer than min_replies = {least}, every round would be "
                "abandoned; ask more devices or lower min_replies"
            )
        given = self.enough_replies
        if isinstance(given, int) and most is not None and given > most:
            raise ValueError(
                f"round.enough_replies = {given}: only clients = {most} devices are asked in a "
                "round; lower it or ask more devices"
            )
        # Without a number of clients nobody knows yet how many a share of them is.
        enough = given if isinstance(given, int) or given is None else most and _share(given, most)
        if enough is not None and enough < least:
            raise ValueError(
                f"round.enough_replies = {given}: {enough} updates are fewer than min_replies = "
                f"{least}; raise it or lower min_replies"
            )
        return self

    @property
    def least_clients(self) -> int:
        """How many devices the first round waits for: fewer than `min_replies` could not make one."""
        return max(self.min_clients, self.min_replies)

    def enough(self, asked: int) -> int | None:
        """How many good updates end a round that asked so many devices; None: nothing ends it."""
        given = self.enough_replies
        if given is None:
            return None
        return max(self.min_replies, given if isinstance(given, int) else _share(given, asked))

    def staleness_factor(self, staleness: int) -> float:
        """How much an update counts whose weights were so many versions old."""
        power = STALENESS_POWER if self.staleness_power is None else self.staleness_power
        return float((1 + staleness) ** -power)


def _share(share: float, asked: int) -> int:
    return math.ceil(round(share * asked, 9))  # 0.07 · 100 is a little more than 7
