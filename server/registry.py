"""Published models: which versions there are, which one a device class gets, and their files.

A folder holds `registry.db` (SQLite) and `blobs/ab/<sha256>`, files addressed by their content.
A version is visible once its transaction has committed, with all of its files; a process that
dies before that leaves at most files that no version names, which `sweep` removes.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from ..protos import durable
from ..protos.depot import MANIFEST_BYTES, STABLE, is_model_name, is_name, is_sha256
from ..protos.manifest import BareFile, Manifest
from ..supernet.errors import ArtifactError, DepotError
from . import registry_schema as schema

LIST_LIMIT = 1000
DATABASE = "registry.db"


@dataclass(frozen=True, slots=True)
class Listed:
    """One published version and the channels that point at it."""

    model: str
    version: int
    device_class: str
    manifest_sha256: str
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed: files and their bytes."""

    files: int
    size_bytes: int


class Registry:
    """The registry in a folder, created when missing; safe for several threads and processes.

    `url` names another database (SQLAlchemy's notation); the files stay in the folder.
    ArtifactError when folder or database cannot be used.
    """

    def __init__(self, root: Path, url: str | None = None) -> None:
        self.root = root
        try:
            for folder in ("blobs", "drafts"):
                durable.make_folder(root / folder)
        except OSError as error:
            raise ArtifactError(f"registry {root}: {error.strerror}: {error.filename}") from None
        self._engine = schema.connect(url or f"sqlite:///{(root / DATABASE).absolute()}")
        try:
            with self.changing() as database:
                schema.create(database)
        except ArtifactError:
            self.close()
            raise

    def publish(
        self, draft: Manifest, files: Mapping[str, Path], channel: str | None = STABLE
    ) -> Manifest:
        """Add the model's next version with all of its files, and point `channel` at it.

        The version in `draft` is not read: the manifest returned carries the new one. ArtifactError
        when the files, by the names of `Manifest.named`, are not what the draft says (which there are,
        size, sha256); nothing is visible then.
        """
        if channel is not None:
            check("channel", channel, is_name(channel))
        said = draft.named()
        if said.keys() != files.keys():
            raise ArtifactError(
                f"publish {draft.model}: files given: {', '.join(sorted(files))}; "
                f"the manifest has {', '.join(sorted(said))}"
            )
        # The write lock is taken before the first file is written, so that no sweep removes it.
        with self.changing() as database:
            version = schema.next_version(database, draft.model)
            manifest = draft.model_copy(update={"version": version})
            data = manifest.to_json()
            if len(data) > MANIFEST_BYTES:
                raise ArtifactError(
                    f"publish {draft.model}: the manifest has {len(data)} bytes; "
                    f"allowed: {MANIFEST_BYTES}"
                )
            for name, entry in said.items():
                self._store(entry, files[name])
            schema.add_version(database, manifest, data, time.time())
            if channel is not None:
                schema.point(database, manifest.device_class, channel, manifest.model, version)
        return manifest

    def promote(self, device_class: str, channel: str, model: str, version: int) -> None:
        """Point a channel at a published version; DepotError when there is none for that class."""
        check("channel", channel, is_name(channel))
        with self.changing() as database:
            found = schema.find_version(database, model, version)
            if found is None or found[1] != device_class:
                raise DepotError(
                    "unknown_version", f"no version {version} of {model!r} for {device_class!r}"
                )
            schema.point(database, device_class, channel, model, version)

    def resolve(self, device_class: str, channel: str = STABLE) -> tuple[Manifest, str]:
        """The manifest that devices of a class are to use, and its sha256. DepotError if none."""
        data, sha256 = self.resolve_json(device_class, channel)
        return Manifest.from_json(data), sha256

    def resolve_json(self, device_class: str, channel: str = STABLE) -> tuple[bytes, str]:
        """As `resolve`, but the manifest's bytes as they were published."""
        check("device class", device_class, is_name(device_class))
        check("channel", channel, is_name(channel))
        with self.reading() as database:
            found = schema.resolve(database, device_class, channel)
            if found is None:
                known = schema.device_classes(database, channel)
                raise DepotError(
                    "unknown_class",
                    f"no model for device class {device_class!r} in channel {channel!r}; "
                    f"there are: {', '.join(known) or 'none'}",
                )
            return found

    def models(self) -> list[str]:
        """Names of all models, in order."""
        with self.reading() as database:
            return schema.models(database)

    def versions(self, model: str) -> list[int]:
        """A model's versions, ascending; empty when there is no such model."""
        check("model", model, is_model_name(model))
        with self.reading() as database:
            return schema.versions(database, model)

    def manifest(self, model: str, version: int) -> Manifest:
        """One version's manifest; DepotError when there is none."""
        check("model", model, is_model_name(model))
        with self.reading() as database:
            found = schema.find_version(database, model, version)
        if found is None:
            raise DepotError("unknown_version", f"no version {version} of {model!r}")
        return Manifest.from_json(found[0])

    def listing(self, device_class: str | None = None) -> list[Listed]:
        """The versions of a class, or of all, newest first; at most `LIST_LIMIT`."""
        if device_class is not None:
            check("device class", device_class, is_name(device_class))
        with self.reading() as database:
            heads = schema.channels(database)
            rows = schema.newest(database, device_class, LIST_LIMIT)
        return [Listed(*row, channels=tuple(heads.get(row[:2], ()))) for row in rows]

    def blob_path(self, sha256: str) -> Path:
        """Where a published file lies; DepotError when no published version has it."""
        check("sha256", sha256, is_sha256(sha256))
        with self.reading() as database:
            size_bytes = schema.file_size(database, sha256)
        if size_bytes is None:
            raise DepotError("unknown_blob", f"no published file has sha256 {sha256}")
        path = self._blob(sha256)
        if not path.is_file() or path.stat().st_size != size_bytes:
            raise ArtifactError(f"registry {self.root}: file {sha256} is missing or cut short")
        return path

    def sweep(self) -> Swept:
        """Remove files that no version names: what publications that died left behind."""
        count, size_bytes = 0, 0
        with self.changing() as database:
            schema.lock(database)
            kept = schema.all_digests(database)
            drafts = list((self.root / "drafts").iterdir())
            blobs = [path for path in (self.root / "blobs").glob("*/*") if path.name not in kept]
            for path in drafts + blobs:
                size_bytes += path.stat().st_size
                path.unlink()
                count += 1
        return Swept(count, size_bytes)

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def _store(self, entry: BareFile, source: Path) -> None:
        """Copy a file to its place; what lies there already is replaced by the same bytes."""
        draft = self.root / "drafts" / f"{entry.sha256}.{os.getpid()}"
        target = self._blob(entry.sha256)
        try:
            digest, size_bytes = _copy(source, draft)
            if (digest, size_bytes) != (entry.sha256, entry.size_bytes):
                raise ArtifactError(
                    f"publish {source}: it has {size_bytes} bytes and sha256 {digest}; "
                    f"the manifest says {entry.size_bytes} and {entry.sha256}"
                )
            durable.make_folder(target.parent)
            durable.move(draft, target)
        except OSError as error:
            raise ArtifactError(f"publish {source}: {error}") from error
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def changing(self) -> Iterator[sa.Connection]:
        """One transaction: committed at the end, or nothing of it. ArtifactError where it fails."""
        with _explained(self.root), self._engine.begin() as database:
            yield database

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read by; ArtifactError where that fails."""
        with _explained(self.root), self._engine.connect() as database:
            yield database


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise ArtifactError(f"registry {root}: {getattr(error, 'orig', error)}") from error


def check(field: str, value: str, fine: bool) -> None:
    """DepotError `name` for a value that is not `fine`."""
    if not fine:
        raise DepotError("name", f"{field} {value[:80]!r} is not allowed")


def _copy(source: Path, target: Path) -> tuple[str, int]:
    digest, size_bytes = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(1 << 20):
            digest.update(block)
            size_bytes += writer.write(block)
    return digest.hexdigest(), size_bytes
