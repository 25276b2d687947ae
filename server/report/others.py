"""What else of a run was published: the artifacts of its fleets' settled plans, and finished classes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...supernet.errors import ArtifactError, FedofaError
from .. import run_record
from ..finishing.start import FINISHED, OUTCOME, START, Start, read_start
from ..fleet_plan import FOLDER as FLEETS
from ..fleet_report import ASSIGNMENT
from ..run_record import RECORD, JobRecord, RunRecord
from . import logs
from .books import Book, book_at
from .facts import Facts, config_of, kept_book
from .logs import Row


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """A fleet's newest plan that was carried out. `facts` are as of that job, without classes' results.

    `assignment` is None where the file is not the one that the job left.
    """

    name: str
    folder: Path
    facts: Facts
    assignment: Row | None


@dataclass(frozen=True, slots=True)
class FinishingFacts:
    """A class's finishing that is over. `facts` are those of its own folder, record and ledger.

    `outcome` is None where the file is not the one that it left; `begun` is the run's ledger up to the
    round that it was finished from.
    """

    device_class: str
    facts: Facts
    start: Start
    outcome: Row | None
    begun: Book | None


@dataclass(frozen=True, slots=True)
class Others:
    """All of them; `broken` and `notes` are about those that cannot be followed, in words."""

    fleets: tuple[FleetFacts, ...]
    finishings: tuple[FinishingFacts, ...]
    broken: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def manifests(self) -> Mapping[str, str]:
        """Class → sha256 of its manifest, of each artifact of a fleet."""
        jobs = [fleet.facts.job.published for fleet in self.fleets]
        return {name: sha for left in jobs if left for name, sha in left.manifests.items()}

    @property
    def finished(self) -> frozenset[str]:
        """sha256 of the manifest of each model that was finished."""
        jobs = [one.facts.job.published for one in self.finishings]
        return frozenset(sha for left in jobs if left for sha in left.manifests.values())


def read(facts: Facts) -> Others:
    """Read what there is of a run; what is damaged is told in `broken`, and the others are read."""
    broken: list[str] = []
    notes: list[str] = []
    fleets: list[FleetFacts] = []
    finishings: list[FinishingFacts] = []
    for name in _fleets(facts, notes):
        job = facts.record.newest("fleet", name)
        if job is None:
            notes.append(f"fleet {name}: its plan was not carried out to the end yet")
            continue
        try:
            fleets.append(_fleet(facts, name, job))
        except FedofaError as error:
            broken.append(f"fleet {name}: {error}")
    for begun in sorted((facts.folder / FINISHED).glob(f"*/{START}")):
        try:
            found = _finishing(facts, begun.parent)
        except FedofaError as error:
            broken.append(str(error))
            continue
        if isinstance(found, str):
            notes.append(found)
        else:
            finishings.append(found)
    return Others(tuple(fleets), tuple(finishings), tuple(broken), tuple(notes))


def _fleets(facts: Facts, notes: list[str]) -> list[str]:
    """The fleets of the record; of others that have an assignment it is noted that they are not."""
    known = facts.record.fleets
    for path in sorted((facts.folder / FLEETS).glob(f"*/{ASSIGNMENT}")):
        if path.parent.name not in known:
            notes.append(
                f"{path}: no job in {RECORD} is about that fleet, so its artifacts were not followed; "
                "fedofa specialize --fleet again"
            )
    return list(known)


def _fleet(facts: Facts, name: str, job: JobRecord) -> FleetFacts:
    folder = facts.folder / FLEETS / name
    mine = _as_of(facts, facts.record, job, facts.folder)
    return FleetFacts(name, folder, mine, _left(folder / ASSIGNMENT, job))


def _finishing(facts: Facts, folder: Path) -> FinishingFacts | str:
    """A finishing; or in words that it is not over."""
    if not (folder / RECORD).exists():
        return (
            f"finishing {folder}: it has no {RECORD}, so its files were not followed: it is of an "
            "older version, or was stopped as it began"
        )
    record = run_record.read(folder)
    job, begun = record.newest("finish"), read_start(folder)
    if job is None:
        return f"finishing {folder}: it is not over; fedofa finish --resume goes on with it"
    if begun is None:
        raise ArtifactError(f"finishing {folder / START}: it holds no checkpoint; restore it")
    mine = _as_of(facts, record, job, folder)
    start = begun[0]
    from_run = _book_at(facts, start.round)
    return FinishingFacts(folder.name, mine, start, _left(folder / OUTCOME, job), from_run)


def _as_of(facts: Facts, record: RunRecord, job: JobRecord, folder: Path) -> Facts:
    """The facts of another job, in the run's folder or in one of its own."""
    config = config_of(folder, job)
    if folder == facts.folder:
        lost, no_book = facts.changed["events"], facts.changed["ledger"]
        book = _book_at(facts, job.round)
    else:
        lost = tuple(logs.changed(folder, record))
        book, no_book = kept_book(folder, job.round)
    events = () if lost else logs.events_of(folder, job)
    return replace(
        facts,
        folder=folder,
        record=record,
        job=job,
        config=config,
        space=config.build_space(),
        results=(),
        trained=events,
        searched=events,
        book=book,
        changed={"results": (), "events": lost, "ledger": no_book},
    )


def _book_at(facts: Facts, round_: int) -> Book | None:
    """The run's ledger up to a round; read anew only where that is another than the report's."""
    if facts.book is None or round_ == facts.job.round:
        return facts.book
    return book_at(facts.book.chain, round_)


def _left(path: Path, job: JobRecord) -> Row | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None  # the lineage says so
    if job.published is None or hashlib.sha256(data).hexdigest() != job.published.results_sha256:
        return None
    found: dict[str, Any] = json.loads(data)
    return found
