"""The job that carries out a fleet's plan: artifacts are made and published, and devices settled on them."""

from pathlib import Path

from ..protos.depot import is_device_name
from ..supernet.weights import digest
from . import registry_plans
from .branches.trained import Trained
from .evaluation import FederatedEvaluator
from .events import EventLog
from .fleet import Roll
from .fleet_delivery import Delivered, Delivery
from .fleet_plan_file import read_plan
from .fleet_report import write_assignment
from .recording import Scribe, published
from .registry import Registry
from .registry_plans import Settled


def deliver(plan: Path, registry: Path, found: Trained, roll: Roll, log: EventLog) -> None:
    """Make and publish the artifacts of a plan, let the registry give them to its devices by name,
    and write down which device gets which; the job is entered into the run's record."""
    planned = read_plan(plan, roll.space)
    count = len(planned.plan.artifacts)
    log("started", job="specialize", fleet=planned.fleet, artifacts=count)
    config, fleet = found.of_fleet(roll.gather(), log)
    newest = found.checkpoint
    scribe, weights = Scribe("fleet", [log.path], planned.fleet), digest(newest.weights)
    scribe.begins(found.folder, config, newest.round, weights)
    evaluator = FederatedEvaluator(roll.exchange, fleet, roll.space, newest.weights, log)
    evaluator.configure(config)
    work = Delivery(config, evaluator, fleet, log)
    done = work.run(found.folder, registry, planned, found.channel)
    with Registry(registry) as opened:
        taken = registry_plans.settle(opened, settled_of(done), found.channel)
    path = write_assignment(found.folder, done, taken)
    models = [made.manifest for made, _ in done.made.values()]
    left = published(path, models, str(registry), found.channel)
    scribe.ends(found.folder, config, newest.round, weights, left)
    names = [made.name for made, _ in done.made.values()]
    log("finished", job="specialize", published=names, assignment=str(path))


def settled_of(done: Delivered) -> Settled:
    """What each device is to get by its own name.

    A row of the fleet's file that could not be read may repeat the name of one that is served, or have
    none that a device could give: it is told in the report alone.
    """
    versions = {
        at: (made.manifest.model, made.manifest.version) for at, (made, _) in done.made.items()
    }
    served = {one.demand.device: versions[one.artifact] for one in done.placed}
    not_served: dict[str, str] = {}
    for one in done.not_served:
        if one.device not in served and is_device_name(one.device):
            not_served.setdefault(one.device, f"{one.field}: {one.reason}")
    return Settled(done.plan.run, done.plan.fleet, served, not_served)
