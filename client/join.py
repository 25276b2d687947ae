"""`fedofa-device join`: one device of a federation, as a small tree of processes.

    main (imports done, no threads)
     ├── node    talks to the server: Flower's Fleet connection
     └── worker  runs the ClientApp, message after message

Both are forked from `main`, so that torch is in memory once; `main` replaces whichever of them
fails, and when it ends, or is killed, so do they.
"""

import gc
import importlib
import ipaddress
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

from ..supernet.errors import RunError, UsageError

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from .executor import Forked
    from .node import NodeOptions

Scalar = str | int | float | bool

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
    gc.collect()
    gc.freeze()  # pages that the collector never writes to stay shared with the forks
    with _Signals() as signals:
        _Device(options, app, signals).run()
        return 128 + signals.received


def check(options: JoinOptions) -> None:
    """Refuse what cannot work; UsageError names the option."""
    host, _, port = options.server.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--server {options.server!r}: HOST:PORT expected, such as 10.0.0.5:9092")
    if options.insecure and options.root_certificates is not None:
        raise UsageError("--insecure and --ca exclude each other")
    certificates = options.root_certificates
    if certificates is not None and not certificates.is_file():
        raise UsageError(f"--ca: no such file: {certificates}")
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

    def __init__(self, options: JoinOptions, app: "ClientApp", signals: "_Signals") -> None:
        from .executor import Executor

        self._options, self._signals = options, signals
        self._node: Forked | None = None
        self._executor = Executor(app, close=lambda: [self._node.pipe] if self._node else [])

    def run(self) -> None:
        """Serve until a signal comes; RunError when there is no server for too long."""
        last_contact_s, pause_s = time.monotonic(), RECONNECT_PAUSE_S
        while not self._signals.received:
            if self._serve_connection():
                last_contact_s, pause_s = time.monotonic(), RECONNECT_PAUSE_S
            if time.monotonic() - last_contact_s + pause_s > self._options.retry_for_s:
                raise RunError(
                    f"no connection to {self._options.server} for {self._options.retry_for_s:.0f} "
                    "s; is `fedofa serve` running there, is it the devices' address, and does TLS "
                    "match (--ca, --insecure)?"
                )
            self._signals.wait([], pause_s)
            pause_s = min(2 * pause_s, RECONNECT_PAUSE_MAX_S)

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
            while self._signals.wait([node.pipe]):
                if joined:
                    self._serve_message(node)
                else:
                    self._options.on_joined(int(node.pipe.recv_bytes()))
                    joined = True
        except (EOFError, OSError):
            pass  # the node has ended
        finally:
            self._executor.close()
            node.end(NODE_GRACE_S)
        return joined

    def _serve_message(self, node: "Forked") -> None:
        context, message = node.pipe.recv_bytes(), node.pipe.recv_bytes()
        reply = self._executor.run(
            context,
            message,
            self._options.task_timeout_s,
            lambda: not self._signals.received and node.exit_code() is None,
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


class _Signals:
    """Signals as something to wait for: no exception in the middle of anything."""

    received = 0

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def wait(self, pipes: list[Connection], timeout_s: float | None = None) -> bool:
        """Wait until a pipe can be read; False when a signal or the timeout came first."""
        found = wait([*pipes, self._reader], timeout_s)
        return bool(found) and not self.received

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number


def _loopback(server: str) -> bool:
    host = server.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
