"""Pull: get the model that the depot has for a class, or for this device; check it, put it in use."""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..protos import durable
from ..protos.depot import CHUNK_BYTES, STABLE, is_name
from ..protos.inference import first_available_kind
from ..protos.manifest import BareFile, FileKind, Manifest
from ..supernet.errors import ArtifactError, DepotError, UsageError
from .golden import run_golden
from .link import TEMPORARY, Address, Link
from .store import MAX_STRIKES, DeviceStore, Installed

Golden = Callable[[Path, FileKind], None]
Choose = Callable[[Manifest, FileKind | None], FileKind]


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What to pull. `kind` None: the first that a runtime on this device can load.

    `device` is the device's own name, told to the depot also where it pulls its class's model.
    `force` tests a model again that has used up its strikes.
    """

    kind: FileKind | None = None
    channel: str = STABLE
    device: str = ""
    force: bool = False

    def __post_init__(self) -> None:
        if not is_name(self.channel):
            raise UsageError(f"channel {self.channel[:80]!r}: letters, digits, '.', '_', '-' only")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often to try without getting any further, and how long to wait between, in seconds."""

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 8.0
    call_timeout_s: float = 60.0

    def wait(self, failures: int) -> None:
        """Sleep, twice as long after each failure, and a random part less: devices spread out."""
        longest = min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s)
        time.sleep(longest * (0.5 + secrets.randbelow(1001) / 2000))


@dataclass(frozen=True, slots=True)
class PullResult:
    """The model in use after a pull. `activated`: it was not in use before.

    `downloaded_bytes` of the file came over the network now, `resumed_bytes` lay here already.
    `left_own`: the device had a model of its own in use, which was made from an older one.
    """

    model: Installed
    activated: bool
    downloaded_bytes: int
    resumed_bytes: int
    left_own: bool = False


def pull(
    address: Address,
    store: DeviceStore,
    request: PullRequest | None = None,
    retry: Retry | None = None,
    golden: Golden = run_golden,
    choose: Choose = first_available_kind,
) -> PullResult:
    """Resolve, download what is missing, verify, test, activate.

    The store says whose model: of a class, or of a device by its own name, as the newest settled plan
    of a fleet has it. DepotError when the depot refuses or cannot be reached, ArtifactError when what it gives is
    damaged or fails its golden test. The model that was in use stays in use then.
    """
    request, retry = request or PullRequest(), retry or Retry()
    with explained(store), store.lock():
        with Link(address, retry.call_timeout_s) as link:
            data, manifest = _resolve(link, store, request, retry)
            model = store.find(data, manifest, choose(manifest, request.kind))
            before = _in_use(store)
            if before is not None and _is_own_of(before, store, model, request.kind):
                return PullResult(before, False, 0, 0)
            if store.is_current(model, data):
                return PullResult(model, False, 0, 0)
            left = before is not None and before.manifest.personal is not None
            _refuse_struck(store, model, request.force)
            entry = manifest.file(model.kind)
            download = _Download(store.part(entry.sha256), entry)
            if not _lies_here(model):
                download.run(link, retry)
        store.place(model, data, download.part if download.finished else None)
        try:
            golden(model.folder, model.kind)
        except ArtifactError as error:
            strikes = store.strike(model, str(error))
            raise ArtifactError(
                f"{error}; version {manifest.version} of {manifest.model} was not activated "
                f"(strike {strikes.count} of {MAX_STRIKES}), {_still_in_use(store)}"
            ) from None
        store.activate(model)
    return PullResult(model, True, download.received_bytes, download.resumed_bytes, left)


def _in_use(store: DeviceStore) -> Installed | None:
    """The model in use; None where what says so is damaged, which a pull repairs."""
    try:
        return store.current()
    except ArtifactError:
        return None


def _is_own_of(
    current: Installed, store: DeviceStore, model: Installed, kind: FileKind | None
) -> bool:
    """Whether it is the device's own, whole, and made from this very model, which is still here."""
    personal = current.manifest.personal
    if personal is None or personal.base_sha256 != model.manifest_sha256:
        return False
    try:
        current.verify()
        store.published()
    except ArtifactError:
        return False
    return kind in (None, current.kind)


