"""What a run and its groups tell each other, over a pipe: keys and figures, never arrays."""

from dataclasses import dataclass

from ...protos.messages import TrainReply
from ..aggregation.overlap_mean import Counted
from ..config import RunConfig
from ..intake import Asked
from .memory import Room


@dataclass(frozen=True, slots=True)
class SetUp:
    """The first letter: whose run it is, and where in the shared memory the group's sum lies."""

    config: RunConfig
    room: Room
    group: int
    keeps_digests: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """A new round: the weights are in place, the sum starts from nothing."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """An update is in `slot`, `size` values of `dtype`; it weighs `weight` if it is good."""

    node: int
    slot: int
    dtype: str
    size: int
    asked: Asked
    reply: TrainReply
    weight: float


@dataclass(frozen=True, slots=True)
class End:
    """The round is over: say what the sum is made of."""


@dataclass(frozen=True, slots=True)
class Folded:
    """An update is good, and in the sum; its figures are `intake.Good`'s."""

    node: int
    change: float
    sha256: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An update is refused, as `RefusedUpdate` says."""

    node: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Summed:
    """The answer to `End`: the fields of `Partial` but its total, which is in the shared memory."""

    counted: Counted
    updates: int
    weight: float


Order = Begin | Arrived | End
Verdict = Folded | Refused
