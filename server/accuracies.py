"""What each class's best subnet scores on the devices; nothing is exported.

Where a run keeps tensors on the devices, a subnet has two accuracies. The personalised one is of the
devices' own models, each on its own device's validation examples: with the tensors that the device
keeps, and norm statistics over its own training examples. The global one is of the shared weights,
in which those tensors still have their initial values.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..protos import durable
from ..protos.messages import Personal
from ..supernet.errors import RunError
from ..supernet.space import Space
from ..supernet.weights import digest
from . import measured_subnets
from .checkpoint import Checkpoint
from .class_budgets import ClassBudget, usable_classes
from .class_choice import Choice
from .class_search import search_classes
from .config import RunConfig
from .evaluation import FederatedEvaluator, Target
from .events import EventLog
from .exchange import Exchange
from .figures import Measured
from .fleet import Fleet

ACCURACIES = "accuracies.json"
STEPS = ("measuring sampled subnets", "searching", "measuring finalists", "measuring globally")


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """A class's choice, made by the personalised accuracy where there is one, and its global one."""

    choice: Choice
    personalised: Measured | None
    globally: Measured | None


class Accuracies:
    """Measures a trained supernet for every class of a configuration."""

    def __init__(
        self, config: RunConfig, space: Space, trained: Checkpoint, exchange: Exchange, fleet: Fleet,
        log: EventLog,
    ) -> None:  # fmt: skip
        self._config, self._space, self._fleet, self._log = config, space, fleet, log
        self._failed: dict[str, str] = {}
        self._local = tuple(sorted(config.share.plan(space).in_round(trained.round + 1).local))
        self._evaluator = FederatedEvaluator(exchange, fleet, space, trained.weights, log)
        self._evaluator.configure(config)
        self._personal = Personal(run=config.name, round=trained.round, tensors=self._local)

    def run(self, folder: Path) -> list[ClassAccuracy]:
        """Search each class's best subnet and write what it scores; RunError when none could be."""
        if self._local:
            self._evaluator.personal = self._personal
        weights = digest(self._evaluator.weights)
        number = 1 if self._local else measured_subnets.next_search(folder, weights, "evaluate")
        classes = self._classes()
        choices = search_classes(
            self._config, self._evaluator, classes, number, self._tell, self._fail
        )
        if not choices:
            name, reason = next(iter(self._failed.items()))
            raise RunError(f"no class could be measured; {name}: {reason}")
        if not self._local:  # a device's own model says little of the shared weights
            measured_subnets.add(folder, weights, "evaluate", choices.values())
        found = (
            self._globally(choices) if self._local else list(map(_only_global, choices.values()))
        )
        rows = [_row(one, self._local) for one in found]
        durable.write(folder / ACCURACIES, json.dumps(rows, indent=1).encode())
        return found

    def _classes(self) -> dict[str, ClassBudget]:
        return usable_classes(
            self._config,
            self._space,
            self._fleet,
            self._log,
            lambda name, error: self._fail(name, str(error)),
        )

    def _globally(self, choices: Mapping[str, Choice]) -> list[ClassAccuracy]:
        self._tell("measuring globally")
        self._evaluator.personal = None
        targets = [Target(choice.best.arch, choice.budget) for choice in choices.values()]
        statistics = {place: choice.statistics for place, choice in enumerate(choices.values())}
        measured = self._evaluator.accuracy(targets, statistics)
        return [
            ClassAccuracy(choice, choice.best.measured, measured.get(place))
            for place, choice in enumerate(choices.values())
        ]

    def _tell(self, what: str) -> None:
        self._log("step", job="evaluate", what=what, done=STEPS.index(what), total=len(STEPS))

    def _fail(self, name: str, reason: str) -> None:
        self._failed[name] = reason
        self._log("class_failed", job="evaluate", device_class=name, reason=reason)


def _only_global(choice: Choice) -> ClassAccuracy:
    return ClassAccuracy(choice, None, choice.best.measured)


def _row(found: ClassAccuracy, local: Sequence[str]) -> dict[str, object]:
    best = found.choice.best
    said = found.choice.to_row()
    both = {"personalised": found.personalised, "global": found.globally}
    return {
        "class": found.choice.device_class,
        "arch": dict(best.arch),
        "macs": best.macs,
        **{name: said[name] for name in ("searched", "over_random_percent", "predictor")},
        **{name: measured and measured.accuracy for name, measured in both.items()},
        "standard_error": {name: measured and measured.error for name, measured in both.items()},
        "examples": {name: measured and measured.examples for name, measured in both.items()},
        "kept_on_devices": list(local),
    }
