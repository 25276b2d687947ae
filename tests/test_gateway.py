"""What a device can and cannot reach through the gateway, with real sockets."""

import asyncio
import datetime
import http.client
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedofa.server.gateway import FLEET_PATHS, MAX_BODY_BYTES, FleetGateway

PULL = "/v1/fleet/pull-messages"


class Upstream(BaseHTTPRequestHandler):
    """Sends back what it gets, and remembers which paths were asked for."""

    protocol_version = "HTTP/1.1"
    paths: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.paths.append(self.path)
        self.send_response(418 if body == b"error" else 200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-signature", self.headers.get("x-signature", ""))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _start(upstream: str, *flags: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "fedofa.server.gateway", "--upstream", upstream]
    gateway = subprocess.Popen(
        [*command, "--bind", "127.0.0.1:0", *flags], stdout=subprocess.PIPE, text=True
    )
    assert gateway.stdout is not None
    line = gateway.stdout.readline()
    assert line.startswith("gateway ready "), line
    return gateway, line.split()[-1]


def _end(gateway: subprocess.Popen[str]) -> None:
    with gateway:
        gateway.terminate()
        gateway.wait(10)


@pytest.fixture(scope="module")
def gateway(upstream: str) -> Iterator[str]:
    process, address = _start(upstream)
    yield address
    _end(process)


def _raw(address: str, request: bytes) -> bytes:
    """Bytes as they are, such as no client library would send; the answer's first line."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(4096).split(b"\r\n", 1)[0]


def test_the_allowed_paths_are_exactly_those_of_flowers_fleet_api() -> None:
    from flwr.superlink.routers.fleet.router import router

    assert {route.path for route in router.routes} == FLEET_PATHS  # type: ignore[attr-defined]


def test_no_other_route_of_a_superlink_is_reachable() -> None:
    """Every route that Flower's server has, asked for through the gateway in this process."""
    from fastapi.routing import iter_route_contexts
    from flwr.superlink.main import create_app

    paths = {str(route.path) for route in iter_route_contexts(create_app().routes)}
    # The gateway's own health check has the same path as the SuperLink's.
    paths = (paths | {"/", "/v1/fleet", "/v1/fleet/"}) - FLEET_PATHS - {"/health"}
    assert {"/v1/control/start-run", "/v1/runtime/acquire-task"} <= paths

    async def statuses() -> dict[str, set[int]]:
        app = FleetGateway("127.0.0.1:9")  # nobody there: what is passed on gives 503
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            found = {}
            for path in [*paths, PULL]:
                answers = [await client.request(m, path, content=b"x") for m in ("GET", "POST")]
                found[path] = {answer.status_code for answer in answers}
        return found

    found = asyncio.run(statuses())
    assert found.pop(PULL) == {405, 503}
    assert set.union(*found.values()) == {404}


@pytest.mark.parametrize("size", [0, 3, 5 * 1024 * 1024 + 17])
def test_a_fleet_request_passes_unchanged(gateway: str, size: int) -> None:
    body = os.urandom(size)
    answer = httpx.post(
        f"http://{gateway}{PULL}", content=body, headers={"x-signature": "abc"}, timeout=30
    )
    assert (answer.status_code, answer.content) == (200, body)
    assert answer.headers["x-signature"] == "abc"


def test_the_upstreams_errors_pass(gateway: str) -> None:
    assert httpx.post(f"http://{gateway}{PULL}", content=b"error").status_code == 418


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "//v1/fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull%2dmessages",
        "/V1/fleet/pull-messages",
        "http://other/v1/control/start-run",
    ],
)
def test_a_disguised_path_is_refused(gateway: str, path: str) -> None:
    Upstream.paths.clear()
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    assert _raw(gateway, request.encode()).split()[1] in (b"404", b"400")
    assert Upstream.paths == []


def test_what_is_asked_for_upstream_is_the_path_alone(gateway: str) -> None:
    Upstream.paths.clear()
    assert httpx.post(f"http://{gateway}{PULL}?x=/v1/control", content=b"").status_code == 200
    assert Upstream.paths == [PULL]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (f"Content-Length: {MAX_BODY_BYTES + 1}", b"413"),
        ("Transfer-Encoding: chunked", b"411"),
        ("", b"411"),
        ("Content-Length: -1", b"400"),
        ("Content-Length: 1\r\nContent-Length: 0", b"400"),
    ],
)
def test_a_body_of_unknown_or_excessive_size_is_refused_unread(
    gateway: str, headers: str, status: bytes
) -> None:
    request = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n"
    assert _raw(gateway, request.encode()).split()[1] == status


def test_a_request_cannot_hide_behind_another(gateway: str) -> None:
    """Both ways to state a length at once: what they disagree about must not become a request."""
    Upstream.paths.clear()
    smuggled = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    request = (
        f"POST {PULL} HTTP/1.1\r\nHost: x\r\nContent-Length: {5 + len(smuggled)}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    _raw(gateway, request.encode() + smuggled)
    assert "/v1/control/start-run" not in Upstream.paths


def test_a_slow_device_keeps_nobody_waiting(gateway: str) -> None:
    host, port = gateway.split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(8)]
    for connection in slow:
        connection.sendall(
            f"POST {PULL} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab".encode()
        )
    assert httpx.post(f"http://{gateway}{PULL}", content=b"quick", timeout=5).content == b"quick"
    for connection in slow:
        connection.sendall(b"cdefghi")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.close()


def test_devices_are_told_to_come_back_while_the_superlink_is_away() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        process, address = _start(f"127.0.0.1:{unused.getsockname()[1]}")
        try:
            assert httpx.post(f"http://{address}{PULL}", content=b"x").status_code == 503
            assert httpx.get(f"http://{address}/health").status_code == 200
        finally:
            _end(process)


def test_with_tls_only_tls_is_answered(upstream: str, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    process, address = _start(upstream, "--tls-cert", str(certificate), "--tls-key", str(key))
    try:
        trust = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.post(f"https://{address}{PULL}", content=b"x", verify=trust)
        assert answer.content == b"x"
        with pytest.raises((httpx.HTTPError, http.client.HTTPException)):
            httpx.post(f"http://{address}{PULL}", content=b"x")
    finally:
        _end(process)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    today = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "server.crt", folder / "server.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file
