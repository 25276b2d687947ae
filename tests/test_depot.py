"""The depot over real connections: what it serves, what it refuses, and with which reason."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from artifacts import sha256
from depot_calls import DATA, Connect, download, open_registry, refusal, resolve, stubs
from fedofa.protos import depot_pb2
from fedofa.protos.depot import CHUNK_BYTES
from fedofa.protos.manifest import Manifest
from fedofa.server.depot import Depot, serve_depot
from fedofa.server.registry import Registry

HOSTILE = ["../../etc/passwd", "/etc/passwd", "a\0b", "f" * 300, sha256(DATA).upper(), "", "f" * 63]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with open_registry(tmp_path) as opened:
        yield opened


@pytest.fixture
def depot(registry: Registry) -> Iterator[Depot]:
    running = serve_depot(registry, "127.0.0.1:0")
    yield running
    running.stop(0)


@pytest.fixture
def connect() -> Iterator[Connect]:
    with stubs() as function:
        yield function


def test_a_class_resolves_to_its_manifest(
    depot: Depot, registry: Registry, connect: Connect
) -> None:
    reply = resolve(connect(depot.port))
    assert (Manifest.from_json(reply.manifest), reply.sha256) == registry.resolve("board")
    assert reply.sha256 == hashlib.sha256(reply.manifest).hexdigest()


@pytest.mark.parametrize(
    "offset", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 7, len(DATA) - 1, len(DATA)]
)
def test_a_download_from_any_offset_gives_the_rest_of_the_file(
    depot: Depot, connect: Connect, offset: int
) -> None:
    chunks = download(connect(depot.port), sha256(DATA), offset)
    assert b"".join(chunk.data for chunk in chunks) == DATA[offset:]
    for chunk in chunks:
        assert chunk.offset == offset
        assert chunk.total_bytes == len(DATA)
        assert 0 < len(chunk.data) <= CHUNK_BYTES
        assert chunk.sha256 == hashlib.sha256(chunk.data).digest()
        offset += len(chunk.data)
        assert offset % CHUNK_BYTES == 0 or offset == len(DATA)


@pytest.mark.parametrize("digest", HOSTILE)
def test_a_wrong_path_is_refused(depot: Depot, connect: Connect, digest: str) -> None:
    stub = connect(depot.port)
    assert refusal(lambda: download(stub, digest)) == ("INVALID_ARGUMENT", "name")
    if digest not in ("f" * 63, sha256(DATA).upper()):
        assert refusal(lambda: resolve(stub, digest)) == ("INVALID_ARGUMENT", "name")


def test_what_is_not_there_is_refused_with_its_reason(depot: Depot, connect: Connect) -> None:
    stub = connect(depot.port)
    beyond = len(DATA) + 1
    assert refusal(lambda: download(stub, "0" * 64)) == ("NOT_FOUND", "unknown_blob")
    assert refusal(lambda: resolve(stub, "phone")) == ("NOT_FOUND", "unknown_class")
    assert refusal(lambda: download(stub, sha256(DATA), beyond)) == ("OUT_OF_RANGE", "offset")
    assert refusal(lambda: download(stub, sha256(DATA), 2**64 - 1)) == ("OUT_OF_RANGE", "offset")


@pytest.mark.parametrize("served_before", [False, True])
@pytest.mark.parametrize("damage", ["byte", "cut", "longer", "gone"])
def test_a_damaged_file_is_refused(
    depot: Depot,
    registry: Registry,
    connect: Connect,
    served_before: bool,
    damage: str,
) -> None:
    stub = connect(depot.port)
    if served_before:
        download(stub, sha256(DATA))
    path = registry.blob_path(sha256(DATA))
    if damage == "byte":
        with path.open("r+b") as file:
            file.seek(CHUNK_BYTES + 5)
            file.write(bytes([DATA[CHUNK_BYTES + 5] ^ 1]))
    elif damage == "cut":
        os.truncate(path, len(DATA) - 1)
    elif damage == "longer":
        path.write_bytes(DATA + b"!")
    else:
        path.unlink()
    assert refusal(lambda: download(stub, sha256(DATA))) == ("DATA_LOSS", "damaged")


def test_published_versions_are_listed(depot: Depot, connect: Connect) -> None:
    stub = connect(depot.port)
    rows = stub.List(depot_pb2.ListRequest(), timeout=20).versions
    assert [(row.model, row.version, list(row.channels)) for row in rows] == [
        ("net", 1, ["stable"])
    ]
    assert not stub.List(depot_pb2.ListRequest(device_class="phone"), timeout=20).versions


def test_a_request_that_is_too_large_is_refused(depot: Depot, connect: Connect) -> None:
    status, _ = refusal(lambda: resolve(connect(depot.port), "x" * 100_000))
    assert status == "RESOURCE_EXHAUSTED"


def test_the_health_service_answers(depot: Depot) -> None:
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    services = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    with grpc.insecure_channel(f"127.0.0.1:{depot.port}") as channel:
        request = health.HealthCheckRequest(service="fedofa.depot.v1.Depot")
        assert services.HealthStub(channel).Check(request, timeout=20).status == 1
