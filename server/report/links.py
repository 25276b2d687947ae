"""The links of a lineage, one check each: what does not hold is told in words."""

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

from ...protos.manifest import Manifest
from ...supernet.cost import cost
from ...supernet.errors import ArtifactError, FedofaError
from ...supernet.space import plain
from ...supernet.weights import digest
from ..checkpoint import CHECKPOINTS, CheckpointStore
from ..ledger_chain import LEDGER
from ..ledger_entries import LedgerError
from ..model_folders import MODELS, RESULTS
from ..registry import DATABASE, Registry
from ..run_record import RECORD, Published
from .facts import AGAIN, Facts
from .logs import Row
from .pulled import other_model


def results_file(path: Path, published: Published) -> Iterator[str]:
    """Whether a file is the one that a job left."""
    if _sha256(path) != published.results_sha256:
        yield f"results {path}: they are not those that {RECORD} noted; {AGAIN}"


def results(facts: Facts, published: Published) -> Iterator[str]:
    """Whether the results of the newest specialization, those that it left, are of its models."""
    if facts.changed["results"]:
        return  # said already
    path = facts.folder / RESULTS
    said = {str(row["class"]): str(row["manifest_sha256"]) for row in facts.results}
    if said != published.manifests:
        yield f"results {path}: their classes or manifests are not {RECORD}'s; {AGAIN}"


def supernet(facts: Facts) -> Iterator[str]:
    """The checkpoint that was specialized, where it is still kept."""
    store, number = CheckpointStore(facts.folder / CHECKPOINTS), facts.job.round
    kept = store.rounds()
    if number not in kept:
        if not kept or kept[0] < number:
            yield (
                f"checkpoint {store.folder}/round-{number:06d}: it is not there, and no newer one "
                "took its place; restore it, or train and specialize again"
            )
        return
    try:
        found = digest(store.read(number).weights)
    except FedofaError as error:
        yield f"{error}; restore it"
        return
    if found != facts.job.weights:
        yield (
            f"checkpoint {store.folder}/round-{number:06d}: its weights are {found}; "
            f"{RECORD} says that {facts.job.weights} were specialized; {AGAIN}"
        )


def ledger(facts: Facts) -> Iterator[str]:
    """The round that left the weights, and that the ledger still holds what was noted of it."""
    book, job, path = facts.book, facts.job, facts.folder / LEDGER
    if book is None:
        if facts.changed["ledger"]:
            return  # said already
        if job.head is not None:
            yield f"ledger {path}: it is not there; {RECORD} noted its head {job.head}; restore it"
        return
    try:
        if job.head is not None:
            book.chain.place(job.head)
    except LedgerError as error:
        yield f"{error}; {RECORD} noted that hash"
    if book.unrecorded == 0 and book.left != job.weights:
        yield (
            f"ledger {path}: round {job.round} left the weights {book.left}; "
            f"{RECORD} says that {job.weights} were specialized; {AGAIN}"
        )


def manifest_of(path: Path, sha256: str) -> Manifest:
    """A manifest with this sha256; ArtifactError for another one, or none."""
    found = _sha256(path)
    if found != sha256:
        what = f"its sha256 is {found}" if path.exists() else "it is not there"
        raise ArtifactError(f"manifest {path}: {what}; {RECORD} says {sha256}; {AGAIN}")
    return Manifest.from_json(path.read_bytes())


def subnet(
    facts: Facts, path: Path, manifest: Manifest, said: Row | None, results: str
) -> Iterator[str]:
    """Whether the manifest is about a subnet of the supernet that was specialized.

    `said` is what the file `results` has of it: nothing, or its architecture as `arch`.
    """
    where = f"manifest {path}"
    if manifest.supernet_sha256 != facts.job.weights:
        yield (
            f"{where}: it comes from the supernet {manifest.supernet_sha256}; "
            f"{facts.job.weights} was specialized; {AGAIN}"
        )
    if manifest.space != plain(facts.space.to_dict()):
        yield f"{where}: its search space is not that of the run; {AGAIN}"
        return
    if said is not None and said["arch"] != manifest.arch:
        yield f"{where}: its architecture is not that of {results}; {AGAIN}"
    try:
        spent = cost(facts.space, facts.space.arch(manifest.arch)).to_dict()
    except FedofaError as error:
        yield f"{where}: {error}; {AGAIN}"
        return
    if spent != manifest.cost:
        yield f"{where}: its architecture does not cost what it says; {AGAIN}"


def files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The files beside a manifest."""
    for entry in manifest.named().values():
        path = folder / entry.name
        found = _sha256(path)
        if found != entry.sha256:
            what = f"its sha256 is {found}" if path.exists() else "it is not there"
            yield f"file {path}: {what}; its manifest says {entry.sha256}; {AGAIN}"


def in_registry(
    published: Published, manifest: Manifest, sha256: str, notes: list[str]
) -> list[str]:
    """Whether the registry, which devices pull from, holds the same; noted where it is not there."""
    root = Path(published.registry)
    if not (root / DATABASE).exists():
        note = f"registry {root}: it is not there; what devices pull was not compared"
        notes += [] if note in notes else [note]
        return []
    broken = []
    try:
        with Registry(root) as registry:
            held = registry.manifest(manifest.model, manifest.version).to_json()
            if hashlib.sha256(held).hexdigest() != sha256:
                broken.append(
                    f"registry {root}: the manifest of {manifest.model}, version "
                    f"{manifest.version}, is not {sha256}; {AGAIN}"
                )
            for entry in manifest.named().values():
                path = registry.blob_path(entry.sha256)
                if _sha256(path) != entry.sha256:
                    broken.append(f"registry {root}: file {path} was changed; {AGAIN}")
    except FedofaError as error:
        broken.append(f"registry {root}: {error}; {AGAIN}")
    return broken


def now_pulled(published: Published, finished: Collection[str], notes: list[str]) -> Iterator[str]:
    """Notes where devices of a class pull another model; `finished` are manifests of finished ones."""
    root = Path(published.registry)
    if not (root / DATABASE).exists():
        return
    try:
        with Registry(root) as registry:
            found = [
                other_model(registry, published, name, sha256, finished)
                for name, sha256 in sorted(published.manifests.items())
            ]
    except FedofaError as error:
        yield f"registry {root}: {error}; {AGAIN}"
        return
    notes += [one for one in found if one is not None]


def strangers(facts: Facts, published: Published) -> Iterator[str]:
    """Models in the run folder that no job of the record published; of `published` all is said."""
    known = {
        (name, sha256)
        for job in facts.record.jobs
        if job.published is not None
        for name, sha256 in job.published.manifests.items()
    }
    for path in sorted((facts.folder / MODELS).glob("[!.]*/manifest.json")):
        name = path.parent.name
        if (name, _sha256(path)) not in known and name not in published.manifests:
            yield (
                f"manifest {path}: no specialization in {RECORD} published it: the last one did not "
                "end, or it was put there by hand; specialize again"
            )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)
