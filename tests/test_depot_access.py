"""Who may reach the depot: addresses, TLS, tokens; and the depot as a process of its own."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from artifacts import certificate, sha256
from depot_calls import DATA, Connect, open_registry, refusal, resolve, stubs
from fedofa.protos import depot_pb2
from fedofa.protos.depot import Endpoint, read_token
from fedofa.server.depot import Depot, TlsFiles, serve_depot
from fedofa.server.registry import Registry
from fedofa.supernet.errors import UsageError


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


@pytest.mark.parametrize("given", [(), ("Bearer wrong",), ("s3cret",), ("Bearer s3cret",) * 2])
def test_a_missing_or_wrong_token_is_refused(
    registry: Registry, connect: Connect, given: tuple[str, ...]
) -> None:
    running = serve_depot(registry, "127.0.0.1:0", token="s3cret")
    stub, metadata = connect(running.port), [("authorization", value) for value in given]
    wanted = ("UNAUTHENTICATED", "unauthenticated")
    assert refusal(lambda: resolve(stub, metadata=metadata)) == wanted
    request = depot_pb2.DownloadRequest(sha256=sha256(DATA))
    assert refusal(lambda: list(stub.Download(request, metadata=metadata, timeout=20))) == wanted
    assert resolve(stub, metadata=[("authorization", "Bearer s3cret")]).manifest
    running.stop(0)


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "depot.example:0"])
@pytest.mark.parametrize("half", ["nothing", "tls", "token"])
def test_a_bind_beyond_loopback_needs_tls_and_a_token(
    registry: Registry, tmp_path: Path, bind: str, half: str
) -> None:
    tls = TlsFiles(tmp_path / "cert", tmp_path / "key") if half == "tls" else None
    with pytest.raises(UsageError, match="--insecure"):
        serve_depot(registry, bind, tls, "token" if half == "token" else None)


def test_insecure_allows_such_a_bind(registry: Registry) -> None:
    running = serve_depot(registry, "0.0.0.0:0", insecure=True)
    assert running.port > 0
    running.stop(0)


@pytest.mark.parametrize(
    "text",
    ["", "host", ":1", "host:", "host:70000", "host:-1", "::1:9", "a/b:1", "unix:1:2", "h:१"],
)
def test_a_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("localhost.example:1", False),
        ("127.0.0.1.example:1", False),
    ],
)
def test_loopback_is_told_from_the_rest(text: str, loopback: bool) -> None:
    assert Endpoint.parse(text).is_loopback is loopback
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize("content", [b"", b"  \n", b"two words", b"\xff\xfe", b"x" * 5000])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UsageError, match="token"):
        read_token(tmp_path / "token")


def test_a_port_that_is_taken_is_named(registry: Registry, depot: Depot) -> None:
    with pytest.raises(UsageError, match=f"bind 127.0.0.1:{depot.port}"):
        serve_depot(registry, f"127.0.0.1:{depot.port}")


def test_tls_serves_those_who_trust_the_certificate(
    registry: Registry, tmp_path: Path, connect: Connect
) -> None:
    files = certificate(tmp_path)
    running = serve_depot(registry, "127.0.0.1:0", files, "token")
    trusted = grpc.ssl_channel_credentials(files.certificate.read_bytes())
    metadata = [("authorization", "Bearer token")]
    assert resolve(connect(running.port, trusted), metadata=metadata).manifest
    stranger = grpc.ssl_channel_credentials()
    status, _ = refusal(lambda: resolve(connect(running.port, stranger), metadata=metadata))
    assert status == "UNAVAILABLE"
    assert refusal(lambda: resolve(connect(running.port), metadata=metadata))[0] == "UNAVAILABLE"
    running.stop(0)


@pytest.mark.parametrize("broken", ["missing", "no pem", "swapped"])
def test_tls_files_that_do_not_work_are_refused(
    registry: Registry, tmp_path: Path, broken: str
) -> None:
    files = certificate(tmp_path)
    if broken == "missing":
        files.key.unlink()
    elif broken == "no pem":
        files.certificate.write_text("hello")
    else:
        files = TlsFiles(files.key, files.certificate)
    with pytest.raises(UsageError, match=r"tls|TLS"):
        serve_depot(registry, "127.0.0.1:0", files)


def start(*options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fedofa.server.depot", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_when_it_is_ready_and_ends_on_a_signal(
    registry: Registry, connect: Connect, number: signal.Signals
) -> None:
    with start("--registry", str(registry.root), "--bind", "127.0.0.1:0") as process:
        assert process.stdout is not None
        ready = re.fullmatch(r"depot ready 127\.0\.0\.1:(\d+)\n", process.stdout.readline())
        assert ready
        stub = connect(int(ready[1]))
        assert resolve(stub).manifest
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, rest, errors) == (0, "", "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(ready[1])), timeout=5).close()


def test_the_process_refuses_wrong_use_with_exit_code_2(tmp_path: Path) -> None:
    with start("--registry", str(tmp_path / "r"), "--bind", "0.0.0.0:0") as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.startswith("error: bind 0.0.0.0:0")
    assert errors.count("\n") == 1


def test_the_process_ends_with_its_parent(registry: Registry) -> None:
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'fedofa.server.depot',"
        f" '--with-parent', '--bind', '127.0.0.1:0', '--registry', {str(registry.root)!r}],"
        " stdout=subprocess.PIPE, text=True); print(p.stdout.readline(), flush=True)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )
    port = int(parent.stdout.strip().rpartition(":")[2])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the depot outlives its parent")
