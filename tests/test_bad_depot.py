"""A device meets a depot that lies: it notices, and the model in use stays."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from artifacts import draft, sha256
from delivery import KIND, NEW, OLD, Site, get, open_site
from fedofa.protos import depot_pb2, depot_pb2_grpc
from fedofa.protos.depot import CHUNK_BYTES
from fedofa.supernet.errors import FedofaError


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as opened:
        yield opened


class Liar(depot_pb2_grpc.DepotServicer):
    """A depot that does not do what it should."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.sent = 0
        self.manifest = draft(NEW).to_json()

    def Resolve(self, request: Any, context: Any) -> Any:
        digest = sha256(self.manifest)
        manifest = self.manifest
        if self.how == "manifest":
            manifest = manifest.replace(b'"classes":["a"', b'"classes":["b"')
        if self.how == "class":
            manifest = draft(NEW, device_class="phone").to_json()
            digest = sha256(manifest)
        if self.how == "json":
            manifest, digest = b"{}", sha256(b"{}")
        if self.how == "path":
            manifest = manifest.replace(b"model.fp32.onnx", b"../../../escaped")
            digest = sha256(manifest)
        return depot_pb2.ResolveReply(manifest=manifest, sha256=digest)

    def Download(self, request: Any, context: Any) -> Iterator[Any]:
        data, at = NEW[KIND], request.offset
        if self.how == "shorter":
            data = data[: 5 * CHUNK_BYTES]
        total_bytes = len(data) if self.how == "shorter" else len(NEW[KIND])
        while at < len(data) or self.how == "endless":
            piece = data[at : at + CHUNK_BYTES] or b"more" * 1000
            digest = hashlib.sha256(piece).digest()
            if self.how == "byte" and at >= 3 * CHUNK_BYTES:
                piece = piece[:9] + bytes([piece[9] ^ 4]) + piece[10:]
            if self.how == "forged":
                piece = piece[::-1]
                digest = hashlib.sha256(piece).digest()
            if self.how == "empty":
                piece, digest = b"", hashlib.sha256(b"").digest()
            if self.how == "longer" and at + len(piece) == len(data):
                piece += b"!"
                digest = hashlib.sha256(piece).digest()
            if self.how == "early" and at >= 3 * CHUNK_BYTES:
                return
            offset = at + 1 if self.how == "offset" else at
            yield depot_pb2.Chunk(offset=offset, data=piece, sha256=digest, total_bytes=total_bytes)
            self.sent += 1
            at += len(piece)


@pytest.fixture
def liars() -> Iterator[Callable[[str], tuple[Liar, int]]]:
    servers = []

    def start(how: str) -> tuple[Liar, int]:
        liar, server = Liar(how), grpc.server(futures.ThreadPoolExecutor(4))
        add = depot_pb2_grpc.add_DepotServicer_to_server
        add(liar, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return liar, port

    yield start
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("byte", "arrived changed"),
        ("forged", "sha256"),
        ("shorter", "the manifest says"),
        ("early", "stream ended"),
        ("empty", "arrived where"),
        ("longer", "arrived where"),
        ("offset", "arrived where"),
        ("manifest", "manifest arrived changed"),
        ("class", "'phone'"),
        ("json", "manifest: model"),
        ("path", "manifest: files"),
    ],
)
def test_what_a_bad_depot_sends_is_detected_and_the_old_model_stays(
    site: Site, liars: Callable[[str], tuple[Liar, int]], how: str, said: str
) -> None:
    site.publish(OLD)
    site.get()
    with pytest.raises(FedofaError, match=said):
        get(liars(how)[1], site.store)
    assert site.in_use() == OLD[KIND]
    assert not list(site.store.root.parent.rglob("escaped"))


def test_an_endless_stream_stops_at_the_declared_size(
    site: Site, liars: Callable[[str], tuple[Liar, int]]
) -> None:
    liar, port = liars("endless")
    assert get(port, site.store).downloaded_bytes == len(NEW[KIND])
    time.sleep(0.2)
    assert liar.sent < len(NEW[KIND]) // CHUNK_BYTES + 200
