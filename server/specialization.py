"""From a trained supernet to a published model for each device class."""

import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..protos.inference import Ranges
from ..protos.manifest import FILE_NAMES, FileEntry, FileKind, Golden, Manifest
from ..protos.subnets import flat_statistics
from ..specialize.export import (
    FLOATS,
    FloatExport,
    Subnet,
    export_floats,
    module_of,
    quantize,
    workers,
)
from ..specialize.filesize import largest_int8_bytes
from ..specialize.ranges import merge
from ..specialize.verify import outputs_in_fresh_process
from ..supernet.axes import Weights, regions
from ..supernet.cost import Budget, cost
from ..supernet.errors import ExportError, FedofaError, RunError
from ..supernet.randomness import array_stream
from ..supernet.space import Arch, Space, plain
from ..supernet.weights import digest, gather
from .class_search import Choice, search_classes
from .config import RunConfig
from .evaluation import Exported, FederatedEvaluator, FileMeasured, FloatFile
from .events import EventLog
from .exchange import Exchange
from .fleet import Fleet
from .registry import Registry

RESULTS = "specialized.json"
WORKERS = 2
STEPS = (
    "measuring sampled subnets",
    "searching",
    "measuring finalists",
    "exporting",
    "observing activation ranges",
    "quantizing",
    "verifying on devices",
    "publishing",
)
# A golden test must pass on another processor's arithmetic too.
GOLDEN_MARGIN, GOLDEN_FLOOR = 2.0, 1e-4


@dataclass(frozen=True, slots=True)
class Specialized:
    """One class's result, as the run's report gives it."""

    device_class: str
    manifest: Manifest
    manifest_path: Path
    choice: Choice
    figures: Mapping[FileKind, FileMeasured]


@dataclass(slots=True)
class _Work:
    """One class on its way: what is known of it so far."""

    choice: Choice
    subnet: Subnet
    folder: Path
    floats: FloatExport | None = None
    ranges: dict[str, Ranges] | None = None
    entries: list[FileEntry] | None = None


