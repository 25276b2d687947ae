"""What a Flower run does for us: a job, described by a file, run with any grid."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flwr.serverapp import Grid

from ..supernet.errors import FedofaError, RunError, UsageError
from ..supernet.weights import digest
from .checkpoint import CheckpointStore
from .config import RunConfig, parse_config
from .events import EventLog
from .exchange import Exchange
from .fleet import Roll
from .specialization import Specialization
from .strategy import SupernetStrategy
from .training import Training

JOB_KEY = "fedofa-job"
EVENTS, CHECKPOINTS, JOB = "events.jsonl", "checkpoints", "job.json"


@dataclass(frozen=True, slots=True)
class Job:
    """Train a supernet, or specialize a trained one; everything is in one run folder."""

    kind: Literal["train", "specialize"]
    folder: str
    config: Mapping[str, object]
    resume: bool = False
    registry: str | None = None
    events: str = EVENTS

    def write(self) -> Path:
        """Put the job into its folder; returns the file, which the ServerApp reads."""
        path = Path(self.folder) / f"{self.kind}-{JOB}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))
        return path


def read_job(path: str) -> Job:
    """Read `Job.write`'s form."""
    return Job(**json.loads(Path(path).read_text()))


def run_job(job: Job, grid: Grid) -> None:
    """Do the job; what happens is told in the event log, its end and its errors too."""
    log = EventLog(Path(job.folder) / job.events)
    try:
        config = parse_config(job.config)
        exchange = Exchange(grid)
        if job.kind == "train":
            train(job, config, exchange, log)
        else:
            specialize(job, config, exchange, log)
    except FedofaError as error:
        log("failed", job=job.kind, reason=str(error), exit_code=error.exit_code)
        raise
    except BaseException as error:
        log("failed", job=job.kind, reason=f"{type(error).__name__}: {error}", exit_code=1)
        raise


def prepare(folder: Path, *, resume: bool) -> None:
    """UsageError where a run would overwrite another, or has nothing to resume."""
    rounds = CheckpointStore(folder / CHECKPOINTS).rounds()
    if rounds and not resume:
        raise UsageError(
            f"run folder {folder} already holds {rounds[-1]} rounds: go on with --resume, "
            "or give the config another name"
        )
    if resume and not rounds:
        raise UsageError(f"run folder {folder} holds no checkpoint to resume; run without --resume")


def train(job: Job, config: RunConfig, exchange: Exchange, log: EventLog) -> Training:
    """Train the supernet, from the start or from the newest checkpoint."""
    space = config.build_space()
    store = CheckpointStore(Path(job.folder) / CHECKPOINTS, config.round.keep_checkpoints)
    training = Training(config, space, store, log)
    if job.resume:
        training.resume()
    log("started", job="train", rounds=config.round.rounds, done=training.round)
    roll = Roll(exchange, space, config, log)
    SupernetStrategy(training, roll, exchange, log).start(exchange.grid)
    log("finished", job="train", rounds=training.round, weights=digest(training.weights))
    return training


def specialize(job: Job, config: RunConfig, exchange: Exchange, log: EventLog) -> None:
    """Search, export, verify and publish each class's model from the newest checkpoint."""
    found = CheckpointStore(Path(job.folder) / CHECKPOINTS).latest()
    if found is None:
        raise UsageError(f"run folder {job.folder} holds no trained supernet; fedofa run first")
    if job.registry is None:
        raise RunError("job specialize: no registry was given")
    space = config.build_space()
    log("started", job="specialize", classes=list(config.classes), round=found.round)
    fleet = Roll(exchange, space, config, log).gather()
    work = Specialization(config, space, found.weights, exchange, fleet, log)
    results = work.run(Path(job.folder), Path(job.registry))
    log("finished", job="specialize", published=[r.device_class for r in results])
