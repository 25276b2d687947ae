"""A finishing that was cut off after its model was in the registry, and before it said so.

Devices pull that model already. It is not made again: the registry has its files, the manifest its gain and
what it was finished from, and the finishing's event log the comparison that decided.
"""

import shutil
from pathlib import Path
from typing import Any

from ...protos.manifest import Manifest
from ...supernet.weights import digest
from ..checkpoint import CHECKPOINTS, CheckpointStore
from ..events import read_events
from ..model_folders import ModelFolders
from ..registry import DATABASE, Registry
from .start import Start

COMPARED = (
    "better", "verdict", "before", "after", "gain", "standard_error", "gained", "lost", "p",
    "examples",
)  # fmt: skip
DEVICES = ("expanded", "alone", "left_out")


def own_model(folder: Path, registry: Path, start: Start) -> Manifest | None:
    """The model that the finishing in this folder has published, whatever came after it; None: none.

    It is that of its newest checkpoint, and its manifest says that it was finished from this start.
    ArtifactError where checkpoints or registry are damaged.
    """
    found = CheckpointStore(folder / CHECKPOINTS).latest()
    if found is None or not (registry / DATABASE).exists():
        return None
    weights, model = digest(found.weights), f"{start.run}.{start.device_class}"
    with Registry(registry) as known:
        for version in reversed(known.versions(model)):
            manifest = known.manifest(model, version)
            told = manifest.finished
            if told is not None and manifest.supernet_sha256 == weights and start.led_to(told):
                return manifest
    return None


def restored(folders: ModelFolders, registry: Path, manifest: Manifest) -> Path:
    """Put a published model into its folder, from the registry; returns its manifest's path.

    DepotError or ArtifactError where the registry lacks a file of it, OSError where it cannot be written.
    """
    folders.sweep()
    draft = folders.draft(manifest.device_class)
    try:
        with Registry(registry) as known:
            for entry in manifest.named().values():
                shutil.copyfile(known.blob_path(entry.sha256), draft / entry.name)
        (draft / "manifest.json").write_bytes(manifest.to_json())
        return folders.publish(manifest.device_class) / "manifest.json"
    finally:
        folders.discard(manifest.device_class)


def compared_row(log: Path, manifest: Manifest) -> dict[str, Any]:
    """The comparison that led to a finished model, as `Compared.to_row` has it.

    By the event log; where that has none of this gain, by the manifest, and None for what it does
    not say.
    """
    told = manifest.finished
    assert told is not None  # noqa: S101 - it is of a finished model
    after = manifest.metrics.get("validation_accuracy.pytorch")
    row: dict[str, Any] = dict.fromkeys(COMPARED) | {
        "better": True,
        "verdict": f"better: {100 * told.gain:+.2f} ± {100 * told.standard_error:.2f} points",
        "before": None if after is None else after - told.gain,
        "after": after,
        "gain": told.gain,
        "standard_error": told.standard_error,
    }
    for event, _ in read_events(log):
        figures = (event.get("gain"), event.get("standard_error"))
        if event.get("event") == "compared" and figures == (told.gain, told.standard_error):
            row = {name: event.get(name) for name in COMPARED}
    late = f"version {manifest.version} was published before this finishing was cut off"
    return row | {"verdict": f"{row['verdict']}; {late}"}


def devices_row(log: Path) -> dict[str, Any]:
    """Which devices took part, by the event log; None for a part that it does not say."""
    row: dict[str, Any] = dict.fromkeys(DEVICES)
    for event, _ in read_events(log):
        if event.get("event") == "finishing":
            row = {name: event.get(name) for name in DEVICES}
    return row
