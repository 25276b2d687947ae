"""`fedofa serve`: everything a server consists of, started, supervised and ended together.

    devices ──► gateway ──► SuperLink ◄── SuperExec ──► ServerApp of each run
       └──────► depot         (loopback only)

The gateway passes only Flower's fleet paths. The depot serves finished models.
"""

import contextlib
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from ..protos import durable
from ..supernet.errors import UsageError
from . import superlink
from .children import Child, Children

ADDRESSES_FILE = "serve.json"
LOCK_FILE = "serve.lock"
REGISTRY = "registry"
DEVICES_PORT = 9092
DEPOT_PORT = 9093
WAKE_S = 0.2


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running server answers, each as HOST:PORT; `control` is for its own machine only."""

    devices: str
    depot: str
    control: str
    tls: bool


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `serve` needs to know. A port of 0 means any free one.

    `state` holds Flower's database, logs and home; `registry` the models that the depot serves.
    TLS (`tls_cert`, `tls_key`) covers gateway and depot; the token (`token_file`) is the depot's.
    Only with `durable`, a database file, does a run survive a crash of the SuperLink.
    """

    state: Path
    registry: Path
    host: str = "127.0.0.1"
    port: int = DEVICES_PORT
    depot_host: str = "127.0.0.1"
    depot_port: int = DEPOT_PORT
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    insecure: bool = False
    durable: bool = True
    depot_command: tuple[str, ...] = (sys.executable, "-m", "fedofa.server.depot")
    on_ready: Callable[[Addresses], None] = field(default=lambda _addresses: None)


def serve(options: ServeOptions) -> int:
    """Run a server until SIGINT, SIGTERM or SIGHUP; everything it started has ended on return.

    Returns the exit code that the signal stands for (130, 143, 129). To be called from the main
    thread. Raises UsageError for options that cannot be served (nothing was started then) and
    RunError, naming a log file, when a part of the server keeps failing.
    """
    stop, received = threading.Event(), []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        run_server(options, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else 0


def run_server(options: ServeOptions, stop: threading.Event) -> None:
    """`serve` without signals: runs until `stop` is set. May be called from any thread."""
    check(options)
    with _locked(options.state):
        addresses = _addresses(options)
        file = options.state / ADDRESSES_FILE
        try:
            with Children(children(options, addresses), options.state / "logs") as running:
                running.start(stop)
                if not stop.is_set():
                    _write(file, {**asdict(addresses), "pids": running.pids()})
                    options.on_ready(addresses)
                    running.watch(stop, WAKE_S)
        finally:
            file.unlink(missing_ok=True)


def read_addresses(state: Path) -> Addresses:
    """Where the server with this state folder answers; UsageError when none is running."""
    try:
        found = json.loads((state / ADDRESSES_FILE).read_text())
        found.pop("pids")
        return Addresses(**found)
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(
            f"no server is running with state folder {state}; start one: fedofa serve"
        ) from None


def children(options: ServeOptions, addresses: Addresses) -> tuple[Child, ...]:
    """The table of processes, in the order of their start."""
    port = int(addresses.control.rpartition(":")[2])
    tls = _flags(("--tls-cert", options.tls_cert), ("--tls-key", options.tls_key))
    gateway = (sys.executable, "-m", "fedofa.server.gateway", "--upstream", addresses.control)
    depot = (*options.depot_command, "--registry", str(options.registry))
    token = _flags(("--token-file", options.token_file))
    insecure = ("--insecure",) if options.insecure else ()
    return (
        superlink.superlink(options.state.resolve(), port, options.durable),
        Child(
            "gateway",
            (*gateway, "--bind", addresses.devices, *tls),
            _says("gateway ready "),
            waits=False,
        ),
        Child(
            "depot",
            (*depot, "--bind", addresses.depot, *tls, *token, *insecure),
            _says("depot ready "),
            waits=False,
        ),
        superlink.superexec(options.state.resolve(), port),
    )


def check(options: ServeOptions) -> None:
    """Refuse, before anything is started, what cannot or must not be served."""
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("TLS needs both a certificate and its key: --tls-cert and --tls-key")
    for flag, path in (
        ("--tls-cert", options.tls_cert),
        ("--tls-key", options.tls_key),
        ("--token-file", options.token_file),
    ):
        if path is not None and not path.is_file():
            raise UsageError(f"{flag}: no such file: {path}")
    if options.insecure:
        return
    if not _loopback(options.host) and options.tls_cert is None:
        raise UsageError(
            f"--host {options.host} is not loopback: give --tls-cert and --tls-key, or say "
            "--insecure to let models and updates travel unencrypted"
        )
    if not _loopback(options.depot_host) and not (options.tls_cert and options.token_file):
        raise UsageError(
            f"--depot-host {options.depot_host} is not loopback: give --tls-cert, --tls-key and "
            "--token-file, or say --insecure to let everybody read the models"
        )


def _addresses(options: ServeOptions) -> Addresses:
    devices = _bindable(options.host, options.port, "--port")
    depot = _bindable(options.depot_host, options.depot_port, "--depot-port", taken=devices)
    control = _bindable(superlink.LOOPBACK, 0, "the SuperLink", taken=devices)
    return Addresses(devices, depot, control, options.tls_cert is not None)


def _bindable(host: str, port: int, flag: str, taken: str = "") -> str:
    """HOST:PORT that can be listened on now, with a free port for port 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            # Connections of a server that has just ended do not count, a listener does.
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = "is in use; stop what listens there or give another"
            else:
                why = f"cannot be used: {os.strerror(error.errno or 0)}; give another"
            raise UsageError(f"port {port} on {host} {why} ({flag})") from None
        found = f"[{host}]" if ":" in host else host
        found = f"{found}:{probe.getsockname()[1]}"
    if found == taken:
        if port:
            raise UsageError(f"port {port} on {host} is wanted twice; give another ({flag})")
        return _bindable(host, 0, flag, taken)
    return found


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _says(line: str) -> Callable[[str], bool]:
    return lambda log: any(found.startswith(line) for found in log.splitlines())


def _flags(*pairs: tuple[str, Path | None]) -> tuple[str, ...]:
    return tuple(part for flag, path in pairs if path for part in (flag, str(path)))


def _write(file: Path, content: dict[str, object]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(file)


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One server per state folder; the lock ends with the process."""
    with contextlib.ExitStack() as stack:
        try:
            state.mkdir(parents=True, exist_ok=True)
            stack.enter_context(durable.locked(state / LOCK_FILE))
        except BlockingIOError:
            raise UsageError(
                f"another server runs with state folder {state}; stop it or use another folder"
            ) from None
        except OSError as error:
            raise UsageError(f"state folder {state} cannot be written: {error.strerror}") from None
        yield
