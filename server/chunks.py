"""A published file in chunks, each checked against the file's sha256 before it leaves."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..protos.depot import CHUNK_BYTES
from ..supernet.errors import ArtifactError, DepotError

_REMEMBERED_FILES = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file from `offset` on, their sha256 (32 bytes), and the whole file's size."""

    offset: int
    data: bytes
    sha256: bytes
    total_bytes: int


class ChunkReader:
    """Reads files of a content-addressed store; refuses one whose bytes are not what they were.

    A file is hashed whole when it is first asked for. From then on the digests of its chunks are
    known, so that a byte that changes later is noticed when its chunk is read.
    """

    def __init__(self, locate: Callable[[str], Path]) -> None:
        self._locate = locate
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[int, list[bytes]]] = OrderedDict()

    def read(self, sha256: str, offset: int) -> Iterator[Piece]:
        """The file from `offset` to its end, in pieces that end at multiples of `CHUNK_BYTES`.

        DepotError when the offset lies beyond the end, or as `locate` says; ArtifactError when
        the stored file is damaged.
        """
        path = self._locate(sha256)
        total_bytes, digests = self._digests(sha256, path)
        if offset > total_bytes:
            raise DepotError("offset", f"offset {offset} of a file of {total_bytes} bytes")
        first, within = divmod(offset, CHUNK_BYTES)
        try:
            with path.open("rb") as file:
                file.seek(first * CHUNK_BYTES)
                for number in range(first, len(digests)):
                    start = number * CHUNK_BYTES
                    data = file.read(CHUNK_BYTES)
                    if hashlib.sha256(data).digest() != digests[number]:
                        self._forget(sha256)
                        raise ArtifactError(f"stored file {sha256} changed at {start}")
                    digest = digests[number]
                    if number == first and within:
                        data, start = data[within:], offset
                        digest = hashlib.sha256(data).digest()
                    if data:
                        yield Piece(start, data, digest, total_bytes)
        except OSError as error:
            raise ArtifactError(f"stored file {sha256}: {error.strerror}") from error

    def _digests(self, sha256: str, path: Path) -> tuple[int, list[bytes]]:
        with self._lock:
            known = self._known.get(sha256)
            if known is not None:
                self._known.move_to_end(sha256)
                return known
        found = _hash(sha256, path)
        with self._lock:
            self._known[sha256] = found
            while len(self._known) > _REMEMBERED_FILES:
                self._known.popitem(last=False)
        return found

    def _forget(self, sha256: str) -> None:
        with self._lock:
            self._known.pop(sha256, None)


def _hash(sha256: str, path: Path) -> tuple[int, list[bytes]]:
    whole, digests, total_bytes = hashlib.sha256(), [], 0
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                whole.update(data)
                digests.append(hashlib.sha256(data).digest())
                total_bytes += len(data)
    except OSError as error:
        raise ArtifactError(f"stored file {sha256}: {error.strerror}") from error
    if whole.hexdigest() != sha256:
        raise ArtifactError(f"stored file {sha256} is damaged: its sha256 is {whole.hexdigest()}")
    return total_bytes, digests
