"""Ends a server's processes when the server itself is gone, even by SIGKILL.

A script of its own, started with the bare interpreter: it reads process groups from its standard
input (`+PGID` to watch, `-PGID` to forget) and, when that closes, ends those that are left. The
input closes however the server ends, so nothing has to be sent at that moment.
"""

import contextlib
import os
import signal
import sys
import time

GRACE_S = 3.0


def main() -> None:
    """Watch groups until standard input closes; then end them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    _signal(groups, signal.SIGTERM)
    end = time.monotonic() + GRACE_S
    while _signal(groups, 0) and time.monotonic() < end:
        time.sleep(0.1)
    _signal(groups, signal.SIGKILL)


def _signal(groups: set[int], number: int) -> bool:
    """Send a signal to each group; whether any of them still has a process."""
    alive = False
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            alive = True
    return alive


if __name__ == "__main__":
    main()
