"""Branches by architecture: copies of the supernet, each of which trains some of the configurations.

One choice of subnets serves all copies; a subnet's configuration, the values of the genes on the axis,
gives the probabilities of its copy (`balance`). A device gets one copy's values and never knows of the
others. Students that a device draws inside its subnet train the same copy, whatever their configuration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...supernet.errors import UsageError
from ...supernet.randomness import stream
from ...supernet.space import Space
from ..config import RunConfig
from ..events import EventLog
from ..fleet import Fleet, Member
from ..open_round import Assignments
from ..samplers.assigned import Assigned, Outcome
from ..selection import Selection
from .axis import axis_of
from .balance import Floats, balanced, followed, temperature, unevenness
from .config import BranchesConfig
from .router import Parts


class Copies:
    """Routes each subnet to a copy, drawn by (seed, round, device)."""

    def __init__(self, config: RunConfig, branches: BranchesConfig, space: Space) -> None:
        if branches.copies is None:
            raise UsageError("branches.copies is needed with branches.by = architecture")
        self._config = config
        self._axis = axis_of(space, branches.axis)
        self._names = [f"copy-{place}" for place in range(1, branches.copies + 1)]
        self._selection = Selection(config, space)
        self._v_am = np.ones((len(self._axis.configurations), branches.copies))
        self._p_am: Floats | None = None
        self._number = 0

    def settle(self, fleet: Fleet, log: EventLog) -> Sequence[str]:
        """As many copies as the configuration says."""
        return self._names

    def selection(self) -> Selection:
        """One for all: which subnets are trained does not hang on the copy."""
        return self._selection

    def seed(self, branch: str, seed: int) -> int:
        """The first copy begins like an ordinary run, the others differ from it."""
        place = self._names.index(branch)
        return stream(seed, "copy", place).getrandbits(62) if place else seed

    def assignments(
        self, parts: Parts, fleet: Fleet, busy: frozenset[int], most: int | None
    ) -> Assignments:
        """The sampler's choice; a weight has waited as long as in the copy that trained it last."""
        ages = [part.coverage.ages for part in parts.values()]
        least = {name: torch.stack([a[name] for a in ages]).amin(dim=0) for name in ages[0]}
        number = 1 + next(iter(parts.values())).round
        return self._selection.assignments(number, fleet, least, busy, most)

    def branch(self, member: Member, assigned: Assigned, number: int) -> str:
        """A draw by p(m | a)."""
        row = self._probabilities(number)[self._axis.of(assigned.arch)]
        rng = stream(self._config.seed, number, "copy", member.name)
        return rng.choices(self._names, row.tolist())[0]

    def serves(self, branch: str, fleet: Fleet) -> Fleet:
        """Everybody: a copy's subnets fit any device that can hold them."""
        return fleet

    def learn(self, branch: str, outcomes: Sequence[Outcome]) -> None:
        """Follow the losses that devices told, one after the other."""
        m = self._names.index(branch)
        for outcome in outcomes:
            a = self._axis.of(outcome.assigned.arch)
            self._v_am[a, m] = followed(float(self._v_am[a, m]), outcome.loss)
        self._p_am = None

    def told(self, number: int) -> dict[str, Any]:
        """The probabilities that a round was divided by."""
        p_am = self._probabilities(number)
        return {"unevenness": unevenness(p_am), "rows": self._rows(p_am)}

    def explained(self, number: int) -> list[dict[str, Any]]:
        """One row a configuration: its probabilities in the round, V, and the likeliest copy."""
        p_am = self._probabilities(number)
        return [
            {**row, "values": v.tolist(), "branch": self._names[int(p.argmax())]}
            for row, p, v in zip(self._rows(p_am), p_am, self._v_am, strict=True)
        ]

    @property
    def memory(self) -> dict[str, Any]:
        """V."""
        return {"values": self._v_am.tolist()}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Take V as it was."""
        self._v_am, self._p_am = np.asarray(memory["values"], dtype=np.float64), None

    def _rows(self, p_am: Floats) -> list[dict[str, Any]]:
        return [
            {"configuration": label, "probabilities": p.tolist()}
            for label, p in zip(self._axis.labels, p_am, strict=True)
        ]

    def _probabilities(self, number: int) -> Floats:
        """Of round `number`: V does not change before the round is done."""
        if self._p_am is None or number != self._number:
            rounds = self._config.round.rounds
            progress = 0.0 if rounds == 1 else min((number - 1) / (rounds - 1), 1.0)
            self._number, self._p_am = number, balanced(self._v_am, temperature(progress))
        return self._p_am
