"""Does a model of one's own help? People whom a supernet never saw, each on some of their recordings.

A run on GeoTec HAR as in the accuracy benchmark; of two device classes the subnet that validates best
becomes files. Each of the five unknown people personalizes it by each method, with the settings that
`fedofa-device personalize` has (nothing was tuned on these people), and is tested on recordings of
their own that were not trained on. Accuracies of the network in float for each method; for `taps` also
of the int8 file that the device writes. Errors are over people: the mean over seeds of each is one value.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from fedofa.client.personal.methods import METHODS
from fedofa.client.personal.network import Network
from fedofa.client.personal.training import Schedule, trained
from fedofa.client.sensor_data import har
from fedofa.protos import durable
from fedofa.protos.data import ClientData, Examples
from fedofa.protos.file_layers import Layer, written
from fedofa.protos.inference import open_model
from fedofa.protos.manifest import FLOATS, FileEntry, Golden, Manifest
from fedofa.protos.observing import observe_ranges
from fedofa.protos.trainable import TRAINABLE_NAME, Trainable
from fedofa.server.limits import Limits
from fedofa.server.samplers.assigned import Assigned
from fedofa.server.tables import table
from fedofa.specialize.export import Subnet, complete, export_floats
from fedofa.supernet.axes import Weights, regions
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.space import Arch, plain
from fedofa.supernet.subnet import batch_norms
from fedofa.supernet.weights import gather
from rich.console import Console

from .accuracy import commit
from .accuracy_run import best_within, configuration, data_for
from .accuracy_tasks import TASKS, Task, data_folder
from .federation import Federation, fleet_of, rounds_for
from .subnet_accuracy import Pooled, recalibrated
from .timing import machine

TASK, SUBJECTS, UNKNOWN = "har", 23, 5
CLASSES = ("c0", "c3")
SEEDS = (0, 1, 2)
FORM, INT8 = "tflite", "tflite_int8"
Record = dict[str, Any]


def command(results: Path, seeds: int | None = None) -> None:
    """Run the seeds that are missing and print the table; the figures lie in RESULTS/personal.json."""
    path = results / "personal.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    for seed in SEEDS[:seeds]:
        if not any(row["seed"] == seed for row in kept):
            kept += one_seed(TASKS[TASK], seed)
            durable.make_folder(results)
            said = {"machine": machine(), "command": "fedofa bench personal", "rows": kept}
            durable.write(path, json.dumps(said, indent=1).encode())
    Console().print(table(summary(kept), "accuracy on people whom the supernet never saw, percent"))


def one_seed(task: Task, seed: int) -> list[Record]:
    """A run, then every method for each unknown person and class."""
    torch.set_num_threads(1)
    devices = fleet_of(task.source(seed), list(task.budgets()))
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = partial(configuration, task, "fedofa", seed, change={})
        rounds = rounds_for(Federation(make(rounds=8), devices, folder), task.budget_macs)
        run = Federation(make(rounds=rounds), devices, folder)
        run.train()
        weights, data = run.training.weights, data_for(task, devices, seed, test=False)
        for place, one in enumerate(CLASSES):
            limits = Limits(Budget(macs=task.budgets()[one]), run.config.recipe.batch_size)
            assigned, _, _ = best_within(task.space, limits, weights, data, (seed, place))
            files = _files(task, assigned.arch, weights, data.statistics, folder / one)
            for person in range(SUBJECTS - UNKNOWN, SUBJECTS):
                for row in _person(files, person, seed):
                    found.append({"class": one, "arch": dict(assigned.arch), **row})
    return [{"seed": seed, "commit": commit(), **row} for row in found]


class _Files:
    """A subnet's int8 file, and what a device trains it on."""

    def __init__(self, manifest: Manifest, trainable: Trainable, folder: Path) -> None:
        self.manifest, self.trainable, self.folder = manifest, trainable, folder

    @property
    def entry(self) -> FileEntry:
        return self.manifest.file(INT8)

    @property
    def content(self) -> bytes:
        return (self.folder / self.entry.name).read_bytes()

    def right(self, content: bytes, x: np.ndarray, y: np.ndarray) -> float:
        path = self.folder / "tried"
        path.write_bytes(content)
        return float((open_model(path, self.entry).run(x).argmax(1) == y).mean())


