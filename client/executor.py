"""Runs a device's ClientApp for one message after the other, in a process that may fail.

Flower starts a fresh Python, with torch, for every message (2.4 CPU seconds). Here the device's
main process has imported everything once, and a forked worker takes message after message; when
it crashes or hangs it is killed, the message gets an error reply at once, and the next message
gets a new worker.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import NoReturn

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

_log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
WATCH_S = 0.2
MAX_REASON_CHARACTERS = 2000


class Forked:
    """A forked child in a process group of its own, with a pipe to it.

    `close` are the parent's ends of other pipes, which a child must not hold open. On Linux the
    child gets `death_signal` when its parent dies, however that happens.
    """

    def __init__(
        self,
        target: Callable[[Connection], None],
        close: Iterable[Connection] = (),
        death_signal: int = signal.SIGKILL,
    ) -> None:
        self.pipe, there = Pipe()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for connection in (self.pipe, *close):
                connection.close()
            _child(target, there, parent, death_signal)
        # Both sides do it, so that it is done whichever comes first.
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)
        there.close()
        self._exit_code: int | None = None

    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        if self._exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code

    def end(self, grace_s: float = 0.0) -> None:
        """End the child with all that it started, and close the pipe. Once is enough."""
        if self.pipe.closed:
            return
        if grace_s > 0 and self.exit_code() is None:
            self._signal(signal.SIGTERM)
            end_s = time.monotonic() + grace_s
            while self.exit_code() is None and time.monotonic() < end_s:
                time.sleep(0.02)
        self._signal(signal.SIGKILL)
        if self.exit_code() is None:
            _, status = os.waitpid(self.pid, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
        self.pipe.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _child(
    target: Callable[[Connection], None], pipe: Connection, parent: int, death_signal: int
) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() == parent:
            target(pipe)
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # the parent is gone
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
        _log.exception("process %d failed", os.getpid())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Executor:
    """Runs an app's messages in a worker process; `close` are other pipes of this process."""

    def __init__(self, app: ClientApp, close: Callable[[], Iterable[Connection]]) -> None:
        self._app, self._close = app, close
        self._worker: Forked | None = None

    def run(
        self, context: bytes, message: bytes, timeout_s: float, wanted: Callable[[], bool]
    ) -> tuple[bytes, bytes]:
        """The new context and the reply, as Flower's protobuf bytes.

        A worker that dies or takes longer than `timeout_s` gives an error reply. Stops early, with
        whatever reply, when `wanted` says that nobody waits for it any more.
        """
        worker = self._worker
        if worker is None or worker.exit_code() is not None:
            worker = self._worker = Forked(self._work, self._close())
        # The message's own lifetime counts from here: clocks of server and device may differ.
        lifetime_s = ProtoMessage.FromString(message).metadata.ttl
        end_s = time.monotonic() + min(timeout_s, lifetime_s)
        try:
            worker.pipe.send_bytes(context)
            worker.pipe.send_bytes(message)
            while time.monotonic() < end_s and wanted():
                if wait([worker.pipe], WATCH_S):
                    return worker.pipe.recv_bytes(), worker.pipe.recv_bytes()
                if worker.exit_code() is not None:
                    break
        except (EOFError, OSError):
            pass  # it died in the middle; below
        late = time.monotonic() >= end_s
        # A pipe closes a moment before its process can be waited for.
        worker.end(0 if late else 0.5)
        reason = "took too long and was ended" if late else _death(worker.exit_code() or 0)
        self._worker = None
        _log.error("the ClientApp %s", reason)
        return context, _error(message, ErrorCode.CLIENT_APP_CRASHED, f"the ClientApp {reason}")

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _work(self, pipe: Connection) -> None:
        # Ctrl-C is the main process's business.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            context, message = pipe.recv_bytes(), pipe.recv_bytes()
            for part in call(self._app, context, message):
                pipe.send_bytes(part)


def call(app: ClientApp, context: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Run an app on one message, in this process; an exception becomes an error reply."""
    flower_context = context_from_proto(ProtoContext.FromString(context))
    flower_message = message_from_proto(ProtoMessage.FromString(message))
    _identify(flower_context)
    try:
        reply = app(message=flower_message, context=flower_context)
    except Exception as error:  # noqa: BLE001 - whatever a user's app raises goes to the server
        _log.exception("the ClientApp raised an exception")
        reason = f"{type(error)}:<'{error}'>"
        return context, _error(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
    return (
        context_to_proto(flower_context).SerializeToString(),
        message_to_proto(reply).SerializeToString(),
    )


def _identify(context: Context) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id = context.run_id, context.node_id
    TaskIdentity.task_id = 1


def _error(message: bytes, code: int, reason: str) -> bytes:
    request = message_from_proto(ProtoMessage.FromString(message))
    reply = Message(Error(code=code, reason=reason[:MAX_REASON_CHARACTERS]), reply_to=request)
    content: bytes = message_to_proto(reply).SerializeToString()
    return content


def _death(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "was killed by signal 9: out of memory?"
    return f"died of signal {-exit_code}" if exit_code < 0 else f"exited with code {exit_code}"
