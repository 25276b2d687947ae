"""What happens in a run, one JSON line each: for people who watch, and for reports."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path


class EventLog:
    """Appends events to a file; each is a JSON object with `event` and `time`.

    JSON has no number that is not finite: such a value is null.
    """

    def __init__(self, path: Path, always: Mapping[str, object] | None = None) -> None:
        """`always` are fields of every event."""
        self._always = dict(always or {})
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a") as file:  # a killed server's last line may be half
                file.write("\n")

    def __call__(self, event: str, **fields: object) -> None:
        """Write one event; whole lines only, so that a reader never sees half of one."""
        told = _finite({"event": event, "time": time.time(), **self._always, **fields})
        line = json.dumps(told, allow_nan=False)
        with self.path.open("a") as file:
            file.write(line + "\n")

    def tagged(self, **always: object) -> "EventLog":
        """The same log, with these fields in every event."""
        return EventLog(self.path, {**self._always, **always})


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, object], int]]:
    """Each whole event from a byte offset on, with the offset after it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue  # what a killed server left
            yield event, offset
