"""What a rule of aggregation takes and gives: changes of shared weights, where they lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ...supernet.axes import Regions, Weights
from ...supernet.weights import Flat

Trained = Mapping[str, Tensor | bool]


@dataclass(frozen=True, slots=True)
class Update:
    """What one client changed: `delta` is new minus sent, float32, tensors in the order of `where`.

    It counts as `scale` times itself (what clipping leaves of it) with weight `weight` > 0. `bits`
    is the width that the client trained in.
    """

    device: str
    delta: Flat
    where: Regions
    weight: float
    scale: float = 1.0
    bits: int = 32


@dataclass(frozen=True, slots=True)
class Merged:
    """A round's change of the shared weights.

    `delta` holds the tensors that somebody trained, in full shape; `trained` says of every shared
    tensor which of its values were: a mask, or all, or none. A value that was not has no change.
    Weights that were trained are multiplied by `shrink` after the server's step.
    `notes` are a rule's remarks, in words; `suspects` devices whose updates it left out or cut, with
    a reason code. `memory` is what the rule must be told in the next round, JSON values. `counted`
    says of devices whose updates count less than their weight which share of it does, 0 to 1.
    """

    delta: Weights
    trained: Trained
    suspects: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    memory: Mapping[str, Any] = field(default_factory=dict)
    counted: Mapping[str, float] = field(default_factory=dict)
    shrink: float = 1.0


class Fold(Protocol):
    """A rule of aggregation as a fold over updates."""

    def add(self, update: Update) -> None:
        """Count one client's update."""

    def result(self) -> Merged:
        """End the fold. At least one update must have been added."""
