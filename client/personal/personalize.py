"""From the model in use to a device's own: train, write into the file, compare, put in use.

The published model stays the one before: `fedofa-device rollback` returns to it, byte for byte. A
device's own model belongs to the manifest that it was made from; when another is pulled, it is left.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...protos import durable
from ...protos.data import ClientData, Examples
from ...protos.file_layers import Floats, Layer, written
from ...protos.golden import allowed
from ...protos.inference import InferenceModel, open_model
from ...protos.manifest import BareFile, FileEntry, Manifest, Personal
from ...protos.trainable import Trainable
from ...supernet.batch import resized
from ...supernet.errors import ArtifactError, RunError, UsageError
from ..golden import run_golden
from ..link import Address, Link
from ..pull import Retry, explained, fetch
from ..store import DeviceStore, Installed
from .adapter import Adapter
from .network import Network
from .training import Schedule, trained

PATIENCE_S = 60.0
"""How long another process may hold the store, a pull for instance."""
FLOAT_SHARE = 1e-3
"""How far a float file may be from its network, in shares of the range of the network's logits."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the file to train on comes from if it is not here yet; an adapter to apply, not to train."""

    address: Address | None = None
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class Personalized:
    """What came of it: the model in use now. `activated`: that is the one made here.

    Accuracies, fractions of 1, are of files on `examples` that were not trained on: the published one, the
    one that was in use before, the one made here. `adapter` holds what was changed.
    """

    model: Installed
    activated: bool
    adapter: Path
    layers: tuple[str, ...]
    all_layers: int
    examples: int
    base_accuracy: float | None
    before_accuracy: float | None
    accuracy: float | None


Tell = Callable[[int, float], None]


def personalize(
    store: DeviceStore,
    data: ClientData,
    schedule: Schedule,
    source: Source,
    *,
    force: bool = False,
    tell: Tell = lambda _epoch, _loss: None,
) -> Personalized:
    """Train the model in use on the device's own examples and use it where it is no worse.

    Worse means: right about fewer of `data.validation` than the published model, or than the one in
    use. `force` uses it all the same. UsageError for data of another task, a model that cannot be
    personalized, another model's adapter; RunError when training diverges or another model is put in
    use meanwhile; ArtifactError for damaged files. What is in use stays in use then.
    """
    if not len(data.validation) and not force:
        raise UsageError(
            "the data function gives no validation examples, so whether it helps could not be told; "
            "give some, or --force uses the device's own model all the same"
        )
    with explained(store):
        base, trainable, content = _base(store, source.address)
        _check_task(data, base.manifest)
        network = Network(base.manifest, trainable, base.kind)
        if source.adapter is None:
            examples = Examples(data.normalized(data.train.x), data.train.y)
            changes = trained(network, examples, schedule, trainable.logits.get(base.kind), tell)
            adapter = Adapter(base.manifest_sha256, schedule.method, changes)
        else:
            adapter = _read_adapter(source.adapter, network, base)
        layers = {
            name: change.applied(network.values(name)) for name, change in adapter.changes.items()
        }
        made = written(content, network.placed, layers)
        entry = base.manifest.file(base.kind)
        own = _Own(network, layers, adapter, adapter.to_bytes(), entry, made)
        validation = Examples(data.normalized(data.validation.x), data.validation.y)
        return _used(store, base, own, validation, force)


@dataclass(frozen=True, slots=True)
class _Own:
    """A device's own model, not yet in its store."""

    network: Network
    layers: dict[str, Layer]
    adapter: Adapter
    adapter_bytes: bytes
    entry: FileEntry
    content: bytes


def _base(store: DeviceStore, address: Address | None) -> tuple[Installed, Trainable, bytes]:
    """The published model that is in use, or that the one in use was made from, and its file."""
    with store.lock(PATIENCE_S):
        base = store.published()
        file = base.manifest.trainable
        if file is None:
            raise UsageError(
                f"version {base.manifest.version} of {base.manifest.model} was published without what "
                "a device needs to train it: its operator specializes again with export.trainable, or "
                "lets it have another file than one of 4-bit weights, which none trains further"
            )
        path = base.folder / file.name
        if not _holds(path, file):
            if address is None:
                raise UsageError(
                    f"{file.name} of version {base.manifest.version} is not here yet; give the depot, "
                    "--server HOST:PORT"
                )
            retry = Retry()
            with Link(address, retry.call_timeout_s) as link:
                fetch(link, store, file, path, retry)
        return base, Trainable.from_bytes(path.read_bytes()), base.model_path.read_bytes()


def _holds(path: Path, file: BareFile) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    except FileNotFoundError:
        return False


def _check_task(data: ClientData, manifest: Manifest) -> None:
    if data.classes != manifest.classes:
        raise UsageError(
            f"the data function's classes are {', '.join(data.classes)[:200]}; the model's are "
            f"{', '.join(manifest.classes)[:200]}"
        )
    if data.normalization != manifest.normalization:
        raise UsageError(
            f"the data function normalizes by {data.normalization}; the model by {manifest.normalization}"
        )


