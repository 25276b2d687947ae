"""The state of a run after a round, on disk: written whole or not at all, verified when read."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..protos.durable import sync
from ..supernet.axes import Weights
from ..supernet.errors import ArtifactError
from ..supernet.weights import load, save

CHECKPOINTS = "checkpoints"
"""A run's folder of them."""
STATE, DRAFT = "state.json", ".draft-"
PARTS = ("weights", "optimizer", "ages")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a run needs to go on: the round that is done, weights, optimizer, ages, notes."""

    round: int
    weights: Weights
    optimizer: Weights
    ages: dict[str, Tensor]
    notes: dict[str, object]

    def noted(self, part: str) -> Mapping[str, Any]:
        """One of the notes that are tables; empty where there is none."""
        notes = self.notes.get(part, {})
        return notes if isinstance(notes, dict) else {}


class CheckpointStore:
    """A folder of checkpoints, one folder a round; the newest whole one counts."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write beside, sync, rename into place; older ones beyond `keep` are removed after."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        target = self.folder / f"round-{checkpoint.round:06d}"
        draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self.folder))
        try:
            self._fill(draft, checkpoint)
            if target.exists():
                self._remove(target)
            draft.replace(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync(self.folder)
        for old in self.rounds()[: -self._keep]:
            self._remove(self.folder / f"round-{old:06d}")
        return target

    def _remove(self, folder: Path) -> None:
        """Rename first: half a checkpoint must never bear a checkpoint's name."""
        draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self.folder))
        shutil.rmtree(folder.replace(draft))

    def _fill(self, draft: Path, checkpoint: Checkpoint) -> None:
        digests = {}
        for part in PARTS:
            path = draft / f"{part}.safetensors"
            save(path, getattr(checkpoint, part), {})
            digests[part] = _digest(path)
            sync(path)
        state = {"round": checkpoint.round, "notes": checkpoint.notes, "sha256": digests}
        whole = {"state": state, "sha256": _state_digest(state)}
        (draft / STATE).write_text(json.dumps(whole, indent=1))
        sync(draft / STATE)
        sync(draft)

    def rounds(self) -> list[int]:
        """Rounds of the checkpoints there are, ascending."""
        found = self.folder.glob(f"round-*/{STATE}")
        return sorted(int(path.parent.name.removeprefix("round-")) for path in found)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; a damaged one is passed over.

        ArtifactError when there are some but none is whole.
        """
        rounds, damage = self.rounds(), ""
        for number in reversed(rounds):
            try:
                return self.read(number)
            except ArtifactError as error:
                damage = str(error)
        if rounds:
            raise ArtifactError(f"no whole checkpoint in {self.folder}: {damage}; start a new run")
        return None

    def read(self, number: int) -> Checkpoint:
        """One round's checkpoint; ArtifactError when a file is missing or its digest is wrong."""
        folder = self.folder / f"round-{number:06d}"
        try:
            whole = json.loads((folder / STATE).read_text())
            state = whole["state"]
            if _state_digest(state) != whole["sha256"]:
                raise ArtifactError(f"checkpoint {folder / STATE}: it was changed")
            parts = {}
            for part in PARTS:
                path = folder / f"{part}.safetensors"
                if _digest(path) != state["sha256"][part]:
                    raise ArtifactError(f"checkpoint {path}: its sha256 is not the recorded one")
                parts[part] = load(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"checkpoint {folder}: {error}") from None
        return Checkpoint(state["round"], **parts, notes=state["notes"])

    def _sweep(self) -> None:
        """Remove drafts that a killed server left behind."""
        for draft in self.folder.glob(f"{DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)


def _state_digest(state: object) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
