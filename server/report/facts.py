"""What a run folder says of a specialized run, read once and checked where it is read."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...supernet.errors import ArtifactError, FedofaError, UsageError
from ...supernet.space import Space
from .. import run_record
from ..branches.places import FOLDER as BRANCHES
from ..branches.places import branch_folder
from ..checkpoint import CHECKPOINTS, CheckpointStore
from ..config import RunConfig, parse_config
from ..contributions import Contribution, count, counted_entries
from ..ledger_chain import LEDGER, Chain, checked
from ..ledger_entries import Abandoned, Entry, Round
from ..ledger_keys import PUBLIC, PublicKey
from ..model_folders import RESULTS
from ..run_record import JobRecord, RunRecord

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Book:
    """A checked ledger up to the round that was specialized: what counts of it."""

    chain: Chain
    entries: tuple[Entry, ...]
    unrecorded: int

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds that are done."""
        return tuple(entry for entry in self.entries if isinstance(entry, Round))

    @property
    def abandoned(self) -> int:
        """How many rounds came to nothing."""
        return sum(isinstance(entry, Abandoned) for entry in self.entries)

    @property
    def contributions(self) -> list[Contribution]:
        """What each device gave."""
        return count(self.entries)


@dataclass(frozen=True, slots=True)
class Facts:
    """A run's record and what its files hold.

    `training` is its last training that was done, None where none was recorded; `job` its newest
    specialization, whose configuration is `config`: that for the classes, or where there is none, for a
    fleet. `results` has a row for each published class.
    `trained` and `searched` are the events of all training and of `job`;
    `joined` the newest profile event of each device. `seeds` are those of runs beside this one that
    differ in name and seed only, its own among them.
    """

    folder: Path
    record: RunRecord
    training: JobRecord | None
    job: JobRecord
    config: RunConfig
    space: Space
    results: tuple[Row, ...]
    joined: Mapping[str, Row]
    data_form: Row | None
    trained: tuple[Row, ...]
    searched: tuple[Row, ...]
    book: Book | None
    seeds: tuple[int, ...]


def run_folder(run: Path, branch: str | None) -> Path:
    """The folder of a run's supernet, or of one of its branches'; UsageError for one there is not."""
    if not run.is_dir():
        raise UsageError(f"--run {run}: no such folder; a run lies in STATE/runs/NAME")
    names = sorted(path.name for path in (run / BRANCHES).glob("*") if path.is_dir())
    if branch is None and not names:
        return run
    if branch not in names:
        known = f"its branches are {', '.join(names)}" if names else "the run has no branches"
        given = "the run has several supernets" if branch is None else f"--branch {branch!r}"
        raise UsageError(f"--run {run}: {given}; {known}")
    return branch_folder(run, branch)


def read(folder: Path) -> Facts:
    """Read it all.

    UsageError for a folder without a run, or a run that is not specialized yet; ArtifactError for a
    file that is missing, half-written or not what was written.
    """
    record = _record(folder)
    job = record.newest("specialize") or record.newest("fleet")
    if job is None:
        raise UsageError(_unfinished(folder, record))
    training, config = record.newest("train"), config_of(folder, job)
    logs = {name: _mine(folder, _log(folder / name, size)) for name, size in _extents(record)}
    events = [event for log in logs.values() for event in log]
    return Facts(
        folder=folder,
        record=record,
        training=training,
        job=job,
        config=config,
        space=config.build_space(),
        results=tuple(_results(folder / RESULTS)) if job.kind == "specialize" else (),
        joined={str(e["device"]): e for e in events if e["event"] == "device_joined"},
        data_form=next((e for e in reversed(events) if e["event"] == "data_form"), None),
        trained=tuple(event for found in _jobs(events, "train") for event in found),
        searched=events_of(folder, job),
        book=book_of(folder, job.round),
        seeds=_seeds(folder, training),
    )


def _record(folder: Path) -> RunRecord:
    if not (folder / run_record.RECORD).exists() and not (folder / CHECKPOINTS).exists():
        raise UsageError(
            f"run folder {folder} holds no run: neither {run_record.RECORD} nor {CHECKPOINTS}/; "
            "train one with fedofa run, or name another folder with --run"
        )
    return run_record.read(folder)


