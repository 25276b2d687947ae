"""From a fleet's plan to published artifacts, and each device on one of them.

The plan's subnets are measured, exported, verified on the devices that have joined, and published, some at
a time. Then every device is settled on the files as they are: where one could not be made, or is larger
than was predicted, its devices move to the best of the others that fits them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..protos.manifest import INT4S, FileKind
from ..specialize.export import PRELOADS
from ..specialize.filesize import predicted_size_bytes
from ..specialize.fleet.plan import Artifact, Placed, Refused
from ..specialize.fleet.settle import settled
from ..specialize.fork_server import ForkServer
from ..supernet.cost import Budget, cost
from ..supernet.errors import FedofaError, RunError, UsageError
from ..supernet.space import Arch
from ..supernet.weights import digest
from . import measured_sizes, production
from .chosen import Chosen, Made
from .config import RunConfig
from .evaluation import FederatedEvaluator, Target
from .events import EventLog
from .figures import Measured
from .fleet import Fleet
from .fleet_file import Rejected
from .fleet_plan import FOLDER, FleetPlan
from .fleet_reasons import too_large_reason, unmade_reason
from .model_folders import MODELS, ModelFolders
from .production import Production
from .registry import Registry

AT_ONCE = 16
"""Artifacts on their way together: their files travel to the devices in one message."""
MEASURING = "measuring chosen subnets"


@dataclass(frozen=True, slots=True)
class Delivered:
    """What there is now. `made`: place of an artifact in the plan → its model; `moved` counts devices
    that are on another artifact than planned."""

    plan: FleetPlan
    made: dict[int, tuple[Made, Measured]]
    placed: tuple[Placed, ...]
    not_served: tuple[Rejected, ...]
    moved: int


class Delivery:
    """Makes a plan's artifacts with the devices that have joined. One that fails leaves the others."""

    def __init__(
        self,
        config: RunConfig,
        evaluator: FederatedEvaluator,
        fleet: Fleet,
        log: EventLog,
    ) -> None:
        self._config, self._evaluator = config, evaluator
        self._fleet, self._log = fleet, log
        self._names: list[str] = []
        self._sizes: dict[int, int] = {}
        self._measured: dict[int, Measured] = {}
        self._works: list[Production] = []

    def run(self, folder: Path, registry_root: Path, plan: FleetPlan, channel: str) -> Delivered:
        """Publish what devices are settled on; RunError when nothing could be published.

        UsageError where the plan is of another supernet than the run's newest.
        """
        if plan.supernet_sha256 != digest(self._evaluator.weights):
            raise UsageError(
                f"the plan for {plan.fleet} is of another supernet than the run's newest; plan again"
            )
        folders = ModelFolders(folder / FOLDER / plan.fleet / MODELS)
        folders.sweep()
        artifacts, before = plan.plan.artifacts, measured_sizes.most(folder)
        self._names = [plan.name_of(one) for one in artifacts]
        try:
            self._make(artifacts, folders)
            measured_sizes.note(folder, before, self._ratios(artifacts))
            with Registry(registry_root) as registry:
                publish = partial(registry.publish, channel=channel)
                made, placed, refused = self._publish(plan, publish)
        finally:
            for name in self._names:
                folders.discard(name)
        if not made:
            failed = [f"{n}: {why}" for work in self._works for n, why in work.failed.items()]
            failed += [f"{one.device}: {one.field}: {one.reason}" for one in refused]
            raise RunError(f"no artifact could be published; {failed[0]}")
        first = {one.demand.device: one.artifact for one in plan.plan.placed}
        return Delivered(
            plan,
            {at: (one, self._measured[at]) for at, one in made.items()},
            placed,
            (*plan.not_served, *refused),
            sum(first[one.demand.device] != one.artifact for one in placed),
        )

    def _make(self, artifacts: Sequence[Artifact], folders: ModelFolders) -> None:
        """Measure, export and verify, some at a time; what comes of it is in `sizes`."""
        places = range(len(artifacts))
        batches = [places[at : at + AT_ONCE] for at in range(0, len(artifacts), AT_ONCE)]
        steps = _Steps(len(batches), self._log)
        with ForkServer(PRELOADS) as converters:
            for number, batch in enumerate(batches):
                work = Production(self._config, self._evaluator, self._fleet, folders, self._log)
                self._works.append(work)
                steps.begin(number)
                names = {at: self._names[at] for at in batch}
                try:
                    work.begin(self._chosen(work, artifacts, names))
                    work.files(converters, steps)
                    found = work.verify(steps)
                except (FedofaError, OSError) as error:  # of all of them; other batches go on
                    for name in names.values():
                        if name not in work.failed:
                            work.fail(name, error)
                    continue
                for at, name in names.items():
                    if name in found:
                        self._sizes[at] = found[name][artifacts[at].kind]

    def _ratios(self, artifacts: Sequence[Artifact]) -> list[tuple[FileKind, float]]:
        """Of each file that was made its kind, and its size over the predicted one."""
        layers = self._evaluator.space.layers
        made = [(artifacts[at], size_bytes) for at, size_bytes in self._sizes.items()]
        return [
            (one.kind, size_bytes / predicted_size_bytes(one.kind, layers(one.arch)))
            for one, size_bytes in made
        ]

    def _chosen(
        self, work: Production, artifacts: Sequence[Artifact], names: dict[int, str]
    ) -> Iterator[Chosen]:
        """The artifacts as measured subnets; each architecture is measured once."""
        archs = list(dict.fromkeys(artifacts[at].arch for at in names))
        targets = [Target(arch, self._held(arch)) for arch in archs]
        statistics = self._evaluator.statistics(targets)
        measured = self._evaluator.accuracy(targets, statistics)
        for at, name in names.items():
            place = archs.index(artifacts[at].arch)
            if place not in measured:
                work.fail(
                    name,
                    "no device answered for its subnet; start a device whose class may hold "
                    f"{targets[place].budget.macs:,} multiply-accumulates",
                )
                continue
            self._measured[at] = measured[place]
            kind = artifacts[at].kind
            yield Chosen(
                name, archs[place], targets[place].budget, statistics[place], measured[place],
                (kind.partition("_")[0],), (kind,), int4=kind in INT4S.values(), kind=kind,
            )  # fmt: skip

    def _held(self, arch: Arch) -> Budget:
        """What a device must be able to hold to be asked about it: the subnet itself."""
        spent = cost(self._evaluator.space, arch)
        return Budget(
            macs=spent.macs,
            params=spent.params,
            peak_activation_bytes=spent.peak_activation_bytes,
        )

    def _publish(
        self, plan: FleetPlan, publish: production.Publish
    ) -> tuple[dict[int, Made], tuple[Placed, ...], list[Rejected]]:
        """Publish what devices are settled on, anew as long as something fails at the last step."""
        artifacts, made = plan.plan.artifacts, dict[int, Made]()
        places = {name: at for at, name in enumerate(self._names)}
        while True:
            placed, refused = settled(artifacts, self._sizes, plan.plan.placed)
            wanted = {self._names[one.artifact] for one in placed}
            waiting = wanted - {self._names[at] for at in made}
            if not waiting:
                return made, tuple(placed), self._reasons(plan, refused)
            for work in self._works:
                for one in work.publish(publish, lambda _what: None, waiting):
                    made[places[one.name]] = one
            for name in waiting:
                if places[name] not in made:
                    del self._sizes[places[name]]

    def _reasons(self, plan: FleetPlan, refused: Sequence[Refused]) -> list[Rejected]:
        """Why devices that were planned for are not served after all."""
        planned = {one.demand.device: one.artifact for one in plan.plan.placed}
        failed = {name: why for work in self._works for name, why in work.failed.items()}
        found = []
        for one in refused:
            at = planned[one.demand.device]
            artifact, name = plan.plan.artifacts[at], self._names[at]
            if at in self._sizes:
                reckoned = artifact.columns[f"file_bytes:{artifact.kind}"]
                found.append(too_large_reason(one, name, self._sizes[at], reckoned))
            else:
                why = failed.get(name, "no file was verified")
                found.append(unmade_reason(one, name, why))
        return found


class _Steps:
    """Tells the steps of all batches as one job's."""

    def __init__(self, batches: int, log: EventLog) -> None:
        self._done, self._log = 0, log
        self._each = len((MEASURING, *production.STEPS)) - 1  # publishing is one step for all
        self._total = batches * self._each + 1

    def begin(self, batch: int) -> None:
        """Tell a batch's first step, wherever the one before ended."""
        self._done = batch * self._each
        self(MEASURING)

    def __call__(self, what: str) -> None:
        self._log("step", what=what, done=self._done, total=self._total)
        self._done += 1