class Specialization:
    """The whole way for every class of a configuration. A class that fails leaves the others."""

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        weights: Weights,
        exchange: Exchange,
        fleet: Fleet,
        log: EventLog,
    ) -> None:
        self._config, self._space, self._weights = config, space, weights
        self._fleet, self._log = fleet, log
        self._evaluator = FederatedEvaluator(exchange, fleet, space, weights, log)
        self._evaluator.deadline_s = config.round.deadline_s
        self._evaluator.batch_size = config.search.batch_size
        self._digest = digest(weights)
        self._done = 0

    def run(self, folder: Path, registry_root: Path) -> list[Specialized]:
        """Search, export, quantize, verify, publish; RunError when no class could be published."""
        with workers(WORKERS) as pool:
            warm = [pool.submit(int) for _ in range(WORKERS)]
            choices = search_classes(
                self._config, self._space, self._evaluator, self._fits(), self._tell
            )
            works = {name: self._work(choice, folder) for name, choice in choices.items()}
            del warm
            self._export(pool, works)
            self._observe(works)
            self._quantize(pool, works)
        figures = self._verify(works)
        self._tell("publishing")
        registry = Registry(registry_root)
        results = []
        for name, work in works.items():
            try:
                results.append(self._publish(registry, name, work, figures[name]))
            except FedofaError as error:
                self._fail(name, error)
        if not results:
            raise RunError("no class could be published; see the event log for the reasons")
        write_results(folder / RESULTS, results)
        return results

    def _fits(self) -> dict[str, Callable[[Arch], bool]]:
        def check(budget: Budget) -> Callable[[Arch], bool]:
            # Memory for training does not bound what a device can run.
            running = replace(budget, train_memory_bytes=None)
            return lambda arch: running.fits(cost(self._space, arch), file_bytes=self._size(arch))

        return {name: check(c.budget()) for name, c in self._config.classes.items()}

    def _size(self, arch: Arch) -> int:
        return largest_int8_bytes(self._config.export.formats, self._space.layers(arch))

    def _tell(self, what: str) -> None:
        self._done = STEPS.index(what)
        self._log("step", what=what, done=self._done, total=len(STEPS))

    def _fail(self, name: str, error: BaseException) -> None:
        self._log("class_failed", device_class=name, reason=str(error))

    def _work(self, choice: Choice, folder: Path) -> _Work:
        arch = choice.best.arch
        values = np.concatenate(
            [gather(self._weights, regions(self._space, arch)), flat_statistics(choice.statistics)]
        )
        subnet = Subnet(plain(self._space.to_dict()), dict(arch), values)
        return _Work(choice, subnet, folder / "models" / choice.device_class)

    def _export(self, pool: ProcessPoolExecutor, works: dict[str, _Work]) -> None:
        self._tell("exporting")
        formats = self._config.export.formats
        futures = {
            name: pool.submit(export_floats, work.subnet, formats, work.folder)
            for name, work in works.items()
        }
        for name, exported in self._settled(futures, works):
            works[name].floats = exported

    def _observe(self, works: dict[str, _Work]) -> None:
        self._tell("observing activation ranges")
        files, owners = [], []
        for name, work in works.items():
            if work.floats is None:
                raise ExportError(f"{name}: not exported")
            for form, content in work.floats.observable.items():
                shape, budget = work.floats.input_shape, work.choice.budget
                files.append(FloatFile(FLOATS[form], shape, content, budget))
                owners.append((name, form))
        if not files:
            return
        most = self._config.export.calibration_examples
        for (name, form), parts in zip(owners, self._evaluator.ranges(files, most), strict=True):
            known = works[name].ranges or {}
            works[name].ranges = {**known, form: merge(parts)}

    def _quantize(self, pool: ProcessPoolExecutor, works: dict[str, _Work]) -> None:
        self._tell("quantizing")
        futures = {
            name: pool.submit(quantize, work.folder, work.ranges or {})
            for name, work in works.items()
        }
        for name, entries in self._settled(futures, works):
            works[name].entries = entries

    def _settled(
        self, futures: Mapping[str, Future[Any]], works: dict[str, _Work]
    ) -> list[tuple[str, Any]]:
        """Results by class; a class whose worker failed is reported and goes no further."""
        found = []
        for name, future in futures.items():
            error = future.exception()
            if error is None:
                found.append((name, future.result()))
            else:
                self._fail(name, error)
                del works[name]
        return found

    def _verify(self, works: dict[str, _Work]) -> dict[str, list[FileMeasured]]:
        self._tell("verifying on devices")
        if not works:
            return {}
        exports = [
            Exported(
                work.choice.best.arch,
                work.choice.statistics,
                work.choice.budget,
                [(e, (work.folder / e.name).read_bytes()) for e in work.entries or []],
            )
            for work in works.values()
        ]
        figures: list[list[FileMeasured]] = self._evaluator.verify(exports)
        return dict(zip(works, figures, strict=True))

    def _publish(
        self, registry: Registry, name: str, work: _Work, figures: list[FileMeasured]
    ) -> Specialized:
        entries = work.entries or []
        _check_sizes(entries, work.choice.budget)
        by_kind: dict[FileKind, FileMeasured] = {
            entry.kind: figure for entry, figure in zip(entries, figures, strict=True)
        }
        self._check(by_kind)
        draft = self._manifest(name, work, entries, by_kind)
        paths = {entry.kind: work.folder / entry.name for entry in entries}
        manifest = registry.publish(draft, paths)
        path = work.folder / "manifest.json"
        path.write_bytes(manifest.to_json())
        self._log("published", device_class=name, model=manifest.model, version=manifest.version)
        return Specialized(name, manifest, path, work.choice, by_kind)

    def _check(self, figures: Mapping[FileKind, FileMeasured]) -> None:
        """ExportError where a file is not what its subnet is."""
        limits = self._config.export
        for kind, figure in figures.items():
            if not math.isfinite(figure.max_difference):
                raise ExportError(f"{kind}: a device's outputs differ beyond measure")
            drop = figure.reference.accuracy - figure.file.accuracy
            if drop > limits.max_accuracy_drop:
                raise ExportError(
                    f"{kind} loses {drop:.3f} of accuracy on the devices; "
                    f"export.max_accuracy_drop = {limits.max_accuracy_drop}"
                )
            if kind.endswith("fp32") and not figure.max_difference <= limits.max_float_difference:
                raise ExportError(
                    f"{kind} is off by {figure.max_difference:.3g} from PyTorch; "
                    f"export.max_float_difference = {limits.max_float_difference}"
                )

    def _manifest(
        self,
        name: str,
        work: _Work,
        entries: list[FileEntry],
        figures: Mapping[FileKind, FileMeasured],
    ) -> Manifest:
        profile, arch = self._fleet.any_profile, work.choice.best.arch
        metrics = {f"validation_accuracy.{k}": f.file.accuracy for k, f in figures.items()}
        metrics["validation_accuracy.pytorch"] = work.choice.best.measured.accuracy
        return Manifest(
            model=f"{self._config.name}.{name}",
            version=1,
            device_class=name,
            layout="NCHW",
            normalization=profile.normalization,
            classes=profile.classes,
            space=plain(self._space.to_dict()),
            arch=dict(arch),
            supernet_sha256=self._digest,
            cost=cost(self._space, arch).to_dict(),
            budget=dict(work.choice.budget.to_dict()),
            metrics=metrics,
            golden=self._golden(work, entries, figures),
            files=tuple(entries),
        )

    def _golden(
        self,
        work: _Work,
        entries: list[FileEntry],
        figures: Mapping[FileKind, FileMeasured],
    ) -> Golden:
        """A drawn input in the range that the devices saw (no device's example), and its output."""
        low, high = _input_range(work)
        shape = (1, *self._space.input_shape(work.choice.best.arch))
        rng = array_stream(self._config.seed, "golden", work.choice.device_class)
        x = rng.uniform(low, high, size=shape).astype(np.float32)
        with torch.no_grad():
            reference = module_of(work.subnet)(torch.from_numpy(x)).numpy()
        outputs = outputs_in_fresh_process(work.folder, entries, x)
        tolerance: dict[FileKind, float] = {}
        for kind, output in outputs.items():
            seen = max(float(np.abs(output - reference).max()), figures[kind].max_difference)
            tolerance[kind] = GOLDEN_MARGIN * seen + GOLDEN_FLOOR
        return Golden(
            input_shape=shape,
            input=tuple(x.ravel().tolist()),
            output=tuple(reference.ravel().tolist()),
            tolerance=tolerance,
        )