@contextmanager
def explained(store: DeviceStore) -> Iterator[None]:
    """What the system says of a store's files, as an ArtifactError that names the store."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"store {store.folder}: {error}") from error


def _resolve(
    link: Link, store: DeviceStore, request: PullRequest, retry: Retry
) -> tuple[bytes, Manifest]:
    device = store.device or request.device
    for failures in range(1, retry.attempts + 1):
        try:
            return link.resolve(store.device_class, request.channel, device)
        except DepotError as error:
            if error.code not in TEMPORARY or failures == retry.attempts:
                raise
            retry.wait(failures)
    raise AssertionError("at least one attempt")


def _refuse_struck(store: DeviceStore, model: Installed, force: bool) -> None:
    strikes = store.strikes(model)
    if strikes is not None and strikes.count >= MAX_STRIKES and not force:
        raise ArtifactError(
            f"version {model.manifest.version} of {model.manifest.model} ({model.kind}) failed "
            f"{strikes.count} times on this device, last: {strikes.reason}; "
            f"{_still_in_use(store)}; --force tries again"
        )


def _still_in_use(store: DeviceStore) -> str:
    current = store.state().current
    return f"{current.version} stays in use" if current else "no model is in use"


def _lies_here(model: Installed) -> bool:
    """Whether an earlier attempt left the whole file, for instance one that failed its test."""
    try:
        model.verify()
    except ArtifactError:
        return False
    return True


def fetch(link: Link, store: DeviceStore, file: BareFile, target: Path, retry: Retry) -> None:
    """Download another file of a published model to its place; the caller holds the store's lock.

    DepotError and ArtifactError as `pull`.
    """
    with explained(store):
        download = _Download(store.part(file.sha256), file)
        download.run(link, retry)
        durable.move(download.part, target)


class _Download:
    """One file on its way: whole chunks are kept, so that a cut costs at most one of them."""

    def __init__(self, part: Path, entry: BareFile) -> None:
        self.part = part
        self.received_bytes = 0
        self.resumed_bytes = 0
        self.finished = False
        self._entry = entry

    def run(self, link: Link, retry: Retry) -> None:
        """Fetch until the file is here, whole and verified."""
        durable.make_folder(self.part.parent)
        self._require_room()
        self.resumed_bytes = self._held_bytes()
        failures, restarts = 0, 0
        while not self.finished:
            before = self._held_bytes()
            try:
                self._fetch(link)
            except DepotError as error:
                if error.code not in TEMPORARY:
                    raise
                failures = 1 if self._held_bytes() > before else failures + 1
                if failures >= retry.attempts:
                    raise
                retry.wait(failures)
            except ArtifactError:
                # What lay here from an earlier pull may be at fault: once more from the start.
                self.part.unlink()
                self.resumed_bytes, restarts = 0, restarts + 1
                if restarts > 1:
                    raise

    def _held_bytes(self) -> int:
        """Bytes here in whole chunks; what a dying process wrote of another one does not count."""
        size_bytes = self.part.stat().st_size if self.part.exists() else 0
        if size_bytes >= self._entry.size_bytes:
            return self._entry.size_bytes
        return size_bytes - size_bytes % CHUNK_BYTES

    def _require_room(self) -> None:
        free_bytes = shutil.disk_usage(self.part.parent).free
        missing_bytes = self._entry.size_bytes - self._held_bytes()
        if missing_bytes > free_bytes:
            raise ArtifactError(
                f"store {self.part.parent}: the model needs {missing_bytes} bytes more, the disk "
                f"has {free_bytes} free"
            )

    def _fetch(self, link: Link) -> None:
        digest, held = hashlib.sha256(), self._held_bytes()
        with self.part.open("ab") as file:
            file.truncate(held)
        with self.part.open("rb+") as file:
            while block := file.read(CHUNK_BYTES):
                digest.update(block)
            with closing(link.download(self._entry.sha256, held, self._entry.size_bytes)) as chunks:
                for data in chunks:
                    file.write(data)
                    file.flush()
                    digest.update(data)
                    self.received_bytes += len(data)
            os.fsync(file.fileno())
        if digest.hexdigest() != self._entry.sha256:
            raise ArtifactError(
                f"file {self._entry.name} arrived damaged: its sha256 is {digest.hexdigest()}, "
                f"the manifest says {self._entry.sha256}"
            )
        self.finished = True
