"""The plan for a fleet: from the run's folder and the fleet's file, without any device."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from ..protos.manifest import FileKind
from ..protos.probes import ProbeSet
from ..specialize.fleet.candidates import FEWEST, Accuracies, candidates
from ..specialize.fleet.demand import Demand
from ..specialize.fleet.plan import Artifact, Plan, plan_fleet
from ..specialize.fleet.shares import divided
from ..specialize.fleet.table import Table
from ..specialize.predictors.contract import Sample
from ..specialize.predictors.kinds import PREDICTORS
from ..specialize.predictors.rank_report import rank_report
from ..supernet.errors import ArtifactError, UsageError
from ..supernet.space import Arch, Space
from ..supernet.weights import digest
from . import measured_sizes
from .branches.trained import Trained
from .config import RunConfig
from .fleet_demands import Wanted, wanted
from .fleet_file import FleetFile, Rejected, read_fleet
from .fleet_reasons import reason_of, unserved_reason
from .latencies import read_probe_set
from .measured_subnets import MORE, samples
from .recording import environment
from .specialize_config import ExportConfig

FOLDER = "fleets"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """A plan with what belongs to it: for which supernet, who is not served and why, what was known.

    `run` is the run's name, or the run's and its branch's; `source` is the fleet's file. `export` is a
    digest of what, besides weights and devices, decides what a file is like (`export_digest`).
    """

    fleet: str
    run: str
    supernet_sha256: str
    plan: Plan
    not_served: tuple[Rejected, ...]
    known: Mapping[str, object]
    source: str = ""
    export: str = ""

    def name_of(self, artifact: Artifact) -> str:
        """The class that an artifact of the plan is published for."""
        made_of = (self.run, self.supernet_sha256, self.export)
        return artifact_name(made_of, artifact.kind, artifact.arch)


def plan_for(trained: Trained, path: Path, most: int) -> FleetPlan:
    """Plan for the devices in a fleet's file.

    UsageError where the file cannot be read, too few subnets were measured, or no device is left.
    """
    check_name(path)
    file = read_fleet(path)
    config, space = trained.config, trained.config.build_space()
    supernet = digest(trained.checkpoint.weights)
    measured = samples(trained.folder, supernet, space)
    distinct = len({sample.arch for sample in measured})
    if distinct < FEWEST:
        raise UsageError(
            f"{distinct} subnets of this run were measured; a fleet "
            f"is planned from at least {FEWEST}: {MORE}"
        )
    larger = measured_sizes.most(trained.folder)
    asked = wanted(file, path.parent, space, _probes(config, space), larger)
    found, not_served = planned(file, asked, (config.search.predictor, measured), most, config.seed)
    known = {
        "measured_subnets": distinct,
        "predictor": rank_report(space, measured, PREDICTORS[config.search.predictor]).to_dict(),
        "latency": dict(asked.trust),
    }
    source, export = str(path.resolve()), export_digest(config.export)
    return FleetPlan(path.stem, config.name, supernet, found, not_served, known, source, export)


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
    """The models of each gateway with their shares; apart those of one that cannot host them all, and
    those that nothing fits."""
    shares: list[Demand] = []
    refused: list[Rejected] = []
    kinds = {one.demand.kind for _, hosted in asked.gateways.values() for one in hosted}
    fronts = {kind: _front(table, kind, asked) for kind in kinds}
    for name, (limits, hosted) in asked.gateways.items():
        try:
            able, unable = divided(
                name, limits, hosted, [fronts[one.demand.kind] for one in hosted]
            )
            shares += able
            refused += [reason_of(one) for one in unable]
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


def export_digest(export: ExportConfig) -> str:
    """Of the settings of an export and the versions of what converts."""
    told = [export.model_dump(mode="json"), dict(environment().packages)]
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def artifact_name(made_of: tuple[str, str, str], kind: FileKind, arch: Arch) -> str:
    """The class that an artifact is published for; `made_of`: run, supernet and export.

    It is the same for the same subnet and kind as long as the file is made of the same in the same way,
    so that a device which pulls by class never gets a file of another size, whatever is planned later;
    and runs that share a registry leave each other's artifacts alone.
    """
    told = json.dumps([*made_of, dict(arch)], sort_keys=True, separators=(",", ":"))
    return f"{kind}.{sha256(told.encode()).hexdigest()[:12]}"


def check_name(path: Path) -> None:
    """UsageError where a fleet's file has a name that no folder in a run's can have."""
    if re.fullmatch(NAME, path.stem) is None:
        raise UsageError(
            f"fleet {path}: its folder is named {path.stem!r}, after the file; letters, digits, '.', "
            "'_' and '-' are allowed, and it begins with a letter or a digit. Rename the file"
        )
