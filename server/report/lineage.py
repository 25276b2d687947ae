"""From each published file back to subnet, supernet, rounds and devices; every link is checked.

    file ─ sha256 ─► manifest ─ sha256 ─► run.json (signed) ─► results, event logs
                        │ arch, supernet_sha256
                        ▼
    checkpoint ─ digest of its weights ─► ledger (signed): the round that left them, those before,
                                          and the devices whose updates each of them took in

A link that does not hold is told in words: what, where, and what to do.
"""

from dataclasses import dataclass
from typing import Any

from ...protos.manifest import FileEntry, Manifest
from ...supernet.errors import FedofaError
from ..checkpoint import CHECKPOINTS
from ..ledger_entries import arch_digest
from ..model_folders import MODELS
from . import links
from .facts import Facts


@dataclass(frozen=True, slots=True)
class Artifact:
    """One published file, and what it comes from. `rounds` counts those that shaped its weights."""

    device_class: str
    kind: str
    sha256: str
    manifest_sha256: str
    model: str
    version: int
    arch: str
    arch_sha256: str
    supernet_sha256: str
    round: int
    rounds: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Each artifact's way back; `broken` links in words, and `notes` of links that need no check."""

    artifacts: tuple[Artifact, ...]
    broken: tuple[str, ...]
    notes: tuple[str, ...]


def trace(facts: Facts) -> Lineage:
    """Follow every link of a specialized run; what does not hold is in `broken`."""
    published = facts.job.published
    assert published is not None  # noqa: S101 - a specialization that is done has it
    broken = [
        *links.logs(facts),
        *links.results(facts, published),
        *links.supernet(facts),
        *links.ledger(facts),
    ]
    notes: list[str] = []
    artifacts: list[Artifact] = []
    for name, sha256 in sorted(published.manifests.items()):
        folder = facts.folder / MODELS / name
        try:
            manifest = links.manifest_of(folder / "manifest.json", sha256)
        except FedofaError as error:
            broken.append(str(error))
            continue
        wrong = [*links.subnet(facts, name, manifest), *links.files(folder, manifest)]
        broken += wrong
        broken += links.in_registry(published, manifest, sha256, notes)
        if not wrong:
            artifacts += [_artifact(facts, manifest, sha256, entry) for entry in manifest.files]
    broken += links.strangers(facts)
    if not (facts.folder / CHECKPOINTS / f"round-{facts.job.round:06d}").exists() and not broken:
        notes.append(
            f"the checkpoint of round {facts.job.round} made room for newer ones "
            "(round.keep_checkpoints): its weights are known by the ledger's digest alone"
        )
    return Lineage(tuple(artifacts), tuple(broken), tuple(notes))


def _artifact(facts: Facts, manifest: Manifest, sha256: str, entry: FileEntry) -> Artifact:
    book = facts.book
    given = [] if book is None else [one.device for one in book.contributions if one.accepted]
    return Artifact(
        device_class=manifest.device_class,
        kind=entry.kind,
        sha256=entry.sha256,
        manifest_sha256=sha256,
        model=manifest.model,
        version=manifest.version,
        arch=facts.space.describe(facts.space.arch(manifest.arch)),
        arch_sha256=arch_digest(manifest.arch),
        supernet_sha256=manifest.supernet_sha256,
        round=facts.job.round,
        rounds=0 if book is None else len(book.rounds),
        devices=tuple(given),
    )


def told(lineage: Lineage) -> list[dict[str, Any]]:
    """A row for each artifact."""
    return [
        {
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
        }
        for one in lineage.artifacts
    ]
