"""From chosen subnets to published models: exported, quantized, verified on the devices.

Who chose them does not matter here: a search for each device class, or a plan for a fleet. A subnet that
fails at any step goes no further and leaves the others.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..protos.inference import Ranges
from ..protos.manifest import FileEntry, FileKind, Manifest
from ..protos.subnets import flat_statistics
from ..specialize import estimators
from ..specialize.estimators import BINS
from ..specialize.export import FLOATS, Completed, Subnet, complete, float_calls, together
from ..specialize.fork_server import Call, ForkServer
from ..specialize.ranges import agreeing, merge
from ..supernet.axes import regions
from ..supernet.cost import cost
from ..supernet.errors import ExportError, FedofaError
from ..supernet.space import plain
from ..supernet.weights import digest, gather
from .adjustments import Adjustments
from .chosen import Chosen, Made, Work
from .config import RunConfig
from .evaluation import Exported, FederatedEvaluator, FloatFile, Target
from .events import EventLog
from .fleet import Fleet
from .model_folders import ModelFolders
from .publication import Manifests, Verified

Publish = Callable[[Manifest, Mapping[str, Path]], Manifest]
STEPS = (
    "exporting",
    "observing activation ranges",
    "quantizing",
    "verifying on devices",
    "publishing",
)
"""What `files`, `verify` and `publish` do, in this order; each is told before it begins."""


class Production:
    """Makes models of subnets of the evaluator's weights. `failed`: name → why there is none.

    RunError when a prior is asked for and no device shares its label counts.
    """

    def __init__(
        self,
        config: RunConfig,
        evaluator: FederatedEvaluator,
        fleet: Fleet,
        folders: ModelFolders,
        log: EventLog,
    ) -> None:
        self._config, self._evaluator = config, evaluator
        self._space, self._weights = evaluator.space, evaluator.weights
        self._folders, self._log = folders, log
        self._adjustments = Adjustments(config.export, fleet, log)
        self._manifests = Manifests(
            config, self._space, fleet.any_profile, digest(evaluator.weights)
        )
        self._works: dict[str, Work] = {}
        self.failed: dict[str, str] = {}

    def fail(self, name: str, reason: object) -> None:
        """A subnet goes no further; the others do."""
        if name in self._works:
            del self._works[name]
            self._folders.discard(name)
        self.failed[name] = str(reason)
        self._log("class_failed", device_class=name, reason=str(reason))

    def begin(self, chosen: Iterable[Chosen]) -> None:
        """Take the subnets on, each with a draft folder, and adjust their logits as configured."""
        for one in chosen:
            weights = gather(self._weights, regions(self._space, one.arch))
            subnet = Subnet(
                plain(self._space.to_dict()),
                dict(one.arch),
                np.concatenate([weights, flat_statistics(one.statistics)]),
                equalize=self._config.export.equalize,
            )
            self._works[one.name] = Work(one, subnet, self._folders.draft(one.name))
        if self._config.export.adjusts:
            self._adjust()

    def files(self, converters: ForkServer, tell: Callable[[str], None]) -> None:
        """Export, observe activations on the devices, quantize: each has its files then."""
        tell(STEPS[0])
        self._export(converters)
        tell(STEPS[1])
        self._observe()
        tell(STEPS[2])
        self._quantize(converters)

    def verify(self, tell: Callable[[str], None]) -> dict[str, dict[FileKind, int]]:
        """Run the files on the devices; name → size of each file in bytes."""
        tell(STEPS[3])
        exports = [
            Exported(
                work.chosen.arch,
                work.chosen.statistics,
                work.chosen.budget,
                [(entry, (work.folder / entry.name).read_bytes()) for entry in work.entries],
                work.subnet.adjustment,
                work.chosen.timed_by,
            )
            for work in self._works.values()
        ]
        export = self._config.export
        calibration = export.calibration or export.adjusts
        found = self._evaluator.verify(exports, calibration=calibration)
        for place, (name, work) in enumerate(list(self._works.items())):
            if place not in found:
                self.fail(name, "no device verified its files; see no_answer in the event log")
                continue
            kinds = [entry.kind for entry in work.entries]
            work.figures = dict(zip(kinds, found[place], strict=True))
        return {
            name: {entry.kind: entry.size_bytes for entry in work.entries}
            for name, work in self._works.items()
        }

    def publish(
        self,
        publish: Publish,
        tell: Callable[[str], None],
        names: Collection[str] | None = None,
    ) -> list[Made]:
        """Put each model, or those named, into the registry, whole or not at all, and into its folder.

        A model in the registry is published: where its folder cannot be written that is told, and it
        is among those returned. Each is told when it is through, published or not.
        """
        tell(STEPS[4])
        found = []
        wanted = [name for name in self._works if names is None or name in names]
        for done, name in enumerate(wanted, start=1):
            try:
                found.append(self._published(name, self._works[name], publish))
            except (FedofaError, OSError) as error:
                self.fail(name, error)
            self._log("publishing", device_class=name, done=done, total=len(wanted))
        return found

    def _adjust(self) -> None:
        works = dict(enumerate(list(self._works.items())))
        targets = [Target(w.chosen.arch, w.chosen.budget) for _, w in works.values()]
        statistics = {at: work.chosen.statistics for at, (_, work) in works.items()}
        found = self._adjustments.found(self._evaluator, targets, statistics)
        for place, (name, work) in works.items():
            if place in found:
                work.subnet = replace(work.subnet, adjustment=found[place])
            else:
                self.fail(name, "no device told its likelihood; see no_answer in the event log")

    def _converted(
        self, what: str, converters: ForkServer, calls: Callable[[Work], Sequence[Call]]
    ) -> list[tuple[Work, list[Any]]]:
        """What converters make of each, call by call; one of whose calls failed is left out."""
        asked = {
            f"{place} {name}": (name, call)
            for name, work in self._works.items()
            for place, call in enumerate(calls(work))
        }
        open_calls = Counter(name for name, _ in asked.values())
        total, done = len(open_calls), 0

        def told(key: str) -> None:
            nonlocal done
            name = asked[key][0]
            open_calls[name] -= 1
            if not open_calls[name]:
                done += 1
                self._log("converted", what=what, device_class=name, done=done, total=total)

        results: dict[str, list[Any]] = {}
        for key, result in converters.run(
            {k: call for k, (_, call) in asked.items()}, told
        ).items():
            results.setdefault(asked[key][0], []).append(result)
        found = []
        for name, parts in results.items():
            if failures := [part for part in parts if isinstance(part, ExportError)]:
                self.fail(name, failures[0])
            else:
                found.append((self._works[name], parts))
        return found

    def _export(self, converters: ForkServer) -> None:
        for work, parts in self._converted(
            "exporting",
            converters,
            lambda work: float_calls(work.subnet, work.chosen.formats, work.folder),
        ):
            exported = together(parts)
            work.input_shape, work.observable = exported.input_shape, exported.observable

    def _observe(self) -> None:
        files, owners = [], []
        for name, work in self._works.items():
            macs = cost(self._space, work.chosen.arch).macs
            for form, content in work.observable.items():
                budget = work.chosen.budget
                files.append(FloatFile(FLOATS[form], work.input_shape, content, budget, macs))
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
                self.fail(name, error)

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
        finish = partial(complete, trainable=self._config.export.trainable)
        completed: Completed
        for work, (completed,) in self._converted(
            "quantizing",
            converters,
            lambda work: [Call(finish, (work.subnet, work.folder, work.ranges))],
        ):
            work.input_range = _input_range(work.ranges, completed.entries)
            work.entries = _kept(work, completed.entries)
            work.trainable = completed.trainable
            if completed.why_not:
                name = work.chosen.name
                self._log("not_trainable", device_class=name, reason=completed.why_not)

    def _published(self, name: str, work: Work, publish: Publish) -> Made:
        draft = self._manifests.draft(
            Verified(
                work.chosen,
                work.subnet,
                work.folder,
                work.input_range,
                work.entries,
                work.figures,
                work.trainable,
            )
        )
        paths = {name: work.folder / file.name for name, file in draft.named().items()}
        manifest = publish(draft, paths)
        told = {"device_class": name, "model": manifest.model, "version": manifest.version}
        self._log("published", **told)
        folder = self._folders.of(name)
        try:
            (work.folder / "manifest.json").write_bytes(manifest.to_json())
            self._folders.publish(name)
        except OSError as error:  # devices pull the model by now: it has not failed
            self._log("folder_failed", **told, folder=str(folder), reason=str(error))
        return Made(name, manifest, folder / "manifest.json", work.figures, work.subnet.adjustment)


def _kept(work: Work, entries: list[FileEntry]) -> list[FileEntry]:
    """The entries of the files to publish; the others' files are removed."""
    kinds = work.chosen.kinds
    for entry in entries:
        if kinds is not None and entry.kind not in kinds:
            (work.folder / entry.name).unlink()
    return [entry for entry in entries if kinds is None or entry.kind in kinds]


def _input_range(ranges: Mapping[str, Ranges], entries: list[FileEntry]) -> tuple[float, float]:
    first = next(iter(ranges.values()))
    entry = next(e for e in entries if e.kind in FLOATS.values())
    return first[entry.inputs[0].name]
