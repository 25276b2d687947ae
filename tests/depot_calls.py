"""Plain gRPC calls to a depot, as a stranger would make them."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from artifacts import draft, write
from fedofa.protos import depot_pb2, depot_pb2_grpc
from fedofa.protos.depot import CHUNK_BYTES
from fedofa.protos.manifest import FileKind
from fedofa.server.registry import Registry

DATA = random.Random(1).randbytes(2 * CHUNK_BYTES + 1000)
CONTENTS: dict[FileKind, bytes] = {"tflite_int8": DATA}
Connect = Callable[..., Any]


@contextmanager
def open_registry(folder: Path) -> Iterator[Registry]:
    """A registry with one version of one model."""
    with Registry(folder / "registry") as registry:
        registry.publish(draft(CONTENTS), write(folder / "source", CONTENTS))
        yield registry


@contextmanager
def stubs() -> Iterator[Connect]:
    """A function from port (and TLS credentials) to a stub."""
    channels = []

    def connect(port: int, credentials: Any = None) -> Any:
        if credentials:
            channels.append(grpc.secure_channel(f"localhost:{port}", credentials))
        else:
            channels.append(grpc.insecure_channel(f"127.0.0.1:{port}"))
        return depot_pb2_grpc.DepotStub(channels[-1])  # type: ignore[no-untyped-call]

    yield connect
    for channel in channels:
        channel.close()


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """gRPC's status and our reason."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code().name, dict(error.trailing_metadata() or ()).get("reason", "")


def download(stub: Any, digest: str, offset: int = 0) -> list[Any]:
    """All chunks of a file."""
    return list(stub.Download(depot_pb2.DownloadRequest(sha256=digest, offset=offset), timeout=20))


def resolve(stub: Any, name: str = "board", **more: Any) -> Any:
    """The answer for a device class."""
    return stub.Resolve(depot_pb2.ResolveRequest(device_class=name), timeout=20, **more)
