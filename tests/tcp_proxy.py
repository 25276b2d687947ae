"""A TCP proxy on loopback that cuts connections, changes bytes, and counts what it passed on."""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType


class Proxy:
    """Passes connections to a port; counts the bytes downstream of each in `passed`.

    Connection number i is cut after `cuts[i]` bytes downstream, or falls silent after `stalls[i]`.
    """

    def __init__(self, port: int, cuts: Sequence[int] = (), stalls: Sequence[int] = ()) -> None:
        self.passed: list[int] = []
        self._target = ("127.0.0.1", port)
        self._limits = list(cuts or stalls)
        self._cuts = bool(cuts)
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                number = len(self.passed)
                self.passed.append(0)
                self._sockets += [near, far]
                limit = self._limits[number] if number < len(self._limits) else None
                for run, args in (
                    (self._up, (near, far)),
                    (self._down, (far, near, number, limit)),
                ):
                    thread = threading.Thread(target=run, args=args)
                    self._threads.append(thread)
                    thread.start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
        _end(far)

    def _down(
        self, far: socket.socket, near: socket.socket, number: int, limit: int | None
    ) -> None:
        with suppress(OSError):
            while data := far.recv(16384):
                if limit is not None:
                    data = data[: limit - self.passed[number]]
                near.sendall(data)
                self.passed[number] += len(data)
                if self.passed[number] == limit:
                    break
        if limit is None or self._cuts:
            _end(near)
            _end(far)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _end(self._listener)
        self._listener.close()
        for one in self._sockets:
            _end(one)
        for thread in self._threads:
            thread.join(10)
        for one in self._sockets:
            one.close()


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
