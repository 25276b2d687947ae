"""What the operator's commands do: submit a job to a running server and follow it to its end."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..supernet.errors import RunError, UsageError
from .accuracies import ACCURACIES
from .branches.places import branch_folder
from .branches.trained import chosen
from .config import RunConfig
from .finishing.order import Order
from .finishing.start import DEFAULT_ROUNDS, OUTCOME, find_start, refuse
from .jobs import EVENTS, JOB_KEY, Job, prepare, refuse_busy
from .model_folders import RESULTS
from .progress import Event, Tail, following
from .proxy import Proxy
from .serve import REGISTRY, read_addresses
from .submit import stop_run, submit, wait

RUNS = "runs"
SPECIALIZE_EVENTS, EVALUATE_EVENTS = "specialize-events.jsonl", "evaluate-events.jsonl"


def run_folder(state: Path, config: RunConfig) -> Path:
    """Where a run keeps its checkpoints, events and models."""
    return (state / RUNS / config.name).resolve()


def train_job(
    state: Path,
    config: RunConfig,
    *,
    resume: bool,
    then_specialize: bool = False,
    then_evaluate: bool = False,
) -> Job:
    """The job of `fedofa run`; UsageError when the folder says otherwise, or what is to follow."""
    folder = run_folder(state, config)
    if then_specialize:
        _refuse_export(config)
    Proxy.of(config, config.build_space())  # said here, before there is anything of a run
    prepare(folder, resume=resume)
    return Job(
        "train",
        str(folder),
        config.model_dump(mode="json"),
        resume,
        registry=_registry(state) if then_specialize else None,
        events=EVENTS,
        evaluate=then_evaluate,
    )


def evaluate_job(state: Path, config: RunConfig, branch: str | None = None) -> Job:
    """The job of `fedofa evaluate`: of one branch, or of all; UsageError for one there is not."""
    folder = _trained_folder(state, config)
    _check_branch(folder, branch)
    return Job(
        "evaluate",
        str(folder),
        config.model_dump(mode="json"),
        events=EVALUATE_EVENTS,
        branch=branch,
    )


def _check_branch(folder: Path, branch: str | None) -> None:
    if branch is not None:
        chosen(folder, branch)


def _trained_folder(state: Path, config: RunConfig) -> Path:
    folder = run_folder(state, config)
    if not folder.is_dir():
        raise UsageError(f"run folder {folder} does not exist; train first: fedofa run")
    refuse_busy(folder)
    return folder


def specialize_job(state: Path, config: RunConfig, branch: str | None = None) -> Job:
    """The job of `fedofa specialize`: of one branch, or of all.

    UsageError for a branch there is not, and where the run's models cannot be exported.
    """
    _refuse_export(config)
    folder = _trained_folder(state, config)
    _check_branch(folder, branch)
    return Job(
        "specialize",
        str(folder),
        config.model_dump(mode="json"),
        registry=_registry(state),
        events=SPECIALIZE_EVENTS,
        branch=branch,
    )


def finish_job(
    state: Path, config: RunConfig, device_class: str, *, rounds: int | None, resume: bool
) -> Job:
    """The job of `fedofa finish`, of one class for so many rounds (None: as it was begun, or a few).

    UsageError where there is nothing to finish, or a finishing in the way: see `find_start` and
    `check_folder`.
    """
    refuse(config, device_class)
    folder, registry = _trained_folder(state, config), _registry(state)
    if rounds is None and not resume:
        rounds = DEFAULT_ROUNDS
    order = Order(folder, Path(registry), device_class, rounds, resume)
    order.check()
    if rounds is not None and not resume:
        find_start(folder, Path(registry), config, device_class, rounds)
    return Job(
        "finish",
        str(folder),
        config.model_dump(mode="json"),
        resume,
        registry=registry,
        events=str((order.folder / EVENTS).relative_to(folder)),
        device_class=device_class,
        rounds=rounds,
    )


def _refuse_export(config: RunConfig) -> None:
    plan = config.share.plan(config.build_space())
    plan.in_round(config.round.rounds + 1).refuse_export()


def _registry(state: Path) -> str:
    return str((state / REGISTRY).resolve())


def follow_job(state: Path, job: Job, show: Callable[[Event], None]) -> dict[str, Any]:
    """Submit a job to the server with this state folder; its `finished` event.

    Stops the run when interrupted. Raises what the job failed of, as the job said it.
    """
    control = read_addresses(state).control
    path = job.write()
    tail = Tail(Path(job.folder) / job.events, show)
    try:
        run_id = submit(control, {JOB_KEY: str(path)})
        _await(control, run_id, tail)
    finally:
        path.unlink(missing_ok=True)
    return _finished(tail)


def _await(control: str, run_id: int, tail: Tail) -> None:
    try:
        wait(control, run_id, lambda _state: tail())
    except RunError as error:
        tail()
        raise _reason(tail, error) from None
    except BaseException:
        with contextlib.suppress(RunError):  # it may have ended by itself meanwhile
            stop_run(control, run_id)
        raise


def _finished(tail: Tail) -> dict[str, Any]:
    for _ in range(20):
        tail()
        if "finished" in tail.last:
            return tail.last["finished"]
        time.sleep(0.05)
    raise RunError("the run ended without saying that it finished; see its event log")


def _reason(tail: Tail, error: RunError) -> RunError | UsageError:
    failed = tail.last.get("failed")
    if failed is None:
        return error
    kind = UsageError if failed["exit_code"] == UsageError.exit_code else RunError
    return kind(_told(failed))


def _told(failed: Mapping[str, Any]) -> str:
    """A failed job's reason, and on a line of its own the head of its ledger, to be noted."""
    head = failed.get("ledger")
    return str(failed["reason"]) + (f"\nthe ledger's head: {head}" if head else "")


def simulate_job(job: Job, backend: str, show: Callable[[Event], None]) -> dict[str, Any]:
    """Do a job with simulated devices; its `finished` event."""
    from .simulate import simulate

    tail = Tail(Path(job.folder) / job.events, show)
    with following(tail):
        simulate(job, backend)
    return _finished(tail)


def results(job: Job, file: str = RESULTS) -> list[dict[str, Any]]:
    """What a specialize job published, or another job found, with the branch where there are some."""
    folder, rows = Path(job.folder), list[dict[str, Any]]()
    for branch in chosen(folder, job.branch):
        if branch is None:
            return list(json.loads((folder / file).read_text()))
        path = branch_folder(folder, branch) / file
        found = json.loads(path.read_text()) if path.exists() else []  # one that failed has none
        rows += [{"branch": branch, **row} for row in found]
    return rows


def outcome(job: Job, finished: dict[str, Any]) -> Any:
    """What there is to show of a job that ended with this event: models, accuracies, or that."""
    if job.kind == "finish":
        return json.loads((job.order().folder / OUTCOME).read_text())
    if job.registry is not None:
        return results(job)
    if job.kind == "evaluate" or job.evaluate:
        return results(job, ACCURACIES)
    return finished
