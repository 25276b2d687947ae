"""From each published file back to subnet, supernet, rounds and devices; every link is checked.

    file ─ sha256 ─► manifest ─ sha256 ─► run.json (signed) ─► results, event logs
                        │ arch, supernet_sha256
                        ▼
    checkpoint ─ digest of its weights ─► ledger (signed): the round that left them, those before,
                                          and the devices whose updates each of them took in

A fleet's artifacts go the same way, by the record's entry of the job that settled its plan. A finishing has
record, checkpoints and ledger of its own, which lead to the checkpoint that it began with (`start/`), and
from there to the run's ledger.

A link that does not hold is told in words: what, where, and what to do.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...protos.manifest import FileEntry, Manifest
from ...supernet.errors import FedofaError
from ..checkpoint import CHECKPOINTS
from ..finishing.start import OUTCOME
from ..fleet_report import ASSIGNMENT
from ..ledger_entries import arch_digest
from ..model_folders import MODELS, RESULTS
from . import links, other_links
from .facts import Facts
from .logs import Row
from .others import FinishingFacts, FleetFacts, Others

CLASSES = "classes"
"""What the models of a specialization for the classes are of."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One published file, and what it comes from. `rounds` counts those that shaped its weights.

    `of` says for what it was published. `supernet_sha256` is of the weights that it was cut from;
    where they were finished, `from_sha256` is of the run's, from which the finishing began.
    """

    of: str
    device_class: str
    kind: str
    sha256: str
    manifest_sha256: str
    model: str
    version: int
    arch: str
    arch_sha256: str
    supernet_sha256: str
    from_sha256: str | None
    round: int
    rounds: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Each artifact's way back; `broken` links in words, and `notes` of links that need no check."""

    artifacts: tuple[Artifact, ...]
    broken: tuple[str, ...]
    notes: tuple[str, ...]


def trace(facts: Facts, others: Others) -> Lineage:
    """Follow every link of a specialized run; what does not hold is in `broken`."""
    said = [line for lines in facts.changed.values() for line in lines]
    work = _Tracing([*said, *others.broken], list(others.notes))
    if facts.job.kind == "specialize":
        work.classes(facts, others.finished)
    for fleet in others.fleets:
        work.fleet(fleet)
    for finishing in others.finishings:
        work.finishing(finishing)
    return Lineage(tuple(work.artifacts), tuple(work.broken), tuple(work.notes))


