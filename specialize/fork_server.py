"""A process that imports what calls need, once, and forks a process of its own for each call.

A converter may crash its process, hang, or be killed for its memory: that costs the one call. The
server of these processes has one thread only, so that forking it is safe; it ends when the other
end of its pipe closes, and on Linux its children end with it, however that happens.
"""

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn, Self

from ..supernet.errors import ExportError, FedofaError

PR_SET_PDEATHSIG = 1
# When memory runs out, a call is to be killed, and neither its server nor ours.
OOM_SCORE = 500
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CALL_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Call:
    """A function that a fresh process can import, and its arguments.

    `needs` is how many of the server's preloads it waits for; None: for all of them.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    needs: int | None = None


class ForkServer:
    """Runs calls in processes of their own; use as a context manager, which ends them all.

    Starts at once: `preloads`, importable like a call's function, run in their order while the caller
    goes on.
    """

    def __init__(
        self,
        preloads: Sequence[Callable[[], object]],
        at_once: int = 2,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._settings = tuple(preloads), at_once, timeout_s
        self._pipe, self._process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def run(
        self, calls: Mapping[str, Call], done: Callable[[str], None] = lambda _name: None
    ) -> dict[str, Any]:
        """Name → the call's result, or the ExportError that says why there is none.

        `done` hears of each call as it ends, whichever way.
        """
        found: dict[str, Any] = {}
        names = list(calls)
        try:
            if self._process.poll() is not None:
                self._pipe.close()
                self._pipe, self._process = self._start()
            # In one message: with both sides writing, each would wait for the other to read.
            self._pipe.send(
                [
                    (call.needs, bytes(ForkingPickler.dumps((call.function, call.arguments))))
                    for call in calls.values()
                ]
            )
            while len(found) < len(calls):
                place, data, failure = self._pipe.recv()
                found[names[place]] = ForkingPickler.loads(data) if data else ExportError(failure)
                done(names[place])
        except (EOFError, OSError):
            self._process.kill()
            ended = _ended(self._process.wait())
            lost = ExportError(f"the process that starts the converters {ended}")
            found = {**dict.fromkeys(names, lost), **found}
        return {name: found[name] for name in names}

    def _start(self) -> tuple[Connection, "subprocess.Popen[bytes]"]:
        here, there = Pipe()
        with there:
            process = subprocess.Popen(
                # -P: the current folder's files must not stand in for modules.
                [sys.executable, "-P", "-m", "fedofa.specialize.fork_server", str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                env={**os.environ, **ONE_THREAD},
            )
        here.send(self._settings)
        return here, process


@dataclass(frozen=True, slots=True)
class _Request:
    """A call as it came: its place among those of one run, how many preloads it waits for, and what to do."""

    place: int
    needs: int
    content: bytes


class _Forked:
    """One call's process, in a group of its own with whatever it starts."""

    def __init__(self, request: _Request, end_s: float, close: list[Connection]) -> None:
        self.place, self.end_s = request.place, end_s
        self.pipe, there = Pipe(duplex=False)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            for connection in (self.pipe, *close):
                connection.close()
            _work(request.content, there, parent)
        with contextlib.suppress(OSError):  # both sides do it: whichever comes first
            os.setpgid(self._pid, self._pid)
        there.close()

    def answer(self, failure: str = "") -> tuple[int, bytes, str]:
        """The place, the result's bytes, and without one, why; the process is gone afterwards."""
        data = b""
        if not failure:
            with contextlib.suppress(EOFError, OSError):
                data = self.pipe.recv_bytes()
        self.pipe.close()
        # Also what it started itself. One that is ending keeps the code that it ends with.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self.place, data, failure or f"the converter's process {_ended(code)}"


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _work(request: bytes, pipe: Connection, parent: int) -> NoReturn:
    """The child: do the call, send its result, end without the ceremonies of a Python process."""
    code = 1
    try:
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
        if os.getppid() == parent:
            pipe.send_bytes(ForkingPickler.dumps(_result(request)))
            code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    finally:
        os._exit(code)


def _result(request: bytes) -> Any:
    try:
        function, arguments = ForkingPickler.loads(request)
        return function(*arguments)
    except FedofaError as error:
        return ExportError(str(error))
    except Exception as error:  # noqa: BLE001 - whatever a converter raises is the call's result
        return ExportError(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


class _Calls:
    """Those that were asked for through the pipe: waiting until they may begin, or running."""

    def __init__(self, pipe: Connection, preloads: int, at_once: int, timeout_s: float) -> None:
        self._pipe, self._in_all = pipe, preloads
        self._at_once, self._timeout_s = at_once, timeout_s
        self._waiting: list[_Request] = []
        self._running: dict[Connection, _Forked] = {}

    def begin(self, loaded: int) -> None:
        """Fork for the requests that need no more preloads, as many as may run."""
        for request in [r for r in self._waiting if r.needs <= loaded]:
            if len(self._running) == self._at_once:
                break
            self._waiting.remove(request)
            end_s = time.monotonic() + self._timeout_s
            try:
                forked = _Forked(request, end_s, [self._pipe, *self._running])
            except OSError as error:  # no memory or no descriptors for one more process
                failure = f"the converter's process cannot start: {error.strerror}"
                self._pipe.send((request.place, b"", failure))
                continue
            self._running[forked.pipe] = forked

    def hear(self, patience_s: float | None = None) -> None:
        """Take requests in and answer for what is done or late; waits for either, or so long."""
        if patience_s is None and self._running:
            first_s = min(forked.end_s for forked in self._running.values())
            patience_s = max(0.0, first_s - time.monotonic())
        for ready in wait([self._pipe, *self._running], patience_s):
            if ready is self._pipe:
                for place, (needs, content) in enumerate(self._pipe.recv()):
                    waits_for = self._in_all if needs is None else min(needs, self._in_all)
                    self._waiting.append(_Request(place, waits_for, content))
            else:
                self._pipe.send(self._running.pop(ready).answer())  # type: ignore[call-overload]
        for late in [f for f in self._running.values() if f.end_s <= time.monotonic()]:
            del self._running[late.pipe]
            failure = f"the converter gave no result within {self._timeout_s:g} s"
            self._pipe.send(late.answer(failure))


def _serve(
    pipe: Connection, preloads: Sequence[Callable[[], object]], at_once: int, timeout_s: float
) -> None:
    """Fork for one request after the other until the pipe closes; answers come as they are done."""
    calls = _Calls(pipe, len(preloads), at_once, timeout_s)
    for loaded, preload in enumerate(preloads):
        calls.hear(0.0)
        calls.begin(loaded)
        preload()
    while True:
        calls.begin(len(preloads))
        calls.hear()


def main() -> None:
    """Serve the pipe whose descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent decides what an interrupt ends
    with Connection(int(sys.argv[1])) as pipe:
        settings = pipe.recv()
        # Each child ends after one call: collections are a tenth of its time and free little.
        gc.disable()
        with contextlib.suppress(EOFError, OSError):  # our parent is gone
            _serve(pipe, *settings)


if __name__ == "__main__":
    main()
