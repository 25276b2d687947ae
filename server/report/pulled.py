"""What devices pull, where that is not the model which the report is about."""

from collections.abc import Collection
from pathlib import Path

from ...protos.manifest import Manifest
from ...supernet.errors import DepotError, FedofaError
from ..registry import DATABASE, Registry
from ..run_record import Published


def pulled(registry: Registry, device_class: str, channel: str) -> tuple[Manifest, str] | None:
    """The manifest that a channel gives devices of the class, and its sha256; None where none.

    ArtifactError where the registry is damaged.
    """
    try:
        return registry.resolve(device_class, channel)
    except DepotError:
        return None


def other_model(
    registry: Registry,
    published: Published,
    device_class: str,
    sha256: str,
    finished: Collection[str] = (),
) -> str | None:
    """In words, what devices pull for a class in place of the model with this manifest, if so.

    `finished` are the manifests of what was finished, which the report is about too.
    """
    found = pulled(registry, device_class, published.channel)
    where = f"registry {registry.root}: channel {published.channel!r}"
    if found is None:
        return (
            f"{where} gives devices of class {device_class!r} no model; this report's was withdrawn"
        )
    if found[1] == sha256:
        return None
    if found[1] in finished:
        return (
            f"{where} gives devices of class {device_class!r} {described(found[0])}: not the model of "
            "that class under Published models, but the one under Finished classes"
        )
    return (
        f"{where} gives devices of class {device_class!r} {described(found[0])}, which this report "
        "is not about; it is about what the newest specialization published"
    )


def described(manifest: Manifest) -> str:
    """A model in words, and what it was finished from."""
    told = manifest.finished
    of = "" if told is None else f" (finished by fedofa finish from version {told.version})"
    return f"{manifest.model}, version {manifest.version}{of}"


def instead(published: Published | None, device_class: str, sha256: str) -> str | None:
    """What devices pull for a class, described, where it is the model with this manifest."""
    if published is None or not (Path(published.registry) / DATABASE).exists():
        return None
    try:
        with Registry(Path(published.registry)) as registry:
            found = pulled(registry, device_class, published.channel)
    except FedofaError:
        return None  # the lineage says what is wrong with it
    if found is None or found[1] != sha256:
        return None
    return f"{described(found[0])}, which devices pull from channel {published.channel!r}"
