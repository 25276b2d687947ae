"""From chosen subnets to published models: exported, quantized, verified on the devices.

Who chose them does not matter here: a search for each device class, or a plan for a fleet. A subnet that
fails at any step goes no further and leaves the others.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..protos.inference import Ranges
from ..protos.manifest import FLOATS, FileKind, Manifest
from ..protos.subnets import flat_statistics
from ..specialize import estimators
from ..specialize.estimators import BINS
from ..specialize.export import Completed, Subnet, together
from ..specialize.fork_server import Call, ForkServer
from ..specialize.ranges import agreeing, merge
from ..supernet.axes import regions
from ..supernet.cost import cost
from ..supernet.errors import ExportError, FedofaError
from ..supernet.space import plain
from ..supernet.weights import digest, gather
from .adjustments import Adjustments
from .chosen import Chosen, Made, Part, Rounded, Work
from .config import RunConfig
from .converting import converted
from .evaluation import Exported, FederatedEvaluator, FloatFile, Target
from .events import EventLog
from .fleet import Fleet
from .model_folders import ModelFolders
from .publication import Manifests, dispensable, needed
from .rounding import rounded_subnets

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
        self._round()

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
            work.figures = found[place]
            if lacking := needed(work):
                self.fail(name, f"no device that verified its files has a runtime for {lacking}")
                continue
            for kind, reason in dispensable(work, export).items():
                work.remove(kind)
                self._log("file_left_out", device_class=name, kind=kind, reason=reason)
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

    def _round(self) -> None:
        """Norm statistics of the subnets whose files hold rounded kernels, as these have them."""
        mine = [(name, work) for name, work in self._works.items() if work.chosen.int4]
        share = self._config.export.int4_bytes
        examples = self._config.export.calibration_examples if self._config.compensates else None
        found = rounded_subnets(self._evaluator, [work for _, work in mine], share, examples)
        for place, (name, work) in enumerate(mine):
            work.rounded = found.get(place)
            if work.rounded is None:
                self._without_int4(
                    name, "no device measured its rounded subnet; see no_answer in the event log"
                )
            else:
                why = work.rounded.why_nearest
                self._log("rounded", device_class=name, compensated=not why, reason=why)

    def _without_int4(self, name: str, reason: object) -> None:
        """There is no file of 4 bits: the model goes on without one, if it can."""
        work = self._works[name]
        work.rounded = None
        if work.chosen.needs_int4:
            self.fail(name, reason)
        else:
            self._log("file_left_out", device_class=name, kind="int4", reason=str(reason))

    def _lost(self, name: str, part: Part, reason: object) -> None:
        if isinstance(part, Rounded):
            self._without_int4(name, reason)
        else:
            self.fail(name, reason)

    def _converted(
        self,
        what: str,
        converters: ForkServer,
        calls: Callable[[Work, Part], Sequence[Call]],
    ) -> Iterator[tuple[Work, Part, list[Any]]]:
        """What converters make of each part, call by call; one of whose calls failed is left out."""
        parts = {
            f"{name} {place}": (name, part)
            for name, work in self._works.items()
            for place, part in enumerate(work.parts)
        }
        asked = {key: calls(self._works[name], part) for key, (name, part) in parts.items()}

        def told(key: str, done: int) -> None:
            name, _ = parts[key]
            self._log("converted", what=what, device_class=name, done=done, total=len(asked))

        for key, found in converted(converters, asked, told).items():
            name, part = parts[key]
            if name not in self._works:  # another part of it failed
                continue
            if isinstance(found, ExportError):
                self._lost(name, part, found)
            else:
                yield self._works[name], part, found

    def _export(self, converters: ForkServer) -> None:
        for work, part, results in self._converted("exporting", converters, Work.float_calls):
            exported = together(results)
            work.input_shape, part.observable = exported.input_shape, exported.observable

    def _observe(self) -> None:
        files, owners = [], []
        for name, work in self._works.items():
            macs, budget = cost(self._space, work.chosen.arch).macs, work.chosen.budget
            for part in work.parts:
                for form, content in part.observable.items():
                    files.append(FloatFile(FLOATS[form], work.input_shape, content, budget, macs))
                    owners.append((name, part, form))
        found, merged = self._observations(files)
        for place, (name, part, form) in enumerate(owners):
            if name not in self._works or part not in self._works[name].parts:
                continue
            seen = agreeing(found.get(place, []))
            if ignored := len(found.get(place, [])) - len(seen):
                self._log("ranges_ignored", device_class=name, kind=FLOATS[form], devices=ignored)
            try:
                part.ranges[form] = merged(seen)
            except ExportError as error:
                self._lost(name, part, error)

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
        trainable = self._config.export.trainable
        completed: Completed
        for work, _part, (completed,) in self._converted(
            "quantizing",
            converters,
            lambda work, part: [work.quantize_call(part, trainable=trainable)],
        ):
            work.keep(completed)
            why_not = completed.why_not
            if trainable and work.chosen.only_int4:
                why_not = "its only file has 4-bit weights, which no device trains further"
            if why_not:
                self._log("not_trainable", device_class=work.chosen.name, reason=why_not)

    def _published(self, name: str, work: Work, publish: Publish) -> Made:
        draft = self._manifests.draft(work)
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
