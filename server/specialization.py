"""From a trained supernet to a published model for each device class."""

from functools import partial
from pathlib import Path

from ..protos.depot import STABLE
from ..specialize.export import PRELOADS
from ..specialize.fork_server import ForkServer
from ..supernet.axes import Weights
from ..supernet.errors import RunError
from ..supernet.space import Space
from ..supernet.weights import digest
from . import measured_subnets, production
from .chosen import Chosen
from .class_budgets import usable_classes
from .class_choice import Choice
from .class_search import search_classes
from .config import RunConfig
from .evaluation import FederatedEvaluator
from .events import EventLog
from .exchange import Exchange
from .fleet import Fleet
from .model_folders import MODELS, RESULTS, ModelFolders
from .production import Production
from .registry import Registry
from .specialized import Specialized, write_results

STEPS = (
    "measuring sampled subnets",
    "searching",
    "measuring finalists",
    *production.STEPS,
)


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
        self._config, self._space = config, space
        self._fleet, self._log = fleet, log
        self._evaluator = FederatedEvaluator(exchange, fleet, space, weights, log)
        self._evaluator.configure(config)

    def run(self, folder: Path, registry_root: Path, channel: str = STABLE) -> list[Specialized]:
        """Search, export, quantize, verify, publish; RunError when no class could be published.

        UsageError, before anything is searched, where what was measured before cannot be read.
        The models are what the registry's `channel` then points at. A class that fails keeps what an
        earlier run put into its folder.
        """
        weights = digest(self._evaluator.weights)
        number = measured_subnets.next_search(folder, weights, "specialize")
        folders = ModelFolders(folder / MODELS)
        folders.sweep()
        work = Production(self._config, self._evaluator, self._fleet, folders, self._log)
        try:
            with ForkServer(PRELOADS) as converters:
                choices = self._search(work, number)
                measured_subnets.add(folder, weights, "specialize", choices.values())
                work.begin(self._chosen(choice) for choice in choices.values())
                work.files(converters, self._tell)
            work.verify(self._tell)
            with Registry(registry_root) as registry:
                made = work.publish(partial(registry.publish, channel=channel), self._tell)
        finally:
            for name in self._config.classes:
                folders.discard(name)
        if not made:
            name, reason = next(iter(work.failed.items()))
            raise RunError(f"no class could be published; {name}: {reason}")
        results = [
            Specialized(m.name, m.manifest, m.path, choices[m.name], m.figures, m.adjustment)
            for m in made
        ]
        write_results(folder / RESULTS, results)
        return results

    def _search(self, work: Production, number: int) -> dict[str, Choice]:
        classes = usable_classes(self._config, self._space, self._fleet, self._log, work.fail)
        return search_classes(self._config, self._evaluator, classes, number, self._tell, work.fail)

    def _chosen(self, choice: Choice) -> Chosen:
        return Chosen(
            choice.device_class,
            choice.best.arch,
            choice.budget,
            choice.statistics,
            choice.best.measured,
            self._config.export.formats,
            timed_by=self._fleet.names_of_class(choice.device_class),
            int4=self._config.export.int4,
            kind=self._config.classes[choice.device_class].kind,
        )

    def _tell(self, what: str) -> None:
        self._log("step", what=what, done=STEPS.index(what), total=len(STEPS))
