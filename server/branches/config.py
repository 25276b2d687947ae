"""The [branches] table: whether a run trains several supernets, and what divides its work."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...protos.holding import RUNS_HELD
from ...supernet.errors import UsageError
from ...supernet.space import Space
from .axis import axis_of

if TYPE_CHECKING:
    from ..config import RunConfig

ONLY = {
    "c": "coalitions",
    "restarts": "coalitions",
    "distances": "coalitions",
    "whole": "coalitions",
    "copies": "architecture",
    "axis": "architecture",
}
"""Fields that one way of dividing alone uses."""
C, RESTARTS = 10.0, 20
LONGEST_NAME = 48
"""A run's name with a branch's behind it must still be a run's name."""


class BranchesConfig(BaseModel):
    """Several supernets in one run, `by` coalitions of devices or the architecture of subnets.

    `coalitions` (FedCollab): `c` weighs few examples against unlike data (None: 10), the best of
    `restarts` searches counts (None: 20). `distances` is a file with the devices' distances; None:
    from their label counts. With `whole` each coalition has a device that can train the largest
    subnet (None: not asked for).

    `architecture` (balanced copies): `copies` of the supernet; a subnet's values of the genes that the
    glob `axis` matches decide which one it trains (None: resolution, depths or kernels, the first of
    them that is elastic).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    by: Literal["coalitions", "architecture"]
    c: float | None = Field(None, ge=0)
    restarts: int | None = Field(None, ge=1, le=1000)
    distances: str | None = None
    whole: bool | None = None
    copies: int | None = Field(None, ge=1, le=64)
    axis: str | None = None

    @model_validator(mode="after")
    def _uses_its_fields(self) -> Self:
        for name, by in ONLY.items():
            if getattr(self, name) is not None and self.by != by:
                raise ValueError(
                    f"branches.{name} = {getattr(self, name)} is used with branches.by = {by} only; "
                    f"branches.by is {self.by}"
                )
        if self.by == "architecture" and self.copies is None:
            raise ValueError(
                "branches.copies is needed with branches.by = architecture: how many copies of the "
                "supernet the server keeps, for instance 2"
            )
        return self

    def check(self, run: "RunConfig", space: Space) -> None:
        """UsageError names the first setting that does not go with branches."""
        if self.by == "architecture":
            axis_of(space, self.axis)
        if len(run.name) > LONGEST_NAME:
            raise UsageError(
                f"name = {run.name!r} with [branches]: at most {LONGEST_NAME} characters, since a "
                "branch's name is put behind it"
            )
        if run.downlink is not None and (self.copies or 1) > RUNS_HELD:
            raise UsageError(
                f"branches.copies = {self.copies} with downlink: a device keeps what it holds of "
                f"{RUNS_HELD} copies at most; use fewer copies, or leave downlink out"
            )
        if run.round.mode == "async":
            raise UsageError(
                "round.mode = async with [branches]: branches end their rounds together; use sync"
            )
        if run.round.enough_replies is not None:
            raise UsageError(
                f"round.enough_replies = {run.round.enough_replies} with [branches]: which branch "
                "would go short is left to chance; leave it out, round.clients bounds who is asked"
            )
        if run.privacy is not None:
            raise UsageError(
                "[privacy] with [branches]: what decides a device's branch (its labels, or losses) "
                "is not part of the privacy account; leave one of the two out"
            )
