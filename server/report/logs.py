"""Event logs of a run, as far as its record vouches for them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..branches.places import FOLDER as BRANCHES
from ..run_record import RECORD, JobRecord, LogMark, RunRecord

Row = Mapping[str, Any]


def changed(folder: Path, record: RunRecord) -> Iterator[str]:
    """In words, each log that does not begin with what a job of the record left in it."""
    for job in record.jobs:
        for name, mark in job.logs.items():
            path = folder / name
            if _beginning(path, mark) != mark.sha256:
                yield (
                    f"event log {path}: its first {mark.size_bytes} bytes are not those that "
                    f"{RECORD} noted when the {job.kind} job wrote them; restore it"
                )


def _beginning(path: Path, mark: LogMark) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(mark.size_bytes)).hexdigest()
    except OSError as error:
        return str(error)


def events(folder: Path, record: RunRecord) -> list[list[Row]]:
    """Of each log, the run's or its branch's events, as far as the newest job vouches for it.

    The logs are those that `changed` has nothing to say of.
    """
    return [_mine(folder, _log(folder / name, size)) for name, size in _extents(record)]


def _extents(record: RunRecord) -> list[tuple[str, int]]:
    """Each event log of the record's jobs, and how much of it the newest one of them vouches for."""
    found: dict[str, int] = {}
    for job in record.jobs:
        for name, mark in job.logs.items():
            found[name] = max(found.get(name, 0), mark.size_bytes)
    return list(found.items())


def _log(path: Path, size_bytes: int) -> Iterator[Row]:
    """The events of a log's beginning; what a killed server left of a line is passed over."""
    for line in path.read_bytes()[:size_bytes].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event


def _mine(folder: Path, found: Iterable[Row]) -> list[Row]:
    """Without what other branches of the run did."""
    branch = folder.name if folder.parent.name == BRANCHES else None
    return [event for event in found if event.get("branch") in (None, branch)]


def jobs(found: Sequence[Row], kind: str) -> list[list[Row]]:
    """The events of each job of a kind, from where it started to where another one did."""
    parts: list[list[Row]] = []
    for event in found:
        if event["event"] == "started":
            parts.append([])
        if parts:
            parts[-1].append(event)
    return [job for job in parts if job[0].get("job") == kind]


def events_of(folder: Path, job: JobRecord) -> tuple[Row, ...]:
    """The events of a job for the classes or a fleet, or of a finishing, as its log held them then."""
    started = "finish" if job.kind == "finish" else "specialize"
    found = [
        part
        for name, mark in job.logs.items()
        for part in jobs(_mine(folder, _log(folder / name, mark.size_bytes)), started)
        if part[0].get("fleet") == job.fleet
    ]
    return tuple(found[-1]) if found else ()
