"""What server and device tell each other of the values that the device holds: fields of messages."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .codec.config import CodecConfig

MOST_HELD = 4
RUNS_HELD = 4
"""Of how many runs, a run's branches each counted, a device holds values on disk."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Held(BaseModel):
    """A state of the shared weights that a device holds: since which round, and its digest."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    round: int = Field(ge=0, le=2**53)
    digest: Digest


Holds = Annotated[tuple[Held, ...], Field(max_length=MOST_HELD)]


class Holding(BaseModel):
    """What a device is to hold when it has taken up a request's values.

    That is what it held after `base`, or nothing, with these values in their places; `digest` is of
    all of it. Values that come as bytes are the difference from `base`, encoded by `codec`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    codec: CodecConfig
    base: Held | None
    digest: Digest
