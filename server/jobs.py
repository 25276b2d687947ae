"""What a Flower run does for us: a job, described by a file, run with any grid."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flwr.serverapp import Grid

from ..protos import durable
from ..supernet.errors import FedofaError, RunError, UsageError
from ..supernet.space import Space
from ..supernet.weights import digest
from . import measured_subnets
from .accuracies import Accuracies
from .branches.places import branch_folder
from .branches.trained import Trained, chosen, trained
from .branches.training import BranchedTraining
from .checkpoint import CHECKPOINTS, CheckpointStore
from .config import RunConfig, parse_config
from .events import EventLog
from .exchange import Exchange
from .finishing.finishing import finish
from .finishing.order import Order
from .fleet import Roll
from .fleet_job import deliver
from .fleet_plan_file import sweep_plans
from .ledger import Ledger
from .ledger_chain import LEDGER, noted_head
from .model_folders import RESULTS
from .recording import Scribe, published
from .specialization import Specialization
from .strategy import SupernetStrategy
from .training import Training

JOB_KEY = "fedofa-job"
EVENTS, JOB, LOCK = "events.jsonl", "job.json", "job.lock"


@dataclass(frozen=True, slots=True)
class Job:
    """Train a supernet, or evaluate, specialize or finish a trained one, all in one run folder.

    A `train` job with `evaluate` evaluates too when training is done, one with a registry specializes.
    Of a run with branches, evaluating and specializing are about `branch`, or all in turn. `fleet` is
    the plan of a fleet, for which then is specialized, and not for the classes. Finishing is about
    `device_class`, for so many `rounds` (None, with `resume`: as it was begun).
    """

    kind: Literal["train", "evaluate", "specialize", "finish"]
    folder: str
    config: Mapping[str, object]
    resume: bool = False
    registry: str | None = None
    events: str = EVENTS
    evaluate: bool = False
    branch: str | None = None
    fleet: str | None = None
    device_class: str | None = None
    rounds: int | None = None

    def write(self) -> Path:
        """Put the job into its folder, in a file of its own, which the ServerApp reads."""
        path = Path(self.folder) / f"{self.kind}-{uuid.uuid4().hex[:12]}-{JOB}"
        durable.make_folder(path.parent)
        durable.write(path, json.dumps(asdict(self)).encode())
        return path

    def order(self) -> Order:
        """What a job to finish is about; RunError where it does not say."""
        if self.registry is None or self.device_class is None:
            raise RunError(f"job {self.kind}: no registry or no class was given")
        folder, registry = Path(self.folder), Path(self.registry)
        return Order(folder, registry, self.device_class, self.rounds, self.resume)


def read_job(path: str) -> Job:
    """Read `Job.write`'s form."""
    return Job(**json.loads(Path(path).read_text()))


def run_job(job: Job, grid: Grid) -> None:
    """Do the job; what happens is told in the event log, its end and its errors too.

    UsageError, and not a word in the log, while another job works in the same folder.
    """
    with claimed(Path(job.folder)):
        if job.kind == "train":
            check_rounds(Path(job.folder), resume=job.resume)
        if job.kind == "finish":
            job.order().check()
        log = EventLog(Path(job.folder) / job.events)
        try:
            _run(job, Exchange(grid), log)
        except FedofaError as error:
            log("failed", **_failure(job, str(error), error.exit_code))
            raise
        except BaseException as error:
            log("failed", **_failure(job, f"{type(error).__name__}: {error}", 1))
            raise


def _failure(job: Job, reason: str, exit_code: int) -> dict[str, object]:
    """What is told of a job that failed; of training with the head of what its ledger holds."""
    told: dict[str, object] = {"job": job.kind, "reason": reason, "exit_code": exit_code}
    folder = job.order().folder if job.kind == "finish" else Path(job.folder)
    head = noted_head(folder / LEDGER) if job.kind in ("train", "finish") else None
    return told if head is None else {**told, "ledger": head}


def _run(job: Job, exchange: Exchange, log: EventLog) -> None:
    config = parse_config(job.config)
    if job.kind == "finish":
        finish(job.order(), config, exchange, log)
        return
    roll = Roll(exchange, config.build_space(), config, log)
    if job.kind == "train":
        train(job, config, roll, log)
    if job.kind == "evaluate" or job.evaluate:
        _each(job, config, log, lambda found: evaluate(found, roll, log))
    if job.kind == "specialize" or job.registry is not None:
        _each(job, config, log, lambda found: specialize(job, found, roll, log))
    if job.kind != "train" or job.evaluate or job.registry is not None:
        # Not before: a job that is resumed measures once more what it had measured.
        for branch in chosen(folder := Path(job.folder), job.branch):
            measured_subnets.finish(folder if branch is None else branch_folder(folder, branch))


