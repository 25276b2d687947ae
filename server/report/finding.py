"""What a practice is judged by, and what is found of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .facts import Facts
from .held_out import HeldOut
from .lineage import Lineage
from .logs import Row

State = Literal["met", "not met", "does not apply"]
TOLD = 3
"""So many missing things are named."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of an item: `evidence` says what and where, `advice` what to do if not met."""

    state: State
    evidence: str
    advice: str = ""


NO_CLASSES = Finding("does not apply", "the run was specialized for fleets alone, not for classes")


@dataclass(frozen=True, slots=True)
class Scene:
    """All that items are judged by."""

    facts: Facts
    lineage: Lineage
    held_out: Sequence[HeldOut]


def finding(missing: Sequence[str], evidence: str, advice: str) -> Finding:
    """Met, with the evidence, where nothing is missing."""
    if not missing:
        return Finding("met", evidence)
    rest = f" and {len(missing) - TOLD} more" if len(missing) > TOLD else ""
    return Finding("not met", "; ".join(missing[:TOLD]) + rest, advice)


def of_classes(scene: Scene, lacks: Callable[[Row], str], evidence: str, advice: str) -> Finding:
    """Met where no class's row lacks anything; `lacks` says what a row lacks, or nothing."""
    if not scene.facts.results:
        return NO_CLASSES
    found = [(str(row["class"]), lacks(row)) for row in scene.facts.results]
    return finding([f"class {name}: {why}" for name, why in found if why], evidence, advice)
