"""Trials that ended, a line each in a file: a benchmark of hours that was stopped goes on there.

It goes on with the same code only: a trial of another commit is not found, nor one of files that
differ from their commit, which cannot be told from others that differ.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedofa.supernet.errors import UsageError

if TYPE_CHECKING:
    from .trials import Trial

Record = dict[str, Any]


class Kept:
    """What ended with this commit is found again by its seed and by all that its trial says."""

    def __init__(self, path: Path, commit: str) -> None:
        self._path, self._commit = path, commit
        whole = bool(commit) and not commit.endswith("+")
        lines = [one for one in _lines(path) if whole and one["commit"] == commit]
        self._found = {(one["of"], one["seed"]): one for one in lines}

    def find(self, trial: "Trial", seed: int) -> Record | None:
        """The record of a trial that ended."""
        return self._found.get((_named(trial), seed))

    def add(self, trial: "Trial", record: Record) -> Record:
        """The record, written down first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = {**record, "of": _named(trial), "commit": self._commit}
        with self._path.open("a") as file:
            file.write(json.dumps(kept) + "\n")
        return kept


def _named(trial: "Trial") -> str:
    said = json.dumps(asdict(trial), sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _lines(path: Path) -> Iterator[Record]:
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        # Its process was stopped while it wrote the last line; the next one begins anew.
        path.write_text(whole)
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise UsageError(
                f"{path}, line {number} is no JSON; remove the line or the file"
            ) from None
