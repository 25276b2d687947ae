"""A registry, its depot, and a device's store in one folder, as tests of the pull need them."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import draft, write
from fedofa.client.link import Address
from fedofa.client.pull import PullRequest, PullResult, Retry, pull
from fedofa.client.store import DeviceStore
from fedofa.protos.depot import CHUNK_BYTES
from fedofa.protos.manifest import FileKind, Manifest
from fedofa.server.depot import serve_depot
from fedofa.server.registry import Registry
from fedofa.supernet.errors import ArtifactError

KIND: FileKind = "onnx_fp32"
OLD = {KIND: random.Random(1).randbytes(3 * CHUNK_BYTES + 17)}
NEW = {KIND: random.Random(2).randbytes(8 * CHUNK_BYTES + 4321)}
QUICK = Retry(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, call_timeout_s=20)


def passes(folder: Path, kind: FileKind) -> None:
    """A golden test that every model passes."""
    assert (folder / "manifest.json").exists()


def fails(folder: Path, kind: FileKind) -> None:
    """A golden test that no model passes."""
    raise ArtifactError("golden test: off by 7")


def first(manifest: Manifest, preferred: FileKind | None) -> FileKind:
    """Choose a file without asking what is installed."""
    return preferred or manifest.files[0].kind


def get(
    port: int,
    store: DeviceStore,
    golden: Callable[[Path, FileKind], None] = passes,
    token: str | None = None,
    **request: Any,
) -> PullResult:
    """Pull from a depot on this machine."""
    address = Address(f"127.0.0.1:{port}", token=token)
    return pull(address, store, PullRequest(**request), QUICK, golden, first)


def in_use(store: DeviceStore) -> bytes | None:
    """The bytes of the model in use, which must be whole."""
    current = store.current()
    if current is None:
        return None
    current.verify()
    return current.model_path.read_bytes()


@dataclass(frozen=True, slots=True)
class Site:
    """What `open_site` opened."""

    registry: Registry
    port: int
    store: DeviceStore

    def publish(self, contents: dict[FileKind, bytes]) -> Manifest:
        """Publish the next version of the model for the class `board`."""
        source = self.registry.root.parent / "source"
        return self.registry.publish(draft(contents), write(source, contents))

    def get(self, **more: Any) -> PullResult:
        """Pull into the site's store."""
        return get(self.port, self.store, **more)

    def in_use(self) -> bytes | None:
        """The bytes of the store's model in use."""
        return in_use(self.store)


@contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """A site that ends with the `with` statement."""
    with Registry(folder / "registry") as registry:
        depot = serve_depot(registry, "127.0.0.1:0")
        try:
            yield Site(registry, depot.port, DeviceStore(folder / "device", "board"))
        finally:
            depot.stop(0)
