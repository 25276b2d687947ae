"""What a run folder says of a specialized run, read once and checked where it is read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...supernet.errors import ArtifactError, FedofaError, UsageError
from ...supernet.space import Space
from .. import run_record
from ..branches.places import FOLDER as BRANCHES
from ..branches.places import branch_folder
from ..checkpoint import CHECKPOINTS, CheckpointStore
from ..config import RunConfig, parse_config
from ..model_folders import RESULTS
from ..run_record import JobRecord, RunRecord
from . import logs
from .books import Book, book_of
from .logs import Row

AGAIN = "restore it, or specialize again"
Source = Literal["results", "events", "ledger"]
"""What items and figures rest on, beside the signed record."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A run's record and what its files hold.

    `training` is its last training that was done, None where none was recorded; `job` its newest
    specialization, whose configuration is `config`: that for the classes, or where there is none, for a
    fleet. `results` has a row for each published class.
    `trained` and `searched` are the events of all training and of `job`;
    `joined` the newest profile event of each device. `seeds` are those of runs beside this one that
    differ in name and seed only, its own among them.

    `changed` says in words which of its files are not what the jobs left: what rests on those is empty
    here, so that nothing is told from them.
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
    changed: Mapping[Source, tuple[str, ...]]

    @property
    def trained_by(self) -> RunConfig | None:
        """The configuration that the weights were trained by; None where it is not known.

        ArtifactError where this version takes it for none.
        """
        return None if self.training is None else config_of(self.folder, self.training)


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
    """Read it all; a file that is not what its job left is told in `changed`.

    UsageError for a folder without a run, or a run that is not specialized yet; ArtifactError for a
    record that is not whole, or results or a configuration that this version does not know.
    """
    record = _record(folder)
    job = record.newest("specialize") or record.newest("fleet")
    if job is None:
        raise UsageError(_unfinished(folder, record))
    training, config = record.newest("train"), config_of(folder, job)
    lost = tuple(logs.changed(folder, record))
    events = [] if lost else [event for log in logs.events(folder, record) for event in log]
    results, no_results = _results(folder / RESULTS, job)
    book, no_book = kept_book(folder, job.round)
    return Facts(
        folder=folder,
        record=record,
        training=training,
        job=job,
        config=config,
        space=config.build_space(),
        results=results,
        joined={str(e["device"]): e for e in events if e["event"] == "device_joined"},
        data_form=next((e for e in reversed(events) if e["event"] == "data_form"), None),
        trained=tuple(event for found in logs.jobs(events, "train") for event in found),
        searched=() if lost else logs.events_of(folder, job),
        book=book,
        seeds=_seeds(folder, training),
        changed={"results": no_results, "events": lost, "ledger": no_book},
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


def _results(path: Path, job: JobRecord) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The results of a specialization; or none, and in words that they are not what it left."""
    if job.published is None or job.kind != "specialize":
        return (), ()
    try:
        data = path.read_bytes()
    except OSError as error:
        return (), (f"results {path}: {error.strerror}; {AGAIN}",)
    if hashlib.sha256(data).hexdigest() != job.published.results_sha256:
        return (), (f"results {path}: they are not those that {run_record.RECORD} noted; {AGAIN}",)
    rows = json.loads(data)
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ArtifactError(f"results {path}: a list of records expected; specialize again")
    return tuple(rows), ()


def kept_book(folder: Path, round_: int) -> tuple[Book | None, tuple[str, ...]]:
    """A folder's ledger up to a round; or in words what is wrong with it."""
    try:
        return book_of(folder, round_), ()
    except FedofaError as error:
        return None, (str(error),)


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
        if _but_seed(theirs) == _but_seed(training) and isinstance(theirs.config.get("seed"), int):
            found.add(theirs.config["seed"])
    return tuple(sorted(found))


def _but_seed(job: JobRecord) -> Row:
    """Its configuration, but for name, seed, and the seed of its data; of another version as it is."""
    config = {key: part for key, part in job.config.items() if key not in ("name", "seed")}
    simulation = config.get("simulation")
    if not isinstance(simulation, dict) or not isinstance(simulation.get("arguments"), dict):
        return config
    arguments = {k: v for k, v in simulation["arguments"].items() if k != "seed"}
    return {**config, "simulation": {**simulation, "arguments": arguments}}
