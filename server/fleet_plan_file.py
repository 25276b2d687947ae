"""A fleet's plan as a file in the run's folder: for whoever looks it up, and for the job that makes it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..protos import durable
from ..specialize.fleet.demand import Bound, Demand
from ..specialize.fleet.plan import Artifact, Placed, Plan
from ..supernet.errors import ArtifactError, UsageError
from ..supernet.space import Space
from .fleet_file import Rejected
from .fleet_plan import FOLDER, FleetPlan

PLAN, OWN = "plan.json", "plan-{}.json"
"""A fleet's newest plan, and a job's own, named after its content."""


def write_plan(folder: Path, found: FleetPlan) -> Path:
    """Put the plan into the run's folder, and beside it, under a name of its own, for the job that
    makes its artifacts: no later plan replaces what a job reads.

    UsageError where the folder is of another file of that name.
    """
    place = folder / FOLDER / found.fleet / PLAN
    _check_source(place, found.source)
    durable.make_folder(place.parent)
    content = _content(found)
    own = place.with_name(OWN.format(sha256(content).hexdigest()[:12]))
    durable.write(own, content)
    durable.write(place, content)
    return own


def sweep_plans(settled: Path, awaited: Collection[Path]) -> None:
    """Remove the plans that jobs had for themselves before this one, which is settled now.

    Those that jobs still wait to read stay, and so do newer ones, whose job may not be submitted yet.
    """
    newest_ns = settled.stat().st_mtime_ns
    for path in settled.parent.glob(OWN.format("*")):
        if path != settled and path not in awaited and path.stat().st_mtime_ns < newest_ns:
            path.unlink()


def _check_source(place: Path, source: str) -> None:
    try:
        before = json.loads(place.read_bytes())["source"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or an old one: it is replaced
        return
    if before != source:
        raise UsageError(
            f"{place.parent} is of the fleet {before}, and {source} would replace it; rename the "
            "file, or remove that folder"
        )


def _content(found: FleetPlan) -> bytes:
    plan = found.plan
    told = {
        "fleet": found.fleet,
        "run": found.run,
        "source": found.source,
        "supernet_sha256": found.supernet_sha256,
        "export": found.export,
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
    return json.dumps(told).encode()


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
        return FleetPlan(*names, plan, not_served, told["known"], told["source"], told["export"])
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise ArtifactError(f"plan {path} cannot be read ({error}); plan again") from None


def _placed(row: Mapping[str, Any]) -> Placed:
    bounds = tuple(Bound(**bound) for bound in row["bounds"])
    demand = Demand(row["device"], row["kind"], bounds, frozenset(row["lacks"]), row["weight"])
    return Placed(demand, row["artifact"], row["best"])
