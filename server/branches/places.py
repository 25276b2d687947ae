"""Where a run keeps its branches, and what each of them is called."""

from pathlib import Path

from ..checkpoint import CHECKPOINTS, CheckpointStore
from ..config import RunConfig

FOLDER = "branches"


def branch_folder(run: Path, branch: str) -> Path:
    """A branch's folder in its run's: checkpoints, ledger, models, as of a run of its own."""
    return run / FOLDER / branch


def branch_config(config: RunConfig, branch: str) -> RunConfig:
    """A branch's configuration: that of a run of its own, by whose name devices keep what they owe
    and what they hold of it."""
    return config.model_copy(update={"name": f"{config.name}.{branch}"})


def branch_store(run: Path, branch: str, config: RunConfig) -> CheckpointStore:
    """A branch's checkpoints. One more than the run's: its newest may be of a round that the run
    itself has not noted yet."""
    folder = branch_folder(run, branch) / CHECKPOINTS
    return CheckpointStore(folder, config.round.keep_checkpoints + 1)