def _unfinished(folder: Path, record: RunRecord) -> str:
    begun = [job for job in record.jobs if job.kind in ("specialize", "fleet")]
    if begun:
        what = "its specialization was not ended: it works still, was killed, or failed"
    else:
        rounds = CheckpointStore(folder / CHECKPOINTS).rounds()
        what = f"{rounds[-1] if rounds else 0} rounds are trained, and it is not specialized yet"
    return f"run folder {folder}: {what}; fedofa specialize, then report"


def config_of(folder: Path, job: JobRecord) -> RunConfig:
    """A job's configuration; ArtifactError where this version takes it for none."""
    try:
        return parse_config(job.config)
    except FedofaError as error:
        raise ArtifactError(
            f"run record {folder / run_record.RECORD}: its configuration is none that this version "
            f"takes ({error}); report with the version that it notes"
        ) from None


def _extents(record: RunRecord) -> list[tuple[str, int]]:
    """Each event log of the record's jobs, and how much of it the newest one of them vouches for."""
    found: dict[str, int] = {}
    for job in record.jobs:
        for name, mark in job.logs.items():
            found[name] = max(found.get(name, 0), mark.size_bytes)
    return list(found.items())


def _log(path: Path, size_bytes: int) -> Iterator[Row]:
    """The events of a log's beginning; what a killed server left of a line is passed over."""
    try:
        data = path.read_bytes()[:size_bytes]
    except OSError as error:
        raise ArtifactError(f"event log {path}: {error.strerror}; restore it") from None
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event


def _mine(folder: Path, events: Iterable[Row]) -> list[Row]:
    """Without what other branches of the run did."""
    branch = folder.name if folder.parent.name == BRANCHES else None
    return [event for event in events if event.get("branch") in (None, branch)]


def _jobs(events: Sequence[Row], kind: str) -> list[list[Row]]:
    """The events of each job of a kind, from where it started to where another one did."""
    found: list[list[Row]] = []
    for event in events:
        if event["event"] == "started":
            found.append([])
        if found:
            found[-1].append(event)
    return [job for job in found if job[0].get("job") == kind]


def events_of(folder: Path, job: JobRecord) -> tuple[Row, ...]:
    """The events of a job for the classes or a fleet, or of a finishing, as its log held them then."""
    started = "finish" if job.kind == "finish" else "specialize"
    found = [
        events
        for name, mark in job.logs.items()
        for events in _jobs(_mine(folder, _log(folder / name, mark.size_bytes)), started)
        if events[0].get("fleet") == job.fleet
    ]
    return tuple(found[-1]) if found else ()


def _results(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_bytes())
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError("a list of records expected")
    except OSError as error:
        raise ArtifactError(f"results {path}: {error.strerror}; specialize again") from None
    except ValueError as error:
        raise ArtifactError(f"results {path} are damaged ({error}); specialize again") from None
    return rows


def book_of(folder: Path, round_: int) -> Book | None:
    """A folder's ledger, checked, up to a round; None where there is none."""
    path = folder / LEDGER
    if not path.exists():
        return None
    return book_at(checked(path, PublicKey.read(folder / PUBLIC)), round_)


def book_at(chain: Chain, round_: int) -> Book:
    """What a checked ledger holds up to a round."""
    entries = tuple(entry for entry in counted_entries(chain) if entry.round <= round_)
    recorded = sum(isinstance(entry, Round) for entry in entries)
    return Book(chain, entries, round_ - recorded)


def _seeds(folder: Path, training: JobRecord | None) -> tuple[int, ...]:
    """Seeds of the specialized runs beside this one that were trained by the same configuration."""
    if training is None:
        return ()
    found = {int(training.config["seed"])}
    branch = folder.parent.name == BRANCHES
    runs = folder.parent.parent.parent if branch else folder.parent
    inside = f"{BRANCHES}/{folder.name}/" if branch else ""
    for path in runs.glob(f"*/{inside}{run_record.RECORD}"):
        try:
            other = run_record.read(path.parent)
        except FedofaError:
            continue  # another run's record is another report's matter
        theirs = other.newest("train")
        if theirs is None or other.newest("specialize") is None:
            continue
        if _but_seed(theirs) == _but_seed(training):
            found.add(int(theirs.config["seed"]))
    return tuple(sorted(found))


def _but_seed(job: JobRecord) -> Row:
    """Its configuration, but for name, seed, and the seed of its data."""
    config = {key: part for key, part in job.config.items() if key not in ("name", "seed")}
    simulation = dict(config["simulation"])
    arguments = {k: v for k, v in simulation["arguments"].items() if k != "seed"}
    return {**config, "simulation": {**simulation, "arguments": arguments}}
