"""The folders models/CLASS of a run: each holds one published model, and is replaced as a whole."""

import shutil
from pathlib import Path

from ..protos import durable

MODELS, RESULTS = "models", "specialized.json"
"""A run's folder of them, and beside it what the newest specialization found."""
# No class begins with a dot.
DRAFT, FORMER = ".draft-", ".former-"


class ModelFolders:
    """Drafts beside the published folders; one process at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, name: str) -> Path:
        """Where a class's published model lies, if there is one."""
        return self._root / name

    def sweep(self) -> None:
        """Remove what a killed process left; put back a folder that it was about to replace."""
        for former in self._root.glob(f"{FORMER}*"):
            published = self._root / former.name.removeprefix(FORMER)
            if published.exists():
                shutil.rmtree(former)
            else:
                former.rename(published)
        for draft in self._root.glob(f"{DRAFT}*"):
            shutil.rmtree(draft)

    def draft(self, name: str) -> Path:
        """A class's folder to write into: not there yet, or empty."""
        durable.make_folder(self._root)
        folder = self._root / f"{DRAFT}{name}"
        self.discard(name)
        folder.mkdir()
        return folder

    def discard(self, name: str) -> None:
        """Remove a class's draft, if there is one; what was published before stays."""
        shutil.rmtree(self._root / f"{DRAFT}{name}", ignore_errors=True)

    def publish(self, name: str) -> Path:
        """Put a class's draft in the place of what was published before; returns its folder."""
        draft, published = self._root / f"{DRAFT}{name}", self._root / name
        former = self._root / f"{FORMER}{name}"
        for path in draft.iterdir():
            durable.sync(path)
        if published.exists():
            published.rename(former)
        durable.move(draft, published)
        shutil.rmtree(former, ignore_errors=True)
        return published
