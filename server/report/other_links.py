"""Links that only a fleet's plan or a finishing has: to the registry's devices, and to where it began."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from ...protos.manifest import Manifest
from ...supernet.errors import FedofaError
from ...supernet.weights import digest
from .. import registry_plans
from ..finishing.start import START, read_start
from ..fleet_report import ASSIGNMENT
from ..ledger_chain import LEDGER
from ..model_folders import MODELS
from ..registry import DATABASE, Registry
from ..run_record import RECORD, Published
from .facts import AGAIN
from .others import FinishingFacts, FleetFacts


def settled(fleet: FleetFacts, published: Published, notes: list[str]) -> Iterator[str]:
    """Whether the registry gives each device what the assignment says; other plans are noted."""
    root, given = Path(published.registry), fleet.assignment
    if given is None or not (root / DATABASE).exists():
        return  # said already
    own = (fleet.facts.config.name, fleet.name)
    try:
        with Registry(root) as registry:
            held = registry_plans.devices_of(registry, *own, published.channel)
            naming = registry_plans.naming(registry, published.channel)
    except FedofaError as error:
        yield f"registry {root}: {error}; {AGAIN}"
        return
    versions = {row["device_class"]: row["version"] for row in given["artifacts"]}
    said = {
        row["device"]: (f"{own[0]}.{row['device_class']}", versions.get(row["device_class"]))
        for row in given["devices"]
    }
    where = f"registry {root}: channel {published.channel!r}"
    if held != said:
        other = sum(held.get(device) != one for device, one in said.items())
        notes.append(
            f"{where} does not give {other} of {len(said)} devices what {fleet.folder / ASSIGNMENT} "
            "says: a newer plan of that fleet was settled there, or none is"
        )
        return
    elsewhere = sum(naming.get(device) != own for device in said)
    if elsewhere:
        notes.append(
            f"{where} gives {elsewhere} of {len(said)} devices of fleet {fleet.name} what the plan of "
            "another fleet says, which was settled later"
        )


def strangers(fleet: FleetFacts, published: Published) -> Iterator[str]:
    """Models in a fleet's folder that neither a job of the record nor the registry knows.

    Those of former plans stay there, also of one whose job failed after it had published some.
    """
    jobs = [job.published for job in fleet.facts.record.jobs if job.fleet == fleet.name]
    known = {item for left in jobs if left is not None for item in left.manifests.items()}
    for path in sorted((fleet.folder / MODELS).glob("[!.]*/manifest.json")):
        data, name = path.read_bytes(), path.parent.name
        if name in published.manifests or (name, sha256(data).hexdigest()) in known:
            continue
        if not _in_registry(Path(published.registry), name, data):
            yield (
                f"manifest {path}: no job for fleet {fleet.name} in {RECORD} published it, and the "
                "registry does not hold it: it was put there by hand; remove that folder"
            )


def _in_registry(root: Path, device_class: str, data: bytes) -> bool:
    """Whether the registry holds these bytes as a manifest of the class."""
    if not (root / DATABASE).exists():
        return False
    try:
        manifest = Manifest.from_json(data)
        with Registry(root) as registry:
            held = registry.manifest(manifest.model, manifest.version).to_json()
    except FedofaError:
        return False
    return manifest.device_class == device_class and held == data


def begun(one: FinishingFacts) -> Iterator[str]:
    """Whether a finishing began with weights that the run's ledger knows."""
    folder, start, book = one.facts.folder, one.start, one.facts.book
    try:
        found = read_start(folder)
        kept = None if found is None else digest(found[1].weights)
    except FedofaError as error:
        yield f"{error}; restore it"
        return
    if kept != start.supernet_sha256:
        yield (
            f"checkpoint {folder / START}: its weights are {kept}; the finishing says that it began "
            f"with {start.supernet_sha256}; restore it"
        )
    first = None if book is None else book.first
    if first is not None and first != start.supernet_sha256:
        yield (
            f"ledger {folder / LEDGER}: it begins with the weights {first}, not with those of "
            f"{START}/, {start.supernet_sha256}; restore it"
        )
    run = one.begun
    if run is not None and run.unrecorded == 0 and run.left != start.supernet_sha256:
        yield (
            f"ledger {run.chain.path}: round {start.round} left the weights {run.left}; the "
            f"finishing {folder} began with {start.supernet_sha256}, which are not the run's; restore it"
        )


def finished(one: FinishingFacts, manifest: Manifest) -> Iterator[str]:
    """Whether a manifest says of its finishing what that says of itself."""
    told, start = manifest.finished, one.start
    where = f"manifest of {manifest.model}, version {manifest.version}"
    if told is None:
        yield f"{where}: it does not say that it was finished; {RECORD} in {one.facts.folder} does"
        return
    if not start.led_to(told):
        said = (told.run, told.round, told.supernet_sha256, told.version, told.rounds)
        own = (start.run, start.round, start.supernet_sha256, start.version, start.rounds)
        yield (
            f"{where}: it was finished from {said}; {one.facts.folder / START} says {own} "
            "(run, round, weights, version, rounds); restore it"
        )
