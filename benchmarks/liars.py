"""Clients that lie, for `fedofa bench robust`: what they send in place of their update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from fedofa.protos.flower import Values
from fedofa.protos.messages import TrainReply
from fedofa.server.exchange import Answer, Request

Lie = Callable[[Any, Any], Any]
LIES: Mapping[str, Lie] = MappingProxyType(
    {
        "NaN": lambda sent, new: np.where(np.arange(len(new)) == len(new) // 2, np.nan, new),
        "sign-flipped x10": lambda sent, new: sent - 10 * (new - sent),
        "scaled x1e6": lambda sent, new: sent + 1e6 * (new - sent),
        "constant": lambda sent, new: np.full_like(new, 0.1),
        "wrong shape": lambda sent, new: new[: len(new) // 2],
    }
)
REPLAY, OLD_VALUES = "replay", "old values"
KINDS = (*LIES, REPLAY, OLD_VALUES)


@dataclass(slots=True)
class Liars:
    """Some nodes lie in every round; a replayed update is the node's first one, header and all.

    Old values are the change of the node's first update of the same size under a fresh header.
    """

    kind: str
    nodes: frozenset[int]
    _first: dict[int, tuple[TrainReply, Values]] = field(default_factory=dict)
    _changes: dict[tuple[int, int], Values] = field(default_factory=dict)

    def __call__(self, request: Request, answer: Answer[TrainReply]) -> Answer[TrainReply]:
        """What the server gets."""
        if answer.node not in self.nodes or answer.body is None or answer.values is None:
            return answer
        if self.kind == REPLAY:
            body, values = self._first.setdefault(answer.node, (answer.body, answer.values))
            return Answer(answer.node, body, values)
        if self.kind == OLD_VALUES and request.values is not None:
            sent, new = request.values, answer.values
            first = self._changes.setdefault((answer.node, len(new)), new - sent)
            return Answer(answer.node, answer.body, sent + first)
        with np.errstate(over="ignore"):
            lie = LIES[self.kind](request.values, answer.values)
        return Answer(answer.node, answer.body, lie.astype(np.float32))
