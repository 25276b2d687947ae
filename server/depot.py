"""The depot: serves a registry's models to devices over gRPC.

Stand-alone: `python -m fedofa.server.depot --registry DIR --bind HOST:PORT`; it prints
`depot ready HOST:PORT` once it answers, and ends on SIGTERM or SIGINT with exit code 0.
"""

import argparse
import hashlib
import hmac
import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc

from ..protos import depot_pb2, depot_pb2_grpc
from ..protos.depot import (
    DETAIL_CHARACTERS,
    MESSAGE_BYTES,
    REASON_KEY,
    STABLE,
    TOKEN_KEY,
    Endpoint,
    read_pem,
    read_token,
    shortened,
)
from ..supernet.errors import ArtifactError, DepotError, FedofaError, UsageError
from . import registry_plans
from .chunks import ChunkReader
from .registry import Registry

SERVICE = "fedofa.depot.v1.Depot"
# Each download holds a thread while it lasts; a device beyond that is told to come back.
CALLS_AT_ONCE = 64

_STATUS = {
    "name": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown_class": grpc.StatusCode.NOT_FOUND,
    "unknown_device": grpc.StatusCode.NOT_FOUND,
    "not_served": grpc.StatusCode.FAILED_PRECONDITION,
    "unknown_blob": grpc.StatusCode.NOT_FOUND,
    "offset": grpc.StatusCode.OUT_OF_RANGE,
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a server: its certificate chain and its private key."""

    certificate: Path
    key: Path


class _Service(depot_pb2_grpc.DepotServicer):
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._chunks = ChunkReader(registry.blob_path)

    def Resolve(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        with _refusing(context):
            name, channel = request.device_class, request.channel or STABLE
            if request.device and not name:
                found = registry_plans.resolve(self._registry, request.device, channel)
                manifest, sha256, name = found.manifest, found.sha256, found.device_class
            else:
                manifest, sha256 = self._registry.resolve_json(name, channel)
            return depot_pb2.ResolveReply(manifest=manifest, sha256=sha256, device_class=name)

    def Download(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        with _refusing(context):
            for piece in self._chunks.read(request.sha256, request.offset):
                yield depot_pb2.Chunk(
                    offset=piece.offset,
                    data=piece.data,
                    sha256=piece.sha256,
                    total_bytes=piece.total_bytes,
                )

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        with _refusing(context):
            found = self._registry.listing(request.device_class or None)
            rows = [
                depot_pb2.Listed(
                    model=row.model,
                    version=row.version,
                    device_class=row.device_class,
                    manifest_sha256=row.manifest_sha256,
                    channels=row.channels,
                )
                for row in found
            ]
            return depot_pb2.ListReply(versions=rows)


@contextmanager
def _refusing(context: Any) -> Iterator[None]:
    """Translate our errors into gRPC's: a status, a text, and the reason code."""
    try:
        yield
    except DepotError as error:
        detail = str(error).removeprefix(f"{error.code}: ")
        _refuse(context, _STATUS[error.code], error.code, detail)
    except ArtifactError as error:
        _refuse(context, grpc.StatusCode.DATA_LOSS, "damaged", str(error))


def _refuse(context: Any, status: Any, reason: str, detail: str) -> NoReturn:
    context.set_trailing_metadata(((REASON_KEY, reason),))
    # What is longer may not fit the metadata in which it travels: it would reach nobody.
    context.abort(status, shortened(detail, DETAIL_CHARACTERS))
    raise AssertionError("abort returned")


class _RequireToken(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call of the depot's service that does not carry the token."""

    def __init__(self, token: str) -> None:
        self._digest = _digest(f"Bearer {token}")

    def intercept_service(self, go_on: Callable[[Any], Any], details: Any) -> Any:
        """Let calls with the token through, and those to other services such as health."""
        if not details.method.startswith(f"/{SERVICE}/"):
            return go_on(details)
        given = [value for key, value in details.invocation_metadata if key == TOKEN_KEY]
        if len(given) == 1 and hmac.compare_digest(_digest(given[0]), self._digest):
            return go_on(details)
        return grpc.unary_unary_rpc_method_handler(_unauthenticated)


def _digest(text: str) -> bytes:
    # Digests have one length, so that comparing them tells nothing about the token's.
    return hashlib.sha256(text.encode()).digest()


def _unauthenticated(_request: Any, context: Any) -> NoReturn:
    status = grpc.StatusCode.UNAUTHENTICATED
    _refuse(context, status, "unauthenticated", "the token is missing or wrong")


class Depot:
    """A running depot; `port` is the one it listens on, also when the system chose it."""

    def __init__(self, server: Any, endpoint: Endpoint) -> None:
        self._server = server
        self.endpoint = endpoint
        self.port = endpoint.port

    def stop(self, grace_s: float = 2.0) -> None:
        """Take no new calls, give running ones `grace_s` seconds, then cut them."""
        self._server.stop(grace_s).wait()


def serve_depot(
    registry: Registry,
    bind: str,
    tls: TlsFiles | None = None,
    token: str | None = None,
    insecure: bool = False,
) -> Depot:
    """Serve in threads of this process and return at once. `bind` is HOST:PORT, port 0 any free.

    UsageError when the address or the TLS files cannot be used, and when anything but loopback is
    to be bound without TLS and a token, unless `insecure`.
    """
    endpoint = Endpoint.parse(bind, "bind")
    if not (endpoint.is_loopback or insecure or (tls and token)):
        raise UsageError(
            f"bind {endpoint}: other machines can reach it, so TLS (--tls-cert, --tls-key) and a "
            "token (--token-file) are needed; or bind 127.0.0.1, or say --insecure"
        )
    server = grpc.server(
        ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="depot"),
        interceptors=[_RequireToken(token)] if token else [],
        maximum_concurrent_rpcs=CALLS_AT_ONCE,
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", 64 * 1024),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )
    add = depot_pb2_grpc.add_DepotServicer_to_server
    add(_Service(registry), server)  # type: ignore[no-untyped-call]
    _add_health(server)
    try:
        if tls is None:
            port = server.add_insecure_port(str(endpoint))
        else:
            pair = (read_pem(tls.key, "tls key"), read_pem(tls.certificate, "tls certificate"))
            port = server.add_secure_port(str(endpoint), grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        raise UsageError(
            f"bind {endpoint}: the port is taken, the address is not this machine's, or the TLS "
            "files do not belong together"
        ) from None
    server.start()
    return Depot(server, Endpoint(endpoint.host, port))


def _add_health(server: Any) -> None:
    """Answer gRPC's standard health question where the package for it is installed."""
    if importlib.util.find_spec("grpc_health") is None:
        return
    health = importlib.import_module("grpc_health.v1.health")
    pb2 = importlib.import_module("grpc_health.v1.health_pb2")
    pb2_grpc = importlib.import_module("grpc_health.v1.health_pb2_grpc")
    servicer = health.HealthServicer()
    for name in ("", SERVICE):
        servicer.set(name, pb2.HealthCheckResponse.SERVING)
    pb2_grpc.add_HealthServicer_to_server(servicer, server)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal, or until the parent process ends with `--with-parent`."""
    parser = argparse.ArgumentParser(prog="python -m fedofa.server.depot", description=__doc__)
    parser.add_argument("--registry", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bind", default="127.0.0.1:9443", metavar="HOST:PORT")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE")
    parser.add_argument("--tls-key", type=Path, metavar="FILE")
    parser.add_argument("--token-file", type=Path, metavar="FILE")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--with-parent", action="store_true", help="end when the parent ends")
    given = parser.parse_args(arguments)
    stopping, parent = threading.Event(), os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        if (given.tls_cert is None) != (given.tls_key is None):
            raise UsageError("tls: give --tls-cert and --tls-key together")
        tls = TlsFiles(given.tls_cert, given.tls_key) if given.tls_cert else None
        token = read_token(given.token_file) if given.token_file else None
        with Registry(given.registry) as registry:
            depot = serve_depot(registry, given.bind, tls, token, given.insecure)
            sys.stdout.write(f"depot ready {depot.endpoint}\n")
            sys.stdout.flush()
            while not stopping.wait(timeout=1.0):
                if given.with_parent and os.getppid() != parent:
                    break
            depot.stop()
    except FedofaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