@dataclass(slots=True)
class _Tracing:
    """What was found so far."""

    broken: list[str]
    notes: list[str]
    artifacts: list[Artifact] = field(default_factory=list)

    def classes(self, facts: Facts, finished: Collection[str]) -> None:
        """What the newest specialization published for the run's classes; `finished`: manifests."""
        published = facts.job.published
        assert published is not None  # noqa: S101 - a specialization that is done has it
        self.broken += [
            *links.results(facts, published),
            *links.supernet(facts),
            *links.ledger(facts),
        ]
        said = {str(row["class"]): row for row in facts.results}
        self._models(_Models(CLASSES, facts, facts.folder / MODELS, said, RESULTS))
        self.broken += links.now_pulled(published, finished, self.notes)
        self.broken += links.strangers(facts, published)

    def fleet(self, fleet: FleetFacts) -> None:
        """What the newest settled plan of a fleet published."""
        facts, published = fleet.facts, fleet.facts.job.published
        assert published is not None  # noqa: S101 - it is of a job that is done
        self.broken += [
            *links.results_file(fleet.folder / ASSIGNMENT, published),
            *links.supernet(facts),
            *links.ledger(facts),
            *other_links.settled(fleet, published, self.notes),
        ]
        rows = [] if fleet.assignment is None else fleet.assignment["artifacts"]
        said = {str(row["device_class"]): row for row in rows}
        of = f"fleet {fleet.name}"
        self._models(_Models(of, facts, fleet.folder / MODELS, said, ASSIGNMENT))
        self.broken += other_links.strangers(fleet, published)

    def finishing(self, one: FinishingFacts) -> None:
        """What a finishing published, if it did, and what it began with."""
        facts, published = one.facts, one.facts.job.published
        assert published is not None  # noqa: S101 - it is of a job that is done
        self.broken += [
            *(line for lines in facts.changed.values() for line in lines),
            *links.results_file(facts.folder / OUTCOME, published),
            *links.supernet(facts),
            *links.ledger(facts),
            *other_links.begun(one),
        ]
        found = self._models(
            _Models(f"finishing {one.device_class}", facts, facts.folder / MODELS, {}, OUTCOME, one)
        )
        self.broken += [line for made in found for line in other_links.finished(one, made)]
        self.broken += links.strangers(facts, published)

    def _models(self, models: "_Models") -> list[Manifest]:
        """The manifests and files that a job published; those that are whole become artifacts."""
        facts, published = models.facts, models.facts.job.published
        assert published is not None  # noqa: S101 - it is of a job that is done
        whole: list[Manifest] = []
        for name, sha256 in sorted(published.manifests.items()):
            path = models.folder / name / "manifest.json"
            try:
                manifest = links.manifest_of(path, sha256)
            except FedofaError as error:
                self.broken.append(str(error))
                continue
            said = models.said.get(name)
            wrong = [
                *links.subnet(facts, path, manifest, said, models.results),
                *links.files(path.parent, manifest),
            ]
            self.broken += wrong
            self.broken += links.in_registry(published, manifest, sha256, self.notes)
            if not wrong:
                whole.append(manifest)
                self.artifacts += [
                    _artifact(models, manifest, sha256, entry) for entry in manifest.files
                ]
        checkpoint = facts.folder / CHECKPOINTS / f"round-{facts.job.round:06d}"
        if not checkpoint.exists() and not self.broken:
            note = (
                f"the checkpoint of round {facts.job.round} made room for newer ones "
                "(round.keep_checkpoints): its weights are known by the ledger's digest alone"
            )
            self.notes += [] if note in self.notes else [note]
        return whole


@dataclass(frozen=True, slots=True)
class _Models:
    """Models that one job published: for what, by which facts, where, and what its results say."""

    of: str
    facts: Facts
    folder: Path
    said: Mapping[str, Row]
    results: str
    finishing: FinishingFacts | None = None


def _artifact(models: _Models, manifest: Manifest, sha256: str, entry: FileEntry) -> Artifact:
    facts, finishing = models.facts, models.finishing
    books = [facts.book] if finishing is None else [finishing.begun, facts.book]
    kept = [book for book in books if book is not None]
    given = [device for book in kept for device in book.devices]
    return Artifact(
        of=models.of,
        device_class=manifest.device_class,
        kind=entry.kind,
        sha256=entry.sha256,
        manifest_sha256=sha256,
        model=manifest.model,
        version=manifest.version,
        arch=facts.space.describe(facts.space.arch(manifest.arch)),
        arch_sha256=arch_digest(manifest.arch),
        supernet_sha256=manifest.supernet_sha256,
        from_sha256=None if finishing is None else finishing.start.supernet_sha256,
        round=facts.job.round if finishing is None else finishing.start.round,
        rounds=sum(len(book.rounds) for book in kept),
        devices=tuple(dict.fromkeys(given)),
    )


def told(lineage: Lineage) -> list[dict[str, Any]]:
    """A row for each artifact."""
    return [
        {
            "of": one.of,
            "class": one.device_class,
            "kind": one.kind,
            "model": one.model,
            "version": one.version,
            "arch": one.arch,
            "round": one.round,
            "rounds": one.rounds,
            "devices": list(one.devices),
            "file_sha256": one.sha256,
            "manifest_sha256": one.manifest_sha256,
            "arch_sha256": one.arch_sha256,
            "supernet_sha256": one.supernet_sha256,
            "from_sha256": one.from_sha256,
        }
        for one in lineage.artifacts
    ]
