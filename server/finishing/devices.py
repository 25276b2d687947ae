"""Which devices take part in a finishing, and as what."""

from dataclasses import dataclass

from ...supernet.cost import cost
from ...supernet.errors import RunError
from ...supernet.space import Arch, Space
from ..config import RunConfig
from ..fleet import Fleet
from ..samplers.expanded import expansion


@dataclass(frozen=True, slots=True)
class Divided:
    """Devices that train the target inside a larger subnet, alone, and not at all.

    `largest_macs` is of the largest subnet that one of them trains.
    """

    expanded: tuple[str, ...]
    alone: tuple[str, ...]
    left_out: tuple[str, ...]
    largest_macs: int

    def to_row(self) -> dict[str, list[str]]:
        """The devices' names, for reports."""
        names = {"expanded": self.expanded, "alone": self.alone, "left_out": self.left_out}
        return {part: list(mine) for part, mine in names.items()}


def divided(own: RunConfig, space: Space, target: Arch, fleet: Fleet) -> Divided:
    """The fleet's devices by what they would train under a finishing's configuration.

    RunError where those that can train the target are too few for a round.
    """
    parts: dict[str, list[str]] = {"expanded": [], "alone": [], "left_out": []}
    largest_macs = 0
    for name, member in fleet.members.items():
        if not member.limits.fits(space, target):
            parts["left_out"].append(name)
            continue
        arch = target
        if own.sampler.kind == "expanded":
            arch = expansion(space, target, member.limits, own.sampler.most, own.seed)
        parts["alone" if arch == target else "expanded"].append(name)
        largest_macs = max(largest_macs, cost(space, arch).macs)
    able, least = len(parts["expanded"] + parts["alone"]), own.round.min_replies
    if able < least:
        raise RunError(
            f"{able} of {len(fleet.members)} devices can train the class's subnet, fewer than "
            f"round.min_replies = {least}; start devices of a class that may hold it"
        )
    return Divided(**{part: tuple(mine) for part, mine in parts.items()}, largest_macs=largest_macs)
