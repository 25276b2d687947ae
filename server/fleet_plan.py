"""The plan for a fleet: from the run's folder and the fleet's file, without any device."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..protos import durable
from ..protos.manifest import FileKind
from ..protos.probes import ProbeSet
from ..specialize.fleet.candidates import FEWEST, Accuracies, candidates
from ..specialize.fleet.demand import Bound, Demand
from ..specialize.fleet.plan import Artifact, Placed, Plan, plan_fleet
from ..specialize.fleet.shares import divided
from ..specialize.fleet.table import Table
from ..specialize.predictors.contract import Sample
from ..specialize.predictors.kinds import PREDICTORS
from ..specialize.predictors.rank_report import rank_report
from ..supernet.errors import ArtifactError, UsageError
from ..supernet.space import Arch, Space
from ..supernet.weights import digest
from .branches.trained import Trained
from .config import RunConfig
from .fleet_demands import Wanted, wanted
from .fleet_file import FleetFile, Rejected, read_fleet
from .fleet_reasons import reason_of, unserved_reason
from .latencies import read_probe_set
from .measured_subnets import MORE, samples

FOLDER, PLAN = "fleets", "plan.json"
MOST_ARTIFACTS = 64


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """A plan with what belongs to it: for which supernet, who is not served and why, what was known.

    `run` is the run's name, or the run's and its branch's.
    """

    fleet: str
    run: str
    supernet_sha256: str
    plan: Plan
    not_served: tuple[Rejected, ...]
    known: Mapping[str, object]

    def name_of(self, artifact: Artifact) -> str:
        """The class that an artifact of the plan is published for."""
        return artifact_name(self.run, artifact.kind, artifact.arch)


def plan_for(trained: Trained, path: Path, most: int) -> FleetPlan:
    """Plan for the devices in a fleet's file.

    UsageError where the file cannot be read, too few subnets were measured, or no device is left.
    """
    file = read_fleet(path)
    config, space = trained.config, trained.config.build_space()
    supernet = digest(trained.checkpoint.weights)
    measured = samples(trained.folder, supernet, space)
    if len({sample.arch for sample in measured}) < FEWEST:
        raise UsageError(
            f"{len({sample.arch for sample in measured})} subnets of this run were measured; a fleet "
            f"is planned from at least {FEWEST}: {MORE}"
        )
    asked = wanted(file, path.parent, space, _probes(config, space))
    found, not_served = planned(file, asked, (config.search.predictor, measured), most, config.seed)
    known = {
        "measured_subnets": len(measured),
        "predictor": rank_report(space, measured, PREDICTORS[config.search.predictor]).to_dict(),
        "latency": dict(asked.trust),
    }
    return FleetPlan(path.stem, config.name, supernet, found, not_served, known)


def planned(
    file: FleetFile,
    asked: Wanted,
    measured: tuple[str, Sequence[Sample]],
    most: int,
    seed: int,
) -> tuple[Plan, tuple[Rejected, ...]]:
    """The plan, and everyone who is not served; UsageError where nobody is."""
    runtime = {device.name: device.runtime for device in file.devices}
    models = [one for _, hosted in asked.gateways.values() for one in hosted]
    if not asked.alone and not models:
        raise UsageError(f"no device can be planned for; {_first(asked.rejected)}")
    bounded: dict[str, set[str]] = {}
    for demand in (*asked.alone, *(one.demand for one in models)):
        bounded.setdefault(runtime[demand.device], set()).update(demand.columns)
    for one in models:
        columns = {column for column, _ in one.shared.values()}
        bounded[runtime[one.demand.device]].update(columns)
    predictor, known = measured
    table = candidates(
        asked.columns,
        Accuracies(PREDICTORS[predictor], known),
        {name: sorted(columns) for name, columns in bounded.items()},
        seed,
    )
    shares, refused = _shares(asked, table)
    plan = plan_fleet(table, [*asked.alone, *shares], most)
    not_served = [
        *asked.rejected,
        *refused,
        *(reason_of(one) for one in plan.refused),
        *(unserved_reason(one, most) for one in plan.unserved),
    ]
    if not plan.placed:
        raise UsageError(f"no device of the fleet can be served; {_first(not_served)}")
    return plan, tuple(not_served)


def _first(rejected: Sequence[Rejected]) -> str:
    first = rejected[0]
    return f"{len(rejected)} are rejected, the first: {first.device}: {first.field}: {first.reason}"


def _probes(config: RunConfig, space: Space) -> Callable[[], ProbeSet]:
    @cache
    def read() -> ProbeSet:
        if config.search.probes is None:
            raise ArtifactError(
                "the run's configuration names no probes; make them (`fedofa probes`), name their "
                "folder in [search] probes, and measure those"
            )
        return read_probe_set(config.search.probes, space)

    return read


def _shares(asked: Wanted, table: Table) -> tuple[list[Demand], list[Rejected]]:
    """The models of each gateway with their shares; those of one that cannot host them all apart."""
    shares: list[Demand] = []
    refused: list[Rejected] = []
    kinds = {one.demand.kind for _, hosted in asked.gateways.values() for one in hosted}
    fronts = {kind: _front(table, kind, asked) for kind in kinds}
    for name, (limits, hosted) in asked.gateways.items():
        try:
            shares += divided(name, limits, hosted, [fronts[one.demand.kind] for one in hosted])
        except UsageError as error:
            refused += [
                Rejected(one.demand.device, f"gateways.{name}.budget", str(error)) for one in hosted
            ]
    return shares, refused


def _front(table: Table, kind: FileKind, asked: Wanted) -> Table:
    """The candidates that may serve the models of any gateway as that kind of file."""
    models = [one for _, hosted in asked.gateways.values() for one in hosted]
    mine = [one for one in models if one.demand.kind == kind]
    columns = {"macs"}.union(*(one.demand.columns for one in mine))
    return table.front(columns | {column for one in mine for column, _ in one.shared.values()})


def artifact_name(run: str, kind: FileKind, arch: Arch) -> str:
    """The class that an artifact is published for: the same for a run's same subnet and kind, always.

    So a device that has not heard of a new plan yet keeps a model that it can take, and runs that
    share a registry leave each other's artifacts alone.
    """
    told = json.dumps([run, dict(arch)], sort_keys=True, separators=(",", ":"))
    return f"{kind}.{sha256(told.encode()).hexdigest()[:12]}"


def write_plan(folder: Path, found: FleetPlan) -> Path:
    """Put the plan into the run's folder, for the job that makes its artifacts."""
    place = folder / FOLDER / found.fleet / PLAN
    durable.make_folder(place.parent)
    plan = found.plan
    told = {
        "fleet": found.fleet,
        "run": found.run,
        "supernet_sha256": found.supernet_sha256,
        "artifacts": [{**asdict(one), "arch": dict(one.arch)} for one in plan.artifacts],
        "devices": [
            {
                "device": one.demand.device,
                "kind": one.demand.kind,
                "bounds": [asdict(bound) for bound in one.demand.bounds],
                "lacks": sorted(one.demand.lacks),
                "weight": one.demand.weight,
                "artifact": one.artifact,
                "best": one.best,
            }
            for one in plan.placed
        ],
        "not_served": [asdict(one) for one in found.not_served],
        "candidates": plan.candidates,
        "fronts": dict(plan.fronts),
        "distinct": plan.distinct,
        "known": found.known,
    }
    durable.write(place, json.dumps(told).encode())
    return place


def read_plan(path: Path, space: Space) -> FleetPlan:
    """Read `write_plan`'s form, which our own command line wrote; ArtifactError where it is not."""
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        artifacts = tuple(
            Artifact(a["kind"], space.arch(a["arch"]), a["accuracy"], a["columns"])
            for a in told["artifacts"]
        )
        placed = tuple(_placed(row) for row in told["devices"])
        not_served = tuple(Rejected(**row) for row in told["not_served"])
        counts = (told["candidates"], told["fronts"], told["distinct"])
        plan = Plan(artifacts, placed, (), (), *counts)
        names = (told["fleet"], told["run"], told["supernet_sha256"])
        return FleetPlan(*names, plan, not_served, told["known"])
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise ArtifactError(f"plan {path} cannot be read ({error}); plan again") from None


def _placed(row: Mapping[str, Any]) -> Placed:
    bounds = tuple(Bound(**bound) for bound in row["bounds"])
    demand = Demand(row["device"], row["kind"], bounds, frozenset(row["lacks"]), row["weight"])
    return Placed(demand, row["artifact"], row["best"])
