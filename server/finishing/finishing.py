"""A class's subnet, trained a few rounds further, measured before and after, published where it is better.

The training is a `Training` like any other, of a configuration derived from the run's (`derived.py`) and of
the run's weights; the model is made as any specialization's. One that was cut off after it was published
is only written down (`recovered.py`). All of it lies in the finishing's own folder, with a record of its own (`run_record.py`): nothing of the run's is written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...protos import durable
from ...protos.depot import STABLE
from ...protos.manifest import FileKind, Finished, Manifest
from ...specialize.export import PRELOADS
from ...specialize.fork_server import ForkServer
from ...supernet.axes import Weights
from ...supernet.cost import cost
from ...supernet.errors import RunError
from ...supernet.space import Arch
from ...supernet.weights import digest
from ..checkpoint import CHECKPOINTS, Checkpoint, CheckpointStore
from ..chosen import Chosen, Made
from ..class_budgets import ClassBudget, usable_classes
from ..config import RunConfig
from ..evaluation import FederatedEvaluator, Target
from ..events import EventLog
from ..exchange import Exchange
from ..fleet import Fleet, Roll
from ..ledger import Ledger
from ..model_folders import MODELS, ModelFolders
from ..production import STEPS, Production
from ..recording import Scribe, published
from ..registry import Registry
from ..specialized import latency_ms
from ..strategy import SupernetStrategy
from ..training import Training
from .compared import Compared
from .derived import finishing_config
from .devices import divided
from .order import Order
from .recovered import compared_row, devices_row, own_model, restored
from .start import OUTCOME, Start, check_current, find_start, read_start, write_start

MEASURING = "measuring before and after"


def finish(order: Order, config: RunConfig, exchange: Exchange, log: EventLog) -> None:
    """Train, measure, and publish a new version of the class's model where it is better.

    `config` is the run's. What came of it is written to OUTCOME in the finishing's folder. UsageError
    as `find_start` and `check_folder` say; RunError where too few devices can train the target, none
    could measure it, or its files could not be made.
    """
    start, before = _begun(order, config)
    own = finishing_config(config, start.device_class, start.arch, start.round, start.rounds)
    roll = Roll(exchange, own.build_space(), own, log)
    work = _Finishing(order, config, own, start, roll, log)
    work.run(before.weights)


def _begun(order: Order, config: RunConfig) -> tuple[Start, Checkpoint]:
    if order.resume and (begun := read_start(order.folder)) is not None:
        return begun
    if order.rounds is None:
        raise RunError(f"finish {order.device_class}: no number of rounds was given")
    found = find_start(order.run, order.registry, config, order.device_class, order.rounds)
    write_start(order.folder, *found)
    return found


class _Finishing:
    """One finishing under way; `own` is the configuration that it trains by."""

    def __init__(
        self,
        order: Order,
        config: RunConfig,
        own: RunConfig,
        start: Start,
        roll: Roll,
        log: EventLog,
    ) -> None:
        alone = {start.device_class: config.classes[start.device_class]}
        self._order, self._own, self._start = order, own, start
        self._config = config.model_copy(update={"classes": alone})
        self._roll, self._space, self._log = roll, roll.space, log
        self._target: Arch = roll.space.arch(start.arch)
        self._folders = ModelFolders(order.folder / MODELS)

    def run(self, before: Weights) -> None:
        """The whole way; `before` are the run's weights."""
        start, log = self._start, self._log
        store = CheckpointStore(self._order.folder / CHECKPOINTS, self._own.round.keep_checkpoints)
        ledger = Ledger.open(self._order.folder, self._own.name)
        training = Training(self._own, self._space, store, log, ledger)
        if not (self._order.resume and training.resume()):
            training.weights = before
            training.begin()
        told = {"device_class": start.device_class, "from_round": start.round}
        log("started", job="finish", rounds=start.rounds, done=training.round, **told)
        folder, scribe = self._order.folder, Scribe("finish", [log.path])
        scribe.begins(folder, self._own, training.round, digest(training.weights))
        done = own_model(folder, self._order.registry, start) if self._order.resume else None
        if done is None:
            outcome, models = self._worked(training, before)
        else:
            outcome, models = self._recovered(training, done), [done]
        durable.write(folder / OUTCOME, json.dumps(outcome, indent=1).encode())
        left = published(folder / OUTCOME, models, str(self._order.registry), STABLE)
        scribe.ends(folder, self._own, training.round, digest(training.weights), left)
        log("finished", job="finish", **outcome)

    def _worked(self, training: Training, before: Weights) -> tuple[dict[str, Any], list[Manifest]]:
        """Train, measure and publish: what came of it, and the model that was published, if one was."""
        start, log = self._start, self._log
        fleet = self._roll.gather()
        self._bounds(fleet)  # said before anything is trained
        devices = divided(self._own, self._space, self._target, fleet)
        log(
            "finishing",
            device_class=start.device_class,
            method=self._config.finish.method,
            target_macs=cost(self._space, self._target).macs,
            largest_macs=devices.largest_macs,
            **devices.to_row(),
        )
        SupernetStrategy(training, self._roll, self._roll.exchange, log).start(
            self._roll.exchange.grid
        )
        compared, made, predicted_ms = self._published(training.weights, before)
        rows = compared.to_row(), devices.to_row()
        if made is None:
            return self._outcome(*rows, None, None, training), []
        outcome = self._outcome(*rows, made.manifest, made.path, training)
        return {**outcome, "latency_ms": latency_ms(predicted_ms, made.figures)}, [made.manifest]

    def _recovered(self, training: Training, manifest: Manifest) -> dict[str, Any]:
        """What came of it, where the model was published before it was cut off."""
        path = restored(self._folders, self._order.registry, manifest)
        name, model, version = manifest.device_class, manifest.model, manifest.version
        self._log("published", device_class=name, model=model, version=version)
        rows = compared_row(self._log.path, manifest), devices_row(self._log.path)
        return self._outcome(*rows, manifest, path, training)

    def _bounds(self, fleet: Fleet) -> ClassBudget:
        """What the class's model must keep to; RunError where its subnet no longer does."""
        name, reasons = self._start.device_class, list[str]()
        found = usable_classes(
            self._config, self._space, fleet, self._log, lambda _, why: reasons.append(str(why))
        )
        if name in found:
            reasons = found[name].excess(self._target)
        if reasons:
            raise RunError(f"finish {name}: its subnet breaks a bound: {', '.join(reasons)}")
        return found[name]

    def _published(
        self, after: Weights, before: Weights
    ) -> tuple[Compared, Made | None, Mapping[FileKind, float]]:
        """What training came to; the published model where that is better; its latency as predicted."""
        self._tell(MEASURING)
        fleet = self._roll.fleet()
        bounds, exchange = self._bounds(fleet), self._roll.exchange
        evaluator = FederatedEvaluator(exchange, fleet, self._space, after, self._log)
        evaluator.configure(self._config)
        target = Target(self._target, bounds.budget)
        old = replace(target, weights=before)
        statistics = evaluator.statistics([old, target])
        paired = None if len(statistics) < 2 else evaluator.compared(old, target, statistics)
        if paired is None:
            raise RunError(
                f"finish {self._start.device_class}: no device could measure its subnet; see "
                "no_answer in the event log. The training is kept: --resume measures again"
            )
        compared = Compared(paired)
        self._log("compared", device_class=self._start.device_class, **compared.to_row())
        if not compared.better:
            return compared, None, {}
        chosen = Chosen(
            self._start.device_class,
            self._target,
            bounds.budget,
            statistics[1],
            paired.second,
            self._config.export.formats,
            finished=self._lineage(compared),
            timed_by=fleet.names_of_class(self._start.device_class),
            int4=self._config.export.int4,
            kind=self._config.classes[self._start.device_class].kind,
        )
        made = self._made(chosen, evaluator, fleet)
        return compared, made, bounds.predicted_ms(self._target)

    def _made(self, chosen: Chosen, evaluator: FederatedEvaluator, fleet: Fleet) -> Made:
        folders = self._folders
        folders.sweep()
        work = Production(self._config, evaluator, fleet, folders, self._log)
        try:
            with ForkServer(PRELOADS) as converters:
                work.begin([chosen])
                work.files(converters, self._tell)
            work.verify(self._tell)
            check_current(self._order.folder, self._order.registry, self._start)
            with Registry(self._order.registry) as registry:
                made = work.publish(registry.publish, self._tell)
        finally:
            folders.discard(chosen.name)
        if not made:
            raise RunError(
                f"finish {chosen.name}: nothing was published: {work.failed[chosen.name]}"
            )
        return made[0]

    def _lineage(self, compared: Compared) -> Finished:
        start = self._start
        return Finished(
            run=start.run,
            round=start.round,
            supernet_sha256=start.supernet_sha256,
            version=start.version,
            rounds=start.rounds,
            gain=compared.paired.gain,
            standard_error=compared.paired.error,
        )

    def _outcome(
        self,
        compared: Mapping[str, Any],
        devices: Mapping[str, Any],
        manifest: Manifest | None,
        path: Path | None,
        training: Training,
    ) -> dict[str, Any]:
        start = self._start
        return {
            "class": start.device_class,
            "published": manifest is not None,
            "version": manifest and manifest.version,
            **compared,
            "arch": dict(start.arch),
            "from": {k: v for k, v in asdict(start).items() if k not in ("arch", "device_class")},
            "method": self._config.finish.method,
            "devices": dict(devices),
            "manifest": path and str(path),
            **training.told(),
        }

    def _tell(self, what: str) -> None:
        steps = (MEASURING, *STEPS)
        self._log("step", job="finish", what=what, done=steps.index(what), total=len(steps))