def _read_adapter(path: Path, network: Network, base: Installed) -> Adapter:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"adapter {path}: {error.strerror}") from None
    layers = {name: network.values(name) for name in network.layers}
    adapter = Adapter.from_bytes(content, layers, str(path))
    if adapter.base_sha256 != base.manifest_sha256:
        raise UsageError(
            f"adapter {path} belongs to the manifest {adapter.base_sha256}; the model in use has "
            f"{base.manifest_sha256}. What it learned does not carry over: personalize again"
        )
    return adapter


def _used(
    store: DeviceStore, base: Installed, own: _Own, validation: Examples, force: bool
) -> Personalized:
    """Compare, and put in use: under the store's lock, and only if the base is still the one."""
    # First of all, so that nothing that follows can lose what was learned.
    kept = store.keep_adapter(base, own.adapter_bytes)
    with store.lock(PATIENCE_S):
        before = store.require_current()
        if _pointing(store.published()) != _pointing(base):
            raise RunError(
                f"another model than version {base.manifest.version} was put in use meanwhile; what "
                f"was learned on that lies in {kept}; personalize again"
            )
        sha256 = hashlib.sha256(own.content).hexdigest()
        draft = store.part(sha256)
        try:
            durable.make_folder(draft.parent)
            durable.write(draft, own.content)
            entry = own.entry.model_copy(update={"sha256": sha256, "size_bytes": len(own.content)})
            model = open_model(draft, entry)
            others = [open_model(m.model_path, m.manifest.file(m.kind)) for m in (base, before)]
            told = _accuracies(own.network, validation, [*others, model])
            manifest = _manifest(base, own, entry, model, (len(validation), told))
            data = manifest.to_json()
            installed = store.find(data, manifest, base.kind)
            used = force or told is None or told[2] >= max(told[:2])
            if used:
                store.place(installed, data, draft)
                run_golden(installed.folder, installed.kind)
                store.activate(installed, before=base)
        finally:
            draft.unlink(missing_ok=True)
    accuracies = told or (None, None, None)
    return Personalized(
        model=installed if used else before,
        activated=used,
        adapter=kept,
        layers=tuple(own.adapter.changes),
        all_layers=len(own.network.all_layers),
        examples=len(validation),
        base_accuracy=accuracies[0],
        before_accuracy=accuracies[1],
        accuracy=accuracies[2],
    )


def _pointing(model: Installed) -> tuple[str, str]:
    return model.manifest_sha256, model.kind


def _accuracies(
    network: Network, validation: Examples, models: Sequence[InferenceModel]
) -> tuple[float, float, float] | None:
    """Of the published file, the one in use and the new one, on normalized examples; None without any."""
    if not len(validation):
        return None
    x = np.ascontiguousarray(resized(torch.from_numpy(validation.x), network.input_shape).numpy())
    base, before, own = (
        float((m.run(x).argmax(-1).ravel() == validation.y).mean()) for m in models
    )
    return base, before, own


def _manifest(
    base: Installed,
    own: _Own,
    entry: FileEntry,
    model: InferenceModel,
    told: tuple[int, tuple[float, float, float] | None],
) -> Manifest:
    """The device's own manifest: one file, the golden output of its network, what it was made of.

    ArtifactError when a float file does not do what the network does, RunError when that is nothing.
    """
    golden, (examples, accuracies) = base.manifest.golden, told
    x = np.asarray(golden.input, np.float32).reshape(golden.input_shape)
    reference, output = own.network.outputs(x, own.layers), model.run(x)
    if not np.isfinite(reference).all():
        raise RunError("personalization diverged: outputs are not finite; give a smaller --lr")
    tolerance = max(golden.tolerance.get(entry.kind, 0.0), allowed(output, reference, 0.0))
    difference = float(np.abs(output - reference).max())
    if entry.kind.endswith("fp32") and not difference <= _float_limit(reference):
        raise ArtifactError(
            f"{entry.name}: the file written here is off by {difference:.3g} from what was trained"
        )
    return base.manifest.model_copy(
        update={
            "files": (entry,),
            "metrics": {},
            "trainable": None,
            "golden": golden.model_copy(
                update={
                    "output": tuple(reference.ravel().tolist()),
                    "tolerance": {entry.kind: tolerance},
                }
            ),
            "personal": Personal(
                base_sha256=base.manifest_sha256,
                adapter_sha256=hashlib.sha256(own.adapter_bytes).hexdigest(),
                method=own.adapter.method,
                layers=tuple(own.adapter.changes),
                examples=examples,
                base_accuracy=accuracies[0] if accuracies else None,
                accuracy=accuracies[2] if accuracies else None,
            ),
        }
    )


def _float_limit(reference: Floats) -> float:
    return FLOAT_SHARE * max(1.0, float(np.ptp(reference)))
