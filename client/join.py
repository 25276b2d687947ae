"""`fedofa-device join`: one device of a federation, as a small tree of processes.

    main (imports done, no threads)
     ├── node    talks to the server: Flower's Fleet connection
     └── worker  runs the ClientApp, message after message

Both are forked from `main`, so that torch is in memory once; `main` replaces whichever of them
fails, and when it ends, or is killed, so do they.
"""

import importlib
import ipaddress
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..supernet.errors import RunError, UsageError

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from .executor import Forked
    from .node import NodeOptions

Scalar = str | int | float | bool

NODE_GRACE_S = 5.0
RECONNECT_PAUSE_S = 1.0
RECONNECT_PAUSE_MAX_S = 20.0
# For a node that ends after its server has gone: its last requests have 30 s of their own.
LEAVE_S = 8


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """How a device takes part. `server` is HOST:PORT of the gateway that `fedofa serve` prints.

    `node_config` describes the device to its ClientApp and never leaves it. A message whose
    ClientApp takes longer than `task_timeout_s` gets an error reply; a server that cannot be
    reached for `retry_for_s` ends the device. `on_joined` gets the node id of each registration.
    """

    server: str
    client_app: str = "fedofa.client.app:app"
    node_config: Mapping[str, Scalar] = field(default_factory=dict)
    root_certificates: Path | None = None
    insecure: bool = False
    task_timeout_s: float = 1800.0
    retry_for_s: float = 300.0
    poll_s: float = 0.3
    idle_poll_s: float = 2.0
    on_joined: Callable[[int], None] = field(default=lambda _node_id: None)


class _StoppedError(Exception):
    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def join(options: JoinOptions) -> int:
    """Take part until SIGINT, SIGTERM or SIGHUP; returns the exit code it stands for (130, ...).

    To be called from the main thread of a process without other threads: it forks. Raises
    UsageError for options that cannot work (before anything is started) and RunError when the
    server cannot be reached, or refuses, for `retry_for_s`.
    """
    check(options)
    # Read by Flower when it is imported.
    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    app = load_app(options.client_app)
    try:
        with _signals():
            return _Device(options, app).run()
    except _StoppedError as stopped:
        return 128 + stopped.signal_number


def check(options: JoinOptions) -> None:
    """Refuse what cannot work; UsageError names the option."""
    host, _, port = options.server.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--server {options.server!r}: HOST:PORT expected, such as 10.0.0.5:9092")
    if options.insecure and options.root_certificates is not None:
        raise UsageError("--insecure and --root-certificates exclude each other")
    certificates = options.root_certificates
    if certificates is not None and not certificates.is_file():
        raise UsageError(f"--root-certificates: no such file: {certificates}")
    for key, value in options.node_config.items():
        if not isinstance(value, str | int | float | bool):
            raise UsageError(f"node config {key!r}: text, number or bool expected, got {value!r}")


def load_app(reference: str) -> "ClientApp":
    """The ClientApp that `module:attribute` names; UsageError when there is none."""
    from flwr.clientapp import ClientApp

    module, _, attribute = reference.partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"ClientApp {reference!r} cannot be loaded: {error}") from error
    if not isinstance(app, ClientApp):
        raise UsageError(f"{reference!r} is a {type(app).__name__}, a flwr ClientApp is expected")
    return app


class _Device:
    """The main process: hands messages from the node to the executor and replaces both."""

    def __init__(self, options: JoinOptions, app: "ClientApp") -> None:
        from .executor import Executor

        self._options = options
        self._node: Forked | None = None
        self._executor = Executor(app, close=lambda: [self._node.pipe] if self._node else [])
        self._last_contact_s = time.monotonic()

    def run(self) -> int:
        """Serve until a signal (as _StoppedError) or RunError."""
        pause_s = RECONNECT_PAUSE_S
        try:
            while True:
                if self._serve_connection():
                    pause_s, self._last_contact_s = RECONNECT_PAUSE_S, time.monotonic()
                if time.monotonic() - self._last_contact_s + pause_s > self._options.retry_for_s:
                    raise RunError(
                        f"no connection to {self._options.server} for "
                        f"{self._options.retry_for_s:.0f} s; is `fedofa serve` running there, is "
                        "it the devices' address, and does TLS match (--root-certificates, "
                        "--insecure)?"
                    )
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, RECONNECT_PAUSE_MAX_S)
        finally:
            # Not to be interrupted by a second Ctrl-C.
            with _deaf():
                self._executor.close()
                if self._node is not None:
                    self._node.end(NODE_GRACE_S)

    def _serve_connection(self) -> bool:
        """Fork a node and serve it until it ends; whether it ever reached the server."""
        from .executor import Forked
        from .node import run_node

        options, joined = self._node_options(), False
        # A node whose main process is killed still takes its leave from the server.
        node = self._node = Forked(
            lambda pipe: _as_node(lambda: run_node(options, pipe)), death_signal=signal.SIGTERM
        )
        try:
            self._options.on_joined(int(node.pipe.recv_bytes()))
            joined = True
            while True:
                self._serve_message(node)
        except (EOFError, OSError):
            return joined
        finally:
            with _deaf():
                self._executor.close()
                node.end(NODE_GRACE_S)

    def _serve_message(self, node: "Forked") -> None:
        wait([node.pipe])
        context, message = node.pipe.recv_bytes(), node.pipe.recv_bytes()
        reply = self._executor.run(
            context, message, self._options.task_timeout_s, lambda: node.exit_code() is None
        )
        for part in reply:
            node.pipe.send_bytes(part)

    def _node_options(self) -> "NodeOptions":
        from .node import NodeOptions

        options = self._options
        plain = options.insecure or (
            options.root_certificates is None and _loopback(options.server)
        )
        return NodeOptions(
            options.server,
            plain,
            options.root_certificates,
            dict(options.node_config),
            options.retry_for_s,
            options.poll_s,
            options.idle_poll_s,
        )


def _as_node(run: Callable[[], None]) -> None:
    """Run in a node's process: a signal ends it by way of its `finally` blocks."""

    def leave(number: int, _frame: FrameType | None) -> None:
        signal.alarm(LEAVE_S)
        raise SystemExit(128 + number)

    # Flower's connection sends itself SIGINT when the server no longer knows the node.
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    run()


@contextmanager
def _signals() -> Iterator[None]:
    def stop(number: int, _frame: FrameType | None) -> None:
        raise _StoppedError(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deaf() -> Iterator[None]:
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _loopback(server: str) -> bool:
    host = server.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