def _each(job: Job, config: RunConfig, log: EventLog, work: Callable[[Trained], None]) -> None:
    """Do the work with the run's supernet, or with each branch's: one that fails leaves the others.

    RunError where every branch failed.
    """
    folder, reasons = Path(job.folder), dict[str, str]()
    branches = chosen(folder, job.branch)
    for branch in branches:
        try:
            work(trained(folder, config, branch))
        except FedofaError as error:
            if branch is None or len(branches) == 1:
                raise
            reasons[branch] = str(error)
            log("branch_failed", branch=branch, reason=str(error))
    if len(reasons) == len(branches):
        name, reason = next(iter(reasons.items()))
        raise RunError(f"nothing could be done in any branch; {name}: {reason}")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A run folder for one job alone; UsageError while another works in it."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(durable.locked(folder / LOCK))
        except BlockingIOError:
            raise UsageError(
                f"run folder {folder}: another job works in it; wait for its end, stop it, or give "
                "the config another name"
            ) from None
        except OSError as error:
            raise UsageError(f"run folder {folder} cannot be written: {error.strerror}") from None
        yield


def prepare(folder: Path, *, resume: bool) -> None:
    """UsageError where a run would overwrite or disturb another, or has nothing to resume."""
    check_rounds(folder, resume=resume)
    refuse_busy(folder)


def check_rounds(folder: Path, *, resume: bool) -> None:
    """UsageError where a run would overwrite another, or has nothing to resume."""
    rounds = CheckpointStore(folder / CHECKPOINTS).rounds()
    if rounds and not resume:
        raise UsageError(
            f"run folder {folder} already holds {rounds[-1]} rounds: go on with --resume, "
            "or give the config another name"
        )
    if resume and not rounds:
        raise UsageError(f"run folder {folder} holds no checkpoint to resume; run without --resume")


def refuse_busy(folder: Path) -> None:
    """UsageError while a job works in the folder: said before anything is submitted."""
    if folder.is_dir():
        with claimed(folder):
            pass


def train(job: Job, config: RunConfig, roll: Roll, log: EventLog) -> None:
    """Train the supernet, from the start or from the newest checkpoint."""
    training = _supernets(Path(job.folder), config, roll.space, log)
    if not (job.resume and training.resume()):
        training.begin()
    log("started", job="train", rounds=config.round.rounds, done=training.round)
    scribe = Scribe("train", [log.path])
    # Branches are known once the fleet is there; those of an earlier part of the run, already now.
    for folder, part in _parts(job, training):
        scribe.begins(folder, part.config, part.round, digest(part.weights))
    SupernetStrategy(training, roll, roll.exchange, log).start(roll.exchange.grid)
    for folder, part in _parts(job, training):
        scribe.ends(folder, part.config, part.round, digest(part.weights))
    log("finished", job="train", rounds=training.round, **training.told())


def _parts(job: Job, training: Training | BranchedTraining) -> list[tuple[Path, Training]]:
    """Each supernet of a run, and its folder."""
    folder = Path(job.folder)
    if isinstance(training, Training):
        return [(folder, training)]
    return [(branch_folder(folder, name), part) for name, part in training.parts.items()]


def _supernets(
    folder: Path, config: RunConfig, space: Space, log: EventLog
) -> Training | BranchedTraining:
    if config.branches is not None:
        return BranchedTraining(config, config.branches, space, folder, log)
    store = CheckpointStore(folder / CHECKPOINTS, config.round.keep_checkpoints)
    return Training(config, space, store, log, Ledger.open(folder, config.name))


def evaluate(found: Trained, roll: Roll, log: EventLog) -> None:
    """What each class's best subnet of the newest checkpoint scores on the devices."""
    newest = found.checkpoint
    log("started", job="evaluate", classes=list(found.config.classes), round=newest.round)
    config, fleet = found.of_fleet(roll.gather(), log)
    work = Accuracies(config, roll.space, newest, roll.exchange, fleet, log)
    results = work.run(found.folder)
    log("finished", job="evaluate", measured=[r.choice.device_class for r in results])


def specialize(job: Job, found: Trained, roll: Roll, log: EventLog) -> None:
    """Search, export, verify and publish each class's model from the newest checkpoint."""
    newest = found.checkpoint
    if found.folder != Path(job.folder):
        log = log.tagged(branch=found.channel)
    found.config.share.plan(roll.space).in_round(newest.round + 1).refuse_export()
    if job.registry is None:
        raise RunError("job specialize: no registry was given")
    if job.fleet is not None:
        plan = Path(job.fleet)
        deliver(plan, Path(job.registry), found, roll, log)
        sweep_plans(plan, awaited_plans(Path(job.folder)))
        return
    log("started", job="specialize", classes=list(found.config.classes), round=newest.round)
    config, fleet = found.of_fleet(roll.gather(), log)
    scribe, weights = Scribe("specialize", [log.path]), digest(newest.weights)
    scribe.begins(found.folder, config, newest.round, weights)
    work = Specialization(config, roll.space, newest.weights, roll.exchange, fleet, log)
    results = work.run(found.folder, Path(job.registry), found.channel)
    models = [one.manifest for one in results]
    left = published(found.folder / RESULTS, models, job.registry, found.channel)
    scribe.ends(found.folder, config, newest.round, weights, left)
    log("finished", job="specialize", published=[r.device_class for r in results])


def awaited_plans(folder: Path) -> set[Path]:
    """The plans of jobs that were submitted, and have not ended as far as their operator knows."""
    found = set()
    for path in folder.glob(f"*-{JOB}"):
        with suppress(FileNotFoundError):  # it ended meanwhile
            job = read_job(str(path))
            if job.fleet is not None:
                found.add(Path(job.fleet))
    return found