def _check_sizes(entries: list[FileEntry], budget: Budget) -> None:
    """The search went by predicted sizes; what is published goes by the real ones."""
    for entry in entries:
        bound = budget.file_bytes
        if bound is not None and entry.kind.endswith("int8") and entry.size_bytes > bound:
            raise ExportError(f"{entry.kind} has {entry.size_bytes} bytes; file_bytes = {bound}")


def _input_range(work: _Work) -> tuple[float, float]:
    first = next(iter((work.ranges or {}).values()))
    entry = next(e for e in work.entries or [] if e.kind in FLOATS.values())
    return first[entry.inputs[0].name]


def write_results(path: Path, results: list[Specialized]) -> None:
    """What was published, for `fedofa specialize --json` and the demo's report."""
    rows = []
    for result in results:
        folder = result.manifest_path.parent
        margin = result.choice.margin
        measured = {str(kind): figure.file.accuracy for kind, figure in result.figures.items()}
        rows.append(
            {
                "class": result.device_class,
                "arch": dict(result.choice.best.arch),
                "origin": result.choice.best.origin,
                "cost": result.manifest.cost,
                "budget": result.manifest.budget,
                "manifest": str(result.manifest_path),
                "manifest_sha256": sha256(result.manifest.to_json()).hexdigest(),
                "version": result.manifest.version,
                "files": {e.kind: str(folder / FILE_NAMES[e.kind]) for e in result.manifest.files},
                "size_bytes": {e.kind: e.size_bytes for e in result.manifest.files},
                "validation": {
                    "pytorch": result.choice.best.measured.accuracy,
                    "examples": result.choice.best.measured.examples,
                    **measured,
                },
                "candidates": [
                    {
                        "arch": dict(c.arch),
                        "origin": c.origin,
                        "macs": c.macs,
                        "accuracy": c.measured.accuracy,
                        "standard_error": c.measured.error,
                    }
                    for c in result.choice.candidates
                ],
                "over_random": margin and {"mean": margin[0], "standard_error": margin[1]},
                "predictions": result.choice.predictions,
            }
        )
    path.write_text(json.dumps(rows, indent=1))
