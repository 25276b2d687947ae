"""The processes that a server consists of: started in order, watched, restarted, ended together.

Each child leads a process group of its own, so that what it starts itself is ended with it and
Ctrl-C in a terminal reaches only the server, which then ends them in order.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from ..supernet.errors import RunError
from . import keeper

READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 6.0
# A child that stayed up this long starts a new count of restarts.
STEADY_S = 60.0
MAX_BACKOFF_S = 8.0
TAIL_BYTES = 64 * 1024
TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Child:
    """One process: what to run and how to know that it is ready.

    `ready` gets what the child has printed since its start and says whether it is ready;
    `restarts` is how often in a row it may be started again after a crash. One that `waits` is
    started when those before it in the table are ready; others start, and end, beside the one
    before them. `grace_s` is how long it may take to end by itself.
    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[str], bool] = lambda _log: True
    env: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 5
    waits: bool = True
    grace_s: float = STOP_GRACE_S


class Children:
    """Runs a table of children; use as a context manager, which ends them all."""

    def __init__(self, table: Sequence[Child], logs: Path) -> None:
        self._table, self._logs = table, logs
        self._running: dict[str, _Running] = {}
        self._keeper: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self, stop: threading.Event) -> None:
        """Start the children in order; returns when all are ready, or early when `stop` is set.

        Raises RunError, with the end of its log, when a child ends or is not ready in time.
        """
        script = str(Path(keeper.__file__))
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", script],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for group in _groups(self._table):
            started = [_Running(child, self._new_log(child)) for child in group]
            for running in started:
                self._launch(running)
            for running in started:
                self._await_ready(running, stop)

    def watch(self, stop: threading.Event, interval_s: float = 0.2) -> None:
        """Restart crashed children until `stop` is set.

        Raises RunError when one of them crashes more often than its table entry allows.
        """
        while not stop.wait(interval_s):
            for running in self._running.values():
                if running.process.poll() is not None:
                    self._restart(running, stop)

    def stop(self) -> None:
        """End every child with all that it started, the last one started first."""
        for group in reversed(_groups(self._table)):
            started = [self._running[child.name] for child in group if child.name in self._running]
            for running in started:
                _signal_group(running.process.pid, signal.SIGTERM)
            for running in started:
                end_group(running.process, running.child.grace_s, asked=True)
                self._tell("-", running.process.pid)
        self._running.clear()
        if self._keeper is not None:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.communicate(timeout=10)
            self._keeper = None

    def pids(self) -> dict[str, int]:
        """Process id of each child that was started, by name."""
        return {name: running.process.pid for name, running in self._running.items()}

    def _new_log(self, child: Child) -> Path:
        log = self._logs / f"{child.name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        return log

    def _launch(self, running: "_Running") -> None:
        running.launch()
        self._running[running.child.name] = running
        self._tell("+", running.process.pid)

    def _restart(self, running: "_Running", stop: threading.Event) -> None:
        running.note_crash()
        if running.crashes > running.child.restarts:
            raise RunError(running.obituary(f"ended {running.crashes} times in a row"))
        # What it had started itself, an app for instance, must not outlive it.
        end_group(running.process, grace_s=0)
        self._tell("-", running.process.pid)
        if not stop.wait(min(0.25 * 2**running.crashes, MAX_BACKOFF_S)):
            self._launch(running)

    def _await_ready(self, running: "_Running", stop: threading.Event) -> None:
        end = time.monotonic() + READY_TIMEOUT_S
        while not stop.is_set() and not running.child.ready(running.output()):
            if running.process.poll() is not None:
                raise RunError(running.obituary("ended while it was starting"))
            if time.monotonic() > end:
                raise RunError(running.obituary(f"was not ready after {READY_TIMEOUT_S:.0f} s"))
            stop.wait(0.05)

    def _tell(self, sign: str, group: int) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            # Without its keeper a server still works and still stops in order.
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.write(f"{sign}{group}\n")
                self._keeper.stdin.flush()


def _groups(table: Sequence[Child]) -> list[list[Child]]:
    """The table in groups whose members start and end together."""
    groups: list[list[Child]] = []
    for child in table:
        if child.waits or not groups:
            groups.append([])
        groups[-1].append(child)
    return groups


class _Running:
    """One child's current process, its log, and how often it has crashed in a row."""

    process: subprocess.Popen[bytes]

    def __init__(self, child: Child, log: Path) -> None:
        self.child, self.log = child, log
        self.crashes = 0
        self._started = 0.0
        self._offset = 0

    def launch(self) -> None:
        """Start the process; its output goes to the end of its log."""
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        self._started = time.monotonic()
        with self.log.open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    self.child.command,
                    env={**os.environ, **self.child.env},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise RunError(
                    f"{self.child.name}: cannot start {self.child.command[0]}: {error.strerror}"
                ) from None

    def note_crash(self) -> None:
        """Count a crash; one after a long quiet time counts as the first."""
        steady = time.monotonic() - self._started > STEADY_S
        self.crashes = 1 if steady else self.crashes + 1

    def output(self) -> str:
        """The last part of what the process has printed since it was started."""
        size = self.log.stat().st_size
        with self.log.open("rb") as log:
            log.seek(max(self._offset, size - TAIL_BYTES))
            return log.read().decode(errors="replace")

    def obituary(self, what: str) -> str:
        """What happened, the log's place and its last lines."""
        tail = [line for line in self.output().splitlines() if line.strip()][-TAIL_LINES:]
        code = self.process.poll()
        ended = "" if code is None else f" (exit code {code})"
        lines = [f"{self.child.name} {what}{ended}; its log is {self.log}", *tail]
        return "\n  ".join(lines)


def end_group(process: subprocess.Popen[bytes], grace_s: float, *, asked: bool = False) -> None:
    """End a process and its whole group: politely, and after `grace_s` by SIGKILL.

    Pass `asked` when it got its SIGTERM already: many programs take a second one as an order.
    """
    group = process.pid
    end = time.monotonic() + grace_s
    if grace_s > 0:
        if not asked:
            _signal_group(group, signal.SIGTERM)
        while _group_alive(process) and time.monotonic() < end:
            time.sleep(0.05)
    _signal_group(group, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is None:
        return True
    for other in psutil.process_iter(["status"]):
        # An orphan that nobody reaps stays a zombie for ever; it is dead all the same.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            zombie = other.info["status"] == psutil.STATUS_ZOMBIE
            if not zombie and os.getpgid(other.pid) == process.pid:
                return True
    return False
