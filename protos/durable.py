"""Files that appear whole or not at all, also after a power cut or kill -9 (POSIX)."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(draft: Path, target: Path) -> None:
    """Rename a written draft into place, replacing what is there; both on one file system."""
    sync(draft)
    os.replace(draft, target)
    sync(target.parent)


def write(target: Path, data: bytes) -> None:
    """Give `target` these bytes: a reader sees the old content or the new, never a mixture."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(data)
        move(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder and the missing ones above it, and bring their entries to the disk."""
    missing = [folder, *folder.parents]
    missing = [path for path in missing if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made when missing; BlockingIOError when another holds it.

    The lock ends with the process, however that ends.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
