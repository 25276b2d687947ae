"""The record of a run's jobs: signed, whole or not at all, and only what stands nowhere else."""

import time
from pathlib import Path
from typing import Any

import pytest
from fedofa.server import run_record
from fedofa.server.events import EventLog
from fedofa.server.ledger import Ledger
from fedofa.server.ledger_keys import KEY, PUBLIC, SigningKey, run_key
from fedofa.server.recording import Scribe
from fedofa.server.run_record import RECORD, Published, RunRecord
from fedofa.supernet.errors import ArtifactError, UsageError
from fleets import small_config

WEIGHTS, OTHER = "a" * 64, "b" * 64


def trained(folder: Path) -> Path:
    """A run folder in which a training job was done."""
    log = EventLog(folder / "events.jsonl")
    log("started", job="train")
    Ledger.open(folder, "tiny").started(0, WEIGHTS)
    scribe = Scribe("train", [log.path])
    scribe.begins(folder, small_config(), 0, WEIGHTS)
    log("round", round=1)
    scribe.ends(folder, small_config(), 1, OTHER)
    return folder


def test_a_job_is_entered_when_it_begins_and_again_when_it_is_done(tmp_path: Path) -> None:
    folder, log = trained(tmp_path), EventLog(tmp_path / "events.jsonl")
    (job,) = run_record.read(folder).jobs
    assert (job.kind, job.round, job.weights) == ("train", 1, OTHER)
    assert job.config == small_config().model_dump(mode="json")
    assert job.head == Ledger.open(folder, "tiny").head
    assert job.logs["events.jsonl"].size_bytes == log.path.stat().st_size
    assert job.environment.packages["torch"].startswith("2.")

    Scribe("train", [log.path]).begins(folder, small_config(), 1, OTHER)  # and is killed
    record = run_record.read(folder)
    assert [one.seconds is None for one in record.jobs] == [False, True]
    assert record.newest("train") == job
    assert record.newest("specialize") is None


def test_a_branch_notes_where_its_runs_log_lies(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log("started", job="train")
    branch = tmp_path / "branches" / "one"
    Ledger.open(branch, "tiny.one").started(0, WEIGHTS)
    Scribe("train", [log.path]).ends(branch, small_config(), 0, WEIGHTS)
    (job,) = run_record.read(branch).jobs
    assert (branch / next(iter(job.logs))).resolve() == log.path


def test_any_changed_byte_of_the_record_is_noticed(tmp_path: Path) -> None:
    path = trained(tmp_path) / RECORD
    data = path.read_bytes()
    for place in range(0, len(data), 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ArtifactError, match=r"run record .*run\.json"):
            run_record.read(tmp_path)
    path.write_bytes(data)
    assert run_record.read(tmp_path).run == "tiny"


def test_half_a_record_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    path = trained(tmp_path) / RECORD
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match=r"run\.json: not a whole record .*Restore the file"):
        run_record.read(tmp_path)


def test_another_keys_signature_is_refused(tmp_path: Path) -> None:
    record = run_record.read(trained(tmp_path))
    run_record.write(tmp_path, record, SigningKey.drawn())
    with pytest.raises(ArtifactError, match=f"another key than {PUBLIC}'s"):
        run_record.read(tmp_path)
    run_record.write(tmp_path, record, run_key(tmp_path, new=False))
    assert run_record.read(tmp_path) == record


def test_a_newer_version_is_refused_by_its_number(tmp_path: Path) -> None:
    record = run_record.read(trained(tmp_path)).model_copy(update={"schema_version": 2})
    run_record.write(tmp_path, record, run_key(tmp_path, new=False))
    with pytest.raises(ArtifactError, match=r"schema_version.*knows schema_version 1"):
        run_record.read(tmp_path)


def test_where_there_is_none_a_run_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.json: no such file; a run begins it"):
        run_record.read(tmp_path)


def test_without_the_ledgers_key_nothing_is_begun(tmp_path: Path) -> None:
    (trained(tmp_path) / KEY).unlink()
    with pytest.raises(UsageError, match=r"ledger\.key"):
        Scribe("train", [tmp_path / "events.jsonl"]).begins(tmp_path, small_config(), 1, OTHER)


@pytest.mark.parametrize("change", ["train published", "specialize did not"])
def test_what_was_published_belongs_to_a_specialization_that_is_done(
    change: str, tmp_path: Path
) -> None:
    job: dict[str, Any] = run_record.read(trained(tmp_path)).jobs[0].model_dump()
    left = Published(results_sha256=WEIGHTS, manifests={}, registry="r", channel="stable")
    job |= (
        {"published": left.model_dump()}
        if change == "train published"
        else {"kind": "specialize", "began_unix_s": time.time()}
    )
    with pytest.raises(ValueError, match="belongs to each job that is done, but training"):
        RunRecord.model_validate({"run": "tiny", "jobs": [job]})
