"""The connection to a depot, with gRPC's errors translated into ours."""

import hashlib
import hmac
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from ..protos import depot_pb2, depot_pb2_grpc
from ..protos.depot import (
    CHUNK_BYTES,
    DETAIL_CHARACTERS,
    MESSAGE_BYTES,
    REASON_KEY,
    TOKEN_KEY,
    Endpoint,
    read_pem,
)
from ..protos.manifest import Manifest
from ..supernet.errors import ArtifactError, DepotError, UsageError

_BY_CLASS_ONLY = (
    "it knows no devices by name (an older version); give --device-class NAME, or update the server"
)
# Refusals that another attempt may not meet.
TEMPORARY = frozenset({"unreachable", "busy", "chunk"})

_CODE = re.compile(r"[a-z][a-z_]{0,31}")
_REFUSED = {
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "unauthenticated",
    grpc.StatusCode.INVALID_ARGUMENT: "refused",
    grpc.StatusCode.NOT_FOUND: "refused",
    grpc.StatusCode.OUT_OF_RANGE: "offset",
    grpc.StatusCode.DATA_LOSS: "damaged",
    grpc.StatusCode.UNIMPLEMENTED: "no_depot",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "busy",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a depot is and how to reach it. `tls_ca` is a PEM file with the certificates to trust.

    UsageError when the server is another machine and neither `tls_ca` nor `insecure` is given.
    """

    server: str
    tls_ca: Path | None = None
    token: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        endpoint = Endpoint.parse(self.server, "server")
        if endpoint.port == 0:
            raise UsageError(f"server: {self.server} has port 0; allowed: 1 to 65535")
        if not (endpoint.is_loopback or self.tls_ca or self.insecure):
            raise UsageError(
                f"server {self.server}: another machine is reached with TLS only; give its "
                "certificate authority with --ca FILE, or say --insecure"
            )


class Link:
    """A channel to one depot; close it, or use it in a `with` statement.

    Every method raises DepotError: its code is the depot's reason, or `unreachable`.
    """

    def __init__(self, address: Address, call_timeout_s: float = 60.0) -> None:
        self._timeout_s = call_timeout_s
        self._server = address.server
        self._metadata = [(TOKEN_KEY, f"Bearer {address.token}")] if address.token else []
        endpoint = Endpoint.parse(address.server)
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_retries", 0),
            # What is under way when the connection is cut is sent again: at most one chunk of it.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", CHUNK_BYTES // 4),
            ("grpc.enable_http_proxy", 0 if endpoint.is_loopback else 1),
        ]
        if address.tls_ca is None:
            self._channel = grpc.insecure_channel(str(endpoint), options)
        else:
            trusted = grpc.ssl_channel_credentials(read_pem(address.tls_ca, "ca"))
            self._channel = grpc.secure_channel(str(endpoint), trusted, options)
        self._stub: Any = depot_pb2_grpc.DepotStub(self._channel)  # type: ignore[no-untyped-call]

    def resolve(self, device_class: str, channel: str, device: str) -> tuple[bytes, Manifest]:
        """The manifest for a class, or where that is empty for a device by its own name.

        As bytes whose sha256 was checked, and parsed. ArtifactError where it is of another class than
        was asked for, or than the depot says that it gave the device.
        """
        request = depot_pb2.ResolveRequest(
            device_class=device_class, channel=channel, device=device
        )
        try:
            with self._translated():
                reply = self._stub.Resolve(
                    request, timeout=self._timeout_s, metadata=self._metadata
                )
        except DepotError as error:
            if device_class or error.code != "name":
                raise
            # It read the empty class as one.
            raise DepotError("no_devices", f"depot {self._server}: {_BY_CLASS_ONLY}") from None
        if not hmac.compare_digest(hashlib.sha256(reply.manifest).hexdigest(), reply.sha256):
            raise DepotError("chunk", "the manifest arrived changed: its sha256 is another")
        manifest = Manifest.from_json(reply.manifest)
        _check_class(manifest, device_class, str(reply.device_class), device)
        return reply.manifest, manifest

    def download(self, sha256: str, offset: int, size_bytes: int) -> Generator[bytes, None, None]:
        """The bytes of a file of a known size from `offset` on, chunk by checked chunk.

        Ends at `size_bytes` whatever the depot sends. DepotError `chunk` when a chunk is not the
        one that is due, `unreachable` when the stream ends early.
        """
        if offset >= size_bytes:
            return
        request = depot_pb2.DownloadRequest(sha256=sha256, offset=offset)
        with self._translated():
            call = self._stub.Download(request, timeout=self._timeout_s, metadata=self._metadata)
            try:
                while offset < size_bytes:
                    chunk = next(call, None)
                    if chunk is None:
                        raise DepotError("unreachable", f"the stream ended at {offset} bytes")
                    _check(chunk, offset, size_bytes)
                    yield chunk.data
                    offset += len(chunk.data)
            finally:
                call.cancel()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            trailing = dict(error.trailing_metadata() or ())
            code = str(trailing.get(REASON_KEY, ""))
            if not _CODE.fullmatch(code):
                code = _REFUSED.get(error.code(), "unreachable")
            raise DepotError(code, f"depot {self._server}: {_plain(error.details())}") from None


def _plain(text: str | None) -> str:
    """A stranger's text without control characters, for a terminal."""
    return "".join(c if c.isprintable() else " " for c in (text or "")[:DETAIL_CHARACTERS])


def _check_class(manifest: Manifest, asked: str, said: str, device: str) -> None:
    """ArtifactError where manifest, question and answer are not about one class."""
    if asked and manifest.device_class != asked:
        raise ArtifactError(
            f"the depot gave a model for class {manifest.device_class!r} to class {asked!r}"
        )
    if manifest.device_class != said and (said or not asked):
        raise ArtifactError(
            f"the depot gave {f'class {asked!r}' if asked else f'device {device!r}'} the class "
            f"{said[:80]!r}, and a model for class {manifest.device_class!r}"
        )


def _check(chunk: Any, offset: int, size_bytes: int) -> None:
    length = len(chunk.data)
    if chunk.total_bytes != size_bytes:
        raise DepotError(
            "size",
            f"the depot's file has {chunk.total_bytes} bytes, the manifest says {size_bytes}",
        )
    if chunk.offset != offset or not 0 < length <= min(CHUNK_BYTES, size_bytes - offset):
        raise DepotError(
            "chunk", f"{length} bytes at {chunk.offset} arrived where {offset} was due"
        )
    if not hmac.compare_digest(hashlib.sha256(chunk.data).digest(), chunk.sha256):
        raise DepotError("chunk", f"the chunk at {offset} arrived changed: its sha256 is another")
