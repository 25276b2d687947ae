"""What a Flower run does for us: a job, described by a file, run with any grid."""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flwr.serverapp import Grid

from ..protos import durable
from ..supernet.errors import FedofaError, RunError, UsageError
from ..supernet.weights import digest
from .accuracies import Accuracies
from .checkpoint import Checkpoint, CheckpointStore
from .config import RunConfig, parse_config
from .events import EventLog
from .exchange import Exchange
from .fleet import Roll
from .ledger import Ledger
from .privacy.statement import statement
from .specialization import Specialization
from .strategy import SupernetStrategy
from .training import Training

JOB_KEY = "fedofa-job"
EVENTS, CHECKPOINTS, JOB, LOCK = "events.jsonl", "checkpoints", "job.json", "job.lock"


@dataclass(frozen=True, slots=True)
class Job:
    """Train a supernet, or evaluate or specialize a trained one; everything is in one run folder.

    A `train` job with `evaluate` evaluates too when training is done, one with a registry specializes.
    """

    kind: Literal["train", "evaluate", "specialize"]
    folder: str
    config: Mapping[str, object]
    resume: bool = False
    registry: str | None = None
    events: str = EVENTS
    evaluate: bool = False

    def write(self) -> Path:
        """Put the job into its folder, in a file of its own, which the ServerApp reads."""
        path = Path(self.folder) / f"{self.kind}-{uuid.uuid4().hex[:12]}-{JOB}"
        durable.make_folder(path.parent)
        durable.write(path, json.dumps(asdict(self)).encode())
        return path


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
        log = EventLog(Path(job.folder) / job.events)
        try:
            _run(job, Exchange(grid), log)
        except FedofaError as error:
            log("failed", job=job.kind, reason=str(error), exit_code=error.exit_code)
            raise
        except BaseException as error:
            log("failed", job=job.kind, reason=f"{type(error).__name__}: {error}", exit_code=1)
            raise


def _run(job: Job, exchange: Exchange, log: EventLog) -> None:
    config = parse_config(job.config)
    roll = Roll(exchange, config.build_space(), config, log)
    if job.kind == "train":
        train(job, config, roll, log)
    if job.kind == "evaluate" or job.evaluate:
        evaluate(job, config, roll, log)
    if job.kind == "specialize" or job.registry is not None:
        specialize(job, config, roll, log)


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


def train(job: Job, config: RunConfig, roll: Roll, log: EventLog) -> Training:
    """Train the supernet, from the start or from the newest checkpoint."""
    store = CheckpointStore(Path(job.folder) / CHECKPOINTS, config.round.keep_checkpoints)
    ledger = Ledger.open(Path(job.folder), config.name)
    training = Training(config, roll.space, store, log, ledger)
    if not (job.resume and training.resume()):
        training.begin()
    log("started", job="train", rounds=config.round.rounds, done=training.round)
    SupernetStrategy(training, roll, roll.exchange, log).start(roll.exchange.grid)
    log(
        "finished",
        job="train",
        rounds=training.round,
        weights=digest(training.weights),
        ledger=ledger.head,
        **({} if training.private is None else {"privacy": statement(training.private)}),
    )
    return training


def _trained(job: Job) -> Checkpoint:
    found = CheckpointStore(Path(job.folder) / CHECKPOINTS).latest()
    if found is None:
        raise UsageError(f"run folder {job.folder} holds no trained supernet; fedofa run first")
    return found


def evaluate(job: Job, config: RunConfig, roll: Roll, log: EventLog) -> None:
    """What each class's best subnet of the newest checkpoint scores on the devices."""
    found = _trained(job)
    log("started", job="evaluate", classes=list(config.classes), round=found.round)
    work = Accuracies(config, roll.space, found, roll.exchange, roll.gather(), log)
    results = work.run(Path(job.folder))
    log("finished", job="evaluate", measured=[r.choice.device_class for r in results])


def specialize(job: Job, config: RunConfig, roll: Roll, log: EventLog) -> None:
    """Search, export, verify and publish each class's model from the newest checkpoint."""
    found = _trained(job)
    config.share.plan(roll.space).in_round(found.round + 1).refuse_export()
    if job.registry is None:
        raise RunError("job specialize: no registry was given")
    log("started", job="specialize", classes=list(config.classes), round=found.round)
    fleet = roll.gather()
    work = Specialization(config, roll.space, found.weights, roll.exchange, fleet, log)
    results = work.run(Path(job.folder), Path(job.registry))
    log("finished", job="specialize", published=[r.device_class for r in results])
