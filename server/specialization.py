"""From a trained supernet to a published model for each device class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..protos.depot import STABLE
from ..protos.inference import Ranges
from ..protos.manifest import FileEntry, FileKind, Manifest
from ..protos.subnets import flat_statistics
from ..specialize import estimators
from ..specialize.estimators import BINS
from ..specialize.export import FLOATS, FloatExport, Subnet, export_floats, preload, quantize
from ..specialize.fork_server import Call, ForkServer
from ..specialize.ranges import agreeing, merge
from ..supernet.axes import Weights, regions
from ..supernet.errors import ExportError, FedofaError, RunError
from ..supernet.space import Space, plain
from ..supernet.weights import digest, gather
from .adjustments import Adjustments
from .class_budgets import ClassBudget, usable_classes
from .class_choice import Choice
from .class_search import search_classes
from .config import RunConfig
from .evaluation import Exported, FederatedEvaluator, FloatFile, Target
from .events import EventLog
from .exchange import Exchange
from .figures import FileMeasured
from .fleet import Fleet
from .model_folders import MODELS, RESULTS, ModelFolders
from .publication import Manifests, Verified
from .registry import Registry
from .specialized import Specialized, write_results

Publish = Callable[[Manifest, Mapping[FileKind, Path]], Manifest]
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


@dataclass(slots=True)
class _Work:
    """One class on its way: what is known of it so far."""

    choice: Choice
    subnet: Subnet
    folder: Path
    input_shape: tuple[int, ...] = ()
    observable: Mapping[str, bytes] = field(default_factory=dict)
    ranges: dict[str, Ranges] = field(default_factory=dict)
    entries: list[FileEntry] = field(default_factory=list)
    figures: dict[FileKind, FileMeasured] = field(default_factory=dict)


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
        self._evaluator.configure(config)
        self._adjustments = Adjustments(config.export, fleet, log)
        self._manifests = Manifests(config, space, fleet.any_profile, digest(weights))
        self._works: dict[str, _Work] = {}
        self._failed: dict[str, str] = {}

    def run(self, folder: Path, registry_root: Path, channel: str = STABLE) -> list[Specialized]:
        """Search, export, quantize, verify, publish; RunError when no class could be published.

        The models are what the registry's `channel` then points at. A class that fails keeps what an
        earlier run put into its folder.
        """
        folders = ModelFolders(folder / MODELS)
        folders.sweep()
        try:
            with ForkServer(preload) as converters:
                self._search(folders)
                self._export(converters)
                self._observe()
                self._quantize(converters)
            self._verify()
            with Registry(registry_root) as registry:
                results = self._publish(folders, partial(registry.publish, channel=channel))
        finally:
            for name in self._config.classes:
                folders.discard(name)
        if not results:
            name, reason = next(iter(self._failed.items()))
            raise RunError(f"no class could be published; {name}: {reason}")
        write_results(folder / RESULTS, results)
        return results

    def _tell(self, what: str) -> None:
        self._log("step", what=what, done=STEPS.index(what), total=len(STEPS))

    def _fail(self, name: str, reason: object) -> None:
        """A class goes no further; the others do."""
        self._works.pop(name, None)
        self._failed[name] = str(reason)
        self._log("class_failed", device_class=name, reason=str(reason))

    def _search(self, folders: ModelFolders) -> None:
        classes = self._classes()
        found = search_classes(
            self._config, self._space, self._evaluator, classes, self._tell, self._fail
        )
        for name, choice in found.items():
            arch = choice.best.arch
            weights = gather(self._weights, regions(self._space, arch))
            values = np.concatenate([weights, flat_statistics(choice.statistics)])
            subnet = Subnet(
                plain(self._space.to_dict()),
                dict(arch),
                values,
                equalize=self._config.export.equalize,
            )
            self._works[name] = _Work(choice, subnet, folders.draft(name))
        if self._config.export.adjusts:
            self._adjust()

    def _adjust(self) -> None:
        works = dict(enumerate(list(self._works.items())))
        targets = [Target(w.choice.best.arch, w.choice.budget) for _, w in works.values()]
        statistics = {at: work.choice.statistics for at, (_, work) in works.items()}
        found = self._adjustments.found(self._evaluator, targets, statistics)
        for place, (name, work) in works.items():
            if place in found:
                work.subnet = replace(work.subnet, adjustment=found[place])
            else:
                self._fail(name, "no device told its likelihood; see no_answer in the event log")

    def _classes(self) -> dict[str, ClassBudget]:
        return usable_classes(self._config, self._space, self._fleet, self._log, self._fail)

    def _converted(
        self, converters: ForkServer, call: Callable[[_Work], Call]
    ) -> list[tuple[_Work, Any]]:
        """What a converter makes of each class; a class whose converter failed is left out."""
        results = converters.run({name: call(work) for name, work in self._works.items()})
        found = []
        for name, result in results.items():
            if isinstance(result, ExportError):
                self._fail(name, result)
            else:
                found.append((self._works[name], result))
        return found

    def _export(self, converters: ForkServer) -> None:
        self._tell("exporting")
        formats = self._config.export.formats
        exported: FloatExport
        for work, exported in self._converted(
            converters, lambda work: Call(export_floats, (work.subnet, formats, work.folder))
        ):
            work.input_shape, work.observable = exported.input_shape, exported.observable

    def _observe(self) -> None:
        self._tell("observing activation ranges")
        files, owners = [], []
        for name, work in self._works.items():
            for form, content in work.observable.items():
                choice = work.choice
                files.append(
                    FloatFile(
                        FLOATS[form], work.input_shape, content, choice.budget, choice.best.macs
                    )
                )
                owners.append((name, form))
        found, merged = self._observations(files)
        for place, (name, form) in enumerate(owners):
            if name not in self._works:
                continue
            parts = agreeing(found.get(place, []))
            if ignored := len(found.get(place, [])) - len(parts):
                self._log("ranges_ignored", device_class=name, kind=FLOATS[form], devices=ignored)
            try:
                self._works[name].ranges[form] = merged(parts)
            except ExportError as error:
                self._fail(name, error)

    def _observations(
        self, files: list[FloatFile]
    ) -> tuple[dict[int, list[Any]], Callable[[list[Any]], Ranges]]:
        """What the devices saw of each file, and how their parts make up one range a tensor."""
        export = self._config.export
        if export.ranges == "minmax":
            return self._evaluator.ranges(files, export.calibration_examples), merge
        seen = self._evaluator.histograms(files, export.calibration_examples, BINS)
        return seen, partial(estimators.merged, estimator=export.ranges)

    def _quantize(self, converters: ForkServer) -> None:
        self._tell("quantizing")
        for work, entries in self._converted(
            converters, lambda work: Call(quantize, (work.folder, work.ranges))
        ):
            work.entries = entries

    def _verify(self) -> None:
        self._tell("verifying on devices")
        exports = [
            Exported(
                work.choice.best.arch,
                work.choice.statistics,
                work.choice.budget,
                [(entry, (work.folder / entry.name).read_bytes()) for entry in work.entries],
                work.subnet.adjustment,
            )
            for work in self._works.values()
        ]
        export = self._config.export
        calibration = export.calibration or export.adjusts
        found = self._evaluator.verify(exports, calibration=calibration)
        for place, (name, work) in enumerate(list(self._works.items())):
            if place not in found:
                self._fail(name, "no device verified its files; see no_answer in the event log")
                continue
            kinds = [entry.kind for entry in work.entries]
            work.figures = dict(zip(kinds, found[place], strict=True))

    def _publish(self, folders: ModelFolders, publish: Publish) -> list[Specialized]:
        self._tell("publishing")
        results = []
        for name, work in list(self._works.items()):
            try:
                results.append(self._published(name, work, folders, publish))
            except (FedofaError, OSError) as error:
                self._fail(name, error)
        return results

    def _published(
        self, name: str, work: _Work, folders: ModelFolders, publish: Publish
    ) -> Specialized:
        draft = self._manifests.draft(
            Verified(work.choice, work.subnet, work.folder, work.ranges, work.entries, work.figures)
        )
        paths = {entry.kind: work.folder / entry.name for entry in work.entries}
        manifest = publish(draft, paths)
        (work.folder / "manifest.json").write_bytes(manifest.to_json())
        path = folders.publish(name) / "manifest.json"
        self._log("published", device_class=name, model=manifest.model, version=manifest.version)
        return Specialized(name, manifest, path, work.choice, work.figures, work.subnet.adjustment)
