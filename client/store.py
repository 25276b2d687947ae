"""A device's models on disk: the one in use, the one before, and downloads under way.

`ROOT/CLASS/versions/N-SHA8/` holds `manifest.json` and model files, `ROOT/CLASS/parts/` unfinished
downloads, and `ROOT/CLASS/state.json` says which version is in use. That one file is replaced by
a rename, after everything it names is on the disk: whenever the process dies, the old model is
in use or the new one is, complete. POSIX file systems only.

What a device pulls by its own name lies in `ROOT/@NAME/` in the same way: its versions may be of
several classes, one after another.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..protos import durable
from ..protos.depot import is_device_name, is_name
from ..protos.manifest import FILE_NAMES, MANIFEST_NAME, FileKind, Manifest
from ..supernet.errors import ArtifactError, UsageError

MAX_STRIKES = 3
LOOK_AGAIN_S = 0.1
KEPT_ADAPTERS = 8
_REMEMBERED_STRIKES = 32
# No class begins with it: a class and a device of one name have folders of their own.
OWN = "@"


class Pointer(BaseModel):
    """A version's folder and which of its files is the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: str = Field(pattern=r"^[1-9][0-9]{0,17}-[0-9a-f]{8}$")
    kind: FileKind


class Strikes(BaseModel):
    """How often a model failed its golden test, and how the last time."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int = Field(ge=1)
    reason: str


class State(BaseModel):
    """What `state.json` says. The keys of `strikes` are `MANIFEST_SHA256:KIND`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    current: Pointer | None = None
    previous: Pointer | None = None
    strikes: dict[str, Strikes] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on this device: its folder, its manifest, and the kind of file to run."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    kind: FileKind

    @property
    def model_path(self) -> Path:
        """The model's file."""
        return self.folder / self.manifest.file(self.kind).name

    def verify(self) -> None:
        """Compare the file with the manifest; ArtifactError when it is missing or changed."""
        entry = self.manifest.file(self.kind)
        try:
            with self.model_path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactError(f"model file {self.model_path}: {error.strerror}") from None
        if sha256 != entry.sha256:
            raise ArtifactError(
                f"model file {self.model_path} is damaged: its sha256 is {sha256}, the manifest "
                f"says {entry.sha256}; pull again"
            )


