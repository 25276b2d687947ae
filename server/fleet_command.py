"""`fedofa specialize --fleet`: plan without devices, then have the server make what was planned."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..supernet.errors import UsageError
from .branches.places import branch_folder
from .branches.trained import branch_names, trained
from .config import RunConfig
from .fleet_plan import FleetPlan, plan_for
from .fleet_plan_file import write_plan
from .fleet_report import planned_report, read_assignment
from .jobs import Job
from .operate import follow_job, run_folder, specialize_job
from .progress import Event


@dataclasses.dataclass(frozen=True, slots=True)
class FleetOptions:
    """Which fleet, at most how many artifacts, and whether to stop at the plan."""

    path: Path
    artifacts: int
    plan_only: bool = False
    branch: str | None = None


def plan_job(state: Path, config: RunConfig, options: FleetOptions) -> tuple[Job, FleetPlan]:
    """The plan, in the run's folder, and the job that makes it.

    UsageError where the run is not trained, has branches and none is named, or the fleet's file, or
    what was measured, does not do.
    """
    job = specialize_job(state, config, options.branch)
    folder = run_folder(state, config)
    names = branch_names(folder)
    if names and options.branch is None:
        raise UsageError(
            f"the run has branches ({', '.join(names)}): say with --branch which the fleet is for"
        )
    found = trained(folder, config, options.branch)
    plan = plan_for(found, options.path, options.artifacts)
    path = write_plan(found.folder, plan)
    return dataclasses.replace(job, fleet=str(path)), plan


def specialize_fleet(
    state: Path, config: RunConfig, options: FleetOptions, show: Callable[[Event], None]
) -> dict[str, Any]:
    """Plan, and unless only that is asked for, make and publish; what there is then to say."""
    job, plan = plan_job(state, config, options)
    if options.plan_only:
        return planned_report(plan)
    follow_job(state, job, show)
    return delivered(job, plan)


def delivered(job: Job, plan: FleetPlan) -> dict[str, Any]:
    """What a job that has ended published for a plan."""
    folder = Path(job.folder)
    if job.branch is not None:
        folder = branch_folder(folder, job.branch)
    return read_assignment(folder, plan.fleet)