def _files(task: Task, arch: Arch, weights: Weights, statistics: Pooled, folder: Path) -> _Files:
    module = recalibrated(task.space, Assigned(arch), weights, statistics)
    values = gather(weights, regions(task.space, arch))
    flat = np.concatenate([values, *_norms(module)]).astype(np.float32)
    subnet = Subnet(plain(task.space.to_dict()), dict(arch), flat)
    exported = export_floats(subnet, (FORM,), folder)
    ranges = {FORM: observe_ranges(exported.observable[FORM], FLOATS[FORM], statistics.x)}
    completed = complete(subnet, folder, ranges)
    data = _data(SUBJECTS - 1, 0)
    manifest = Manifest(
        model="har.bench",
        version=1,
        device_class="bench",
        layout="NCT",
        normalization=data.normalization,
        classes=data.classes,
        space=plain(task.space.to_dict()),
        arch=dict(arch),
        supernet_sha256="0" * 64,
        cost=cost(task.space, arch).to_dict(),
        budget={},
        golden=Golden(input_shape=(1,), input=(0.0,), output=(0.0,), tolerance={}),
        files=tuple(completed.entries),
        trainable=completed.trainable,
    )
    content = (folder / TRAINABLE_NAME).read_bytes()
    return _Files(manifest, Trainable.from_bytes(content), folder)


def _norms(module: torch.nn.Module) -> list[np.ndarray]:
    """Mean then variance of each norm layer, in order."""
    norms = batch_norms(module).values()
    return [
        part.numpy() for n in norms for part in (n.running_mean, n.running_var) if part is not None
    ]


def _data(person: int, seed: int) -> ClientData:
    root = str(data_folder() / TASKS[TASK].folder)
    return har(root, client=person, clients=SUBJECTS, test_subjects=0, seed=seed)


def _person(files: _Files, person: int, seed: int) -> Iterator[Record]:
    data = _data(person, seed)
    train = Examples(data.normalized(data.train.x), data.train.y)
    x, y = data.normalized(data.validation.x), data.validation.y
    network = Network(files.manifest, files.trainable, INT8)
    limits = files.trainable.logits.get(INT8)

    def right(layers: Mapping[str, Layer]) -> float:
        return float((network.outputs(x, dict(layers)).argmax(1) == y).mean())

    told = {"person": person, "examples": len(train), "tested": len(y)}
    base = {"base": right({}), "base_int8": files.right(files.content, x, y)}
    for method in METHODS:
        begin = time.process_time()
        changes = trained(network, train, Schedule(method, seed=seed), limits)
        seconds = time.process_time() - begin
        layers = {name: c.applied(network.values(name)) for name, c in changes.items()}
        own = {
            "accuracy": right(layers),
            "changed": len(changes),
            "layers": len(network.all_layers),
        }
        if method == "taps":
            made = written(files.content, network.placed, layers)
            own["int8"] = files.right(made, x, y)
        size = sum(part.nbytes for c in changes.values() for part in c.parts().values())
        yield {**told, **base, "method": method, **own, "bytes": size, "cpu_seconds": seconds}


def summary(rows: Sequence[Record]) -> list[dict[str, str]]:
    """A line for each class and method: mean, gain over the published model with its error over people."""
    found = []
    for one in CLASSES:
        mine = [row for row in rows if row["class"] == one]
        for method in METHODS:
            own = [row for row in mine if row["method"] == method]
            if not own:
                continue
            line = {
                "class": one,
                "method": method,
                "published": f"{100 * mean(r['base'] for r in own):.1f}",
                "own": f"{100 * mean(r['accuracy'] for r in own):.1f}",
                "gain": _gain(own, "base", "accuracy"),
                "over head": _gain(_beside(mine, own, "head"), "beside", "accuracy"),
                "over full": _gain(_beside(mine, own, "full"), "beside", "accuracy"),
                "layers changed": f"{100 * mean(r['changed'] / r['layers'] for r in own):.0f} %",
                "bytes": f"{mean(r['bytes'] for r in own):,.0f}",
                "CPU-s": f"{mean(r['cpu_seconds'] for r in own):.1f}",
                "int8 gain": _gain(own, "base_int8", "int8") if "int8" in own[0] else "",
            }
            found.append(line)
    return found


def _beside(mine: Sequence[Record], own: Sequence[Record], method: str) -> list[Record]:
    """Each row with what another method reached for the same person and seed."""
    other = {(r["seed"], r["person"]): r["accuracy"] for r in mine if r["method"] == method}
    return [{**row, "beside": other[row["seed"], row["person"]]} for row in own]


def _gain(rows: Sequence[Record], before: str, after: str) -> str:
    """Points of accuracy gained, with the standard error over people."""
    people = sorted({row["person"] for row in rows})
    each = [mean(r[after] - r[before] for r in rows if r["person"] == p) for p in people]
    error = stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    return f"{100 * mean(each):+.1f} ± {100 * error:.1f}"