class DeviceStore:
    """One device class's models below `root`, or those that one device pulls by its own name.

    Nothing is created before the first write. UsageError for a name that is not allowed. Either
    `device_class` or `device` is empty.
    """

    def __init__(self, root: Path, device_class: str = "", *, device: str = "") -> None:
        if device and not is_device_name(device):
            raise UsageError(
                f"device {device[:80]!r}: 1 to 128 letters, digits, '.', '_', ':' and '-', the first "
                "a letter or digit"
            )
        if not device and not is_name(device_class):
            raise UsageError(
                f"device class {device_class[:80]!r}: 1 to 64 letters, digits, '.', '_' and '-', "
                "the first a letter or digit"
            )
        self.root = root
        self.device_class, self.device = device_class, device
        self.folder = root / (f"{OWN}{device}" if device else device_class)

    @property
    def owner(self) -> str:
        """Whose models these are, in words."""
        return f"device {self.device!r}" if self.device else f"device class {self.device_class!r}"

    @contextmanager
    def lock(self, patience_s: float = 0.0) -> Iterator[None]:
        """Keep other processes from changing this store.

        ArtifactError when one is at it and does not end in time.
        """
        durable.make_folder(self.folder)
        end_s = time.monotonic() + patience_s
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(durable.locked(self.folder / "lock"))
                    break
                except BlockingIOError:
                    if time.monotonic() >= end_s:
                        raise ArtifactError(
                            f"store {self.folder}: another process is changing it; try again when it ends"
                        ) from None
                    time.sleep(LOOK_AGAIN_S)
            yield

    def state(self) -> State:
        """What is in use; empty when nothing was pulled. ArtifactError when it is unreadable."""
        path = self.folder / "state.json"
        try:
            return State.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise ArtifactError(f"{path} is damaged ({first}); remove it and pull again") from None

    def current(self) -> Installed | None:
        """The model in use, or None."""
        return self._open(self.state().current)

    def previous(self) -> Installed | None:
        """The model that was in use before, or None."""
        return self._open(self.state().previous)

    def require_current(self) -> Installed:
        """The model in use, its file compared with its manifest; UsageError when there is none."""
        current = self.current()
        if current is None:
            raise UsageError(
                f"store {self.root}: no model for {self.owner}; get one with fedofa-device pull, or "
                f"name another --store or {'--device' if self.device else '--device-class'}"
            )
        current.verify()
        return current

    def part(self, sha256: str) -> Path:
        """Where the unfinished download of a file lies."""
        return self.folder / "parts" / f"{sha256}.part"

    def keep_adapter(self, base: Installed, content: bytes) -> Path:
        """Keep what a device learned beside a version; the last ones are kept, whatever is in use."""
        folder = self.folder / "adapters"
        durable.make_folder(folder)
        sha256 = hashlib.sha256(content).hexdigest()
        path = folder / f"{base.folder.name}-{sha256[:8]}.safetensors"
        durable.write(path, content)
        kept = sorted(folder.glob("*.safetensors"), key=lambda one: one.stat().st_mtime_ns)
        for old in kept[:-KEPT_ADAPTERS]:
            old.unlink(missing_ok=True)
        return path

    def find(self, manifest_json: bytes, manifest: Manifest, kind: FileKind) -> Installed:
        """How a version is, or would be, installed here."""
        sha256 = hashlib.sha256(manifest_json).hexdigest()
        folder = self.folder / "versions" / f"{manifest.version}-{sha256[:8]}"
        return Installed(folder, manifest, sha256, kind)

    def is_current(self, model: Installed, manifest_json: bytes) -> bool:
        """Whether exactly this model is in use and whole."""
        if _pointer(model) != self.state().current:
            return False
        try:
            model.verify()
            return (model.folder / MANIFEST_NAME).read_bytes() == manifest_json
        except (ArtifactError, OSError):
            return False

    def place(self, model: Installed, manifest_json: bytes, part: Path | None) -> None:
        """Fill a version's folder; nothing is in use before `activate`.

        `part` is the finished download, or None where the model's file lies in its place already.
        """
        durable.make_folder(model.folder)
        path = model.folder / MANIFEST_NAME
        if self._uses(model.folder.name) and path.exists():
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if sha256 != model.manifest_sha256 and model.folder.name.endswith(f"-{sha256[:8]}"):
                raise ArtifactError(
                    f"{path}: the depot offers another manifest of the same version whose sha256 "
                    "begins alike; publish that model again"
                )
        durable.write(path, manifest_json)
        if part is not None:
            durable.move(part, model.model_path)

    def published(self) -> Installed:
        """The model in use, or the published one that it was made from, its file compared.

        UsageError when there is none; ArtifactError when it is damaged, or is here no longer.
        """
        current = self.require_current()
        personal = current.manifest.personal
        if personal is None:
            return current
        state = self.state()
        before = self._open(state.previous) if state.previous else None
        if before is None or before.manifest_sha256 != personal.base_sha256:
            raise ArtifactError(
                f"store {self.folder}: the published model that the one in use was made from is here no "
                "longer; pull again"
            )
        # The other pointer may name another kind of file of the same version.
        base = replace(before, kind=current.kind)
        base.verify()
        return base

    def activate(self, model: Installed, before: Installed | None = None) -> None:
        """Put a model in use; the one that was, or `before`, becomes the previous one."""
        state, pointer = self.state(), _pointer(model)
        if pointer != state.current:
            previous = _pointer(before) if before else state.current
            state = state.model_copy(update={"current": pointer, "previous": previous})
        strikes = {key: value for key, value in state.strikes.items() if key != _key(model)}
        self._write(state.model_copy(update={"strikes": strikes}))
        self._prune()

    def rollback(self) -> Installed:
        """Return to the previous model, which must be whole; the current one becomes previous."""
        state, previous = self.state(), self.previous()
        if previous is None:
            raise UsageError(f"store {self.folder}: no previous model to return to")
        previous.verify()
        self._write(state.model_copy(update={"current": state.previous, "previous": state.current}))
        return previous

    def strikes(self, model: Installed) -> Strikes | None:
        """How often this model failed here, or None."""
        return self.state().strikes.get(_key(model))

    def strike(self, model: Installed, reason: str) -> Strikes:
        """Remember that a model failed its golden test; the last strike removes its files."""
        state = self.state()
        before = state.strikes.get(_key(model))
        after = Strikes(count=before.count + 1 if before else 1, reason=reason[:500])
        others = {key: value for key, value in state.strikes.items() if key != _key(model)}
        kept = dict(list(others.items())[1 - _REMEMBERED_STRIKES :])
        self._write(state.model_copy(update={"strikes": {**kept, _key(model): after}}))
        if after.count >= MAX_STRIKES:
            self._prune()
        return after

    def _write(self, state: State) -> None:
        durable.make_folder(self.folder)
        durable.write(self.folder / "state.json", state.model_dump_json(indent=1).encode())

    def _open(self, pointer: Pointer | None) -> Installed | None:
        if pointer is None:
            return None
        path = self.folder / "versions" / pointer.version / MANIFEST_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path}: {error.strerror}; pull again") from None
        sha256 = hashlib.sha256(data).hexdigest()
        if not pointer.version.endswith(f"-{sha256[:8]}"):
            raise ArtifactError(f"{path} is damaged: its sha256 is {sha256}; pull again")
        return Installed(path.parent, Manifest.from_json(data), sha256, pointer.kind)

    def _uses(self, version: str) -> bool:
        state = self.state()
        return version in {
            pointer.version for pointer in (state.current, state.previous) if pointer
        }

    def _prune(self) -> None:
        """Remove versions that are neither in use nor the previous one, and old downloads."""
        for folder in self.folder.glob("versions/*"):
            if not self._uses(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        for part in self.folder.glob("parts/*.part"):
            part.unlink(missing_ok=True)


def as_kind(text: str | None) -> FileKind | None:
    """A kind of file by its name; UsageError lists the kinds there are."""
    for kind in FILE_NAMES:
        if text == kind:
            return kind
    if text is None:
        return None
    raise UsageError(f"kind {text[:80]!r}: allowed: {', '.join(FILE_NAMES)}")


def _pointer(model: Installed) -> Pointer:
    return Pointer(version=model.folder.name, kind=model.kind)


def _key(model: Installed) -> str:
    return f"{model.manifest_sha256}:{model.kind}"
