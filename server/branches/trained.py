"""What a trained run holds: one supernet, or one in each branch with the devices that it is for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...protos.depot import STABLE
from ...supernet.errors import RunError, UsageError
from ..checkpoint import CHECKPOINTS, Checkpoint, CheckpointStore
from ..config import RunConfig
from ..events import EventLog
from ..fleet import Fleet
from .catalogue import router_of
from .places import branch_config, branch_folder, branch_store
from .router import Router
from .training import NOTES


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained supernet: its configuration, its folder, and the channel its models are published in.

    `serves` leaves those devices of a fleet that the supernet is for.
    """

    config: RunConfig
    folder: Path
    checkpoint: Checkpoint
    channel: str = STABLE
    serves: Callable[[Fleet, EventLog], Fleet] = lambda fleet, _log: fleet

    def of_fleet(self, fleet: Fleet, log: EventLog) -> tuple[RunConfig, Fleet]:
        """The devices that the supernet is for, and the configuration with their classes alone.

        RunError when none of them is there.
        """
        mine = self.serves(fleet, log)
        present = {member.profile.device_class for member in mine.members.values()}
        classes = {name: c for name, c in self.config.classes.items() if name in present}
        if not classes:
            raise RunError(f"{self.config.name}: none of the devices that it serves has joined")
        return self.config.model_copy(update={"classes": classes}), mine


def branch_names(folder: Path) -> list[str]:
    """The branches of a trained run; none where it has no branches. UsageError: not trained."""
    return list(_newest(folder).noted(NOTES).get("names", ()))


def explained(folder: Path, config: RunConfig) -> list[dict[str, Any]]:
    """How a trained run divides its work, in rows. UsageError for a run without branches."""
    found = _newest(folder)
    return _router(folder, config, found).explained(found.round + 1)


def chosen(folder: Path, branch: str | None) -> list[str | None]:
    """The branches that a job is about: the one named, or all; [None] for a run without any.

    UsageError names those that there are.
    """
    names = branch_names(folder)
    if branch is None:
        return list(names) or [None]
    if branch not in names:
        known = f"there are {', '.join(names)}" if names else "the run has no branches"
        raise UsageError(f"--branch {branch!r}: {known}")
    return [branch]


def trained(folder: Path, config: RunConfig, branch: str | None) -> Trained:
    """The newest supernet of a run, or of one of its branches."""
    found = _newest(folder)
    if branch is None:
        return Trained(config, folder, found)
    router = _router(folder, config, found)

    def serves(fleet: Fleet, log: EventLog) -> Fleet:
        router.settle(fleet, log)
        return router.serves(branch, fleet)

    return Trained(
        branch_config(config, branch),
        branch_folder(folder, branch),
        branch_store(folder, branch, config).read(found.round),
        branch,
        serves,
    )


def _newest(folder: Path) -> Checkpoint:
    found = CheckpointStore(folder / CHECKPOINTS).latest()
    if found is None:
        raise UsageError(f"run folder {folder} holds no trained supernet; fedofa run first")
    return found


def _router(folder: Path, config: RunConfig, found: Checkpoint) -> Router:
    notes = found.noted(NOTES)
    if config.branches is None or not notes:
        raise UsageError(f"run folder {folder}: the run, or its configuration, has no [branches]")
    router = router_of(config, config.branches, config.build_space())
    router.restore(notes["router"])
    return router
