"""A run folder belongs to one job at a time, whatever becomes of that job."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fedofa.server.checkpoint import CHECKPOINTS, CheckpointStore
from fedofa.server.events import read_events
from fedofa.server.jobs import EVENTS, Job, claimed, read_job, run_job
from fedofa.server.ledger_chain import LEDGER, checked
from fedofa.server.ledger_keys import PUBLIC, PublicKey
from fedofa.server.operate import _reason, results, run_folder, specialize_job, train_job
from fedofa.server.progress import Tail
from fedofa.supernet.errors import RunError, UsageError
from fleets import Clients, grid_of, raising, run_of, small_config, small_fleet

HOLD = """
import sys, time
from pathlib import Path
from fedofa.server.jobs import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_job_in_a_folder_is_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    config = small_config()
    folder = run_folder(tmp_path, config)
    with claimed(folder):
        for make in (
            lambda: train_job(tmp_path, config, resume=False),
            lambda: specialize_job(tmp_path, config),
        ):
            with pytest.raises(UsageError, match="another job works in it"):
                make()
        assert sorted(path.name for path in folder.iterdir()) == ["job.lock"]
    assert train_job(tmp_path, config, resume=False).folder == str(folder)
    assert specialize_job(tmp_path, config).kind == "specialize"


def test_one_job_may_train_and_specialize_and_each_part_says_that_it_finished(
    reported_run: Path,
) -> None:
    events = [event for event, _ in read_events(reported_run / EVENTS)]
    ends = [event for event in events if event["event"] == "finished"]
    assert [event["job"] for event in ends] == ["train", "specialize"]
    assert ends[1]["published"] == ["big", "small"]
    job = Job("train", str(reported_run), {}, registry="anywhere")
    assert [row["class"] for row in results(job)] == ["big", "small"]
    asked = [event for event in events if event["event"] == "device_joined"]
    assert len(asked) == 2  # once, not once for each part


def test_a_job_without_a_registry_cannot_specialize(tmp_path: Path) -> None:
    config = small_config(round={"rounds": 1}, recipe={"steps": 1})
    grid = grid_of(small_fleet(tmp_path))
    run_job(train_job(tmp_path, config, resume=False), grid)
    job = replace(specialize_job(tmp_path, config), registry=None)
    with pytest.raises(RunError, match="no registry"):
        run_job(job, grid)


def test_a_run_that_fails_says_what_its_ledger_ends_with(tmp_path: Path) -> None:
    config = small_config(round={"rounds": 9, "min_replies": 2}, classes={"big": {}})
    job = train_job(tmp_path, config, resume=False)
    devices = small_fleet(tmp_path, ("big", "big"))
    tail = Tail(Path(job.folder) / EVENTS, lambda _: None)
    with pytest.raises(RunError, match="abandoned"):
        run_job(job, grid_of(devices, Clients({device.name: raising for device in devices})))
    tail()
    folder = Path(job.folder)
    head = checked(folder / LEDGER, PublicKey.read(folder / PUBLIC)).head
    assert tail.last["failed"]["ledger"] == head
    assert str(_reason(tail, RunError("x"))).endswith(f"\nthe ledger's head: {head}")


def test_a_run_that_waited_for_another_does_not_begin_over_its_rounds(tmp_path: Path) -> None:
    config = small_config(round={"rounds": 1}, recipe={"steps": 1})
    first, second = (train_job(tmp_path, config, resume=False) for _ in range(2))
    grid = grid_of(small_fleet(tmp_path))
    run_job(first, grid)
    with pytest.raises(UsageError, match="already holds 1 rounds"):
        run_job(second, grid)


def test_two_jobs_of_one_folder_have_files_of_their_own(tmp_path: Path) -> None:
    jobs = [train_job(tmp_path, small_config(seed=seed), resume=False) for seed in (1, 2)]
    paths = [job.write() for job in jobs]
    assert [read_job(str(path)).config["seed"] for path in paths] == [1, 2]


def test_a_job_that_comes_too_late_leaves_the_others_log_alone(tmp_path: Path) -> None:
    config = small_config(round={"rounds": 1}, recipe={"steps": 1})
    job = train_job(tmp_path, config, resume=False)
    folder = Path(job.folder)
    grid = grid_of(small_fleet(tmp_path))
    with claimed(folder), pytest.raises(UsageError, match="another job"):
        run_job(job, grid)
    assert not (folder / EVENTS).exists()
    run_job(job, grid)
    assert CheckpointStore(folder / CHECKPOINTS).rounds() == [1]


def test_resuming_a_run_that_still_runs_is_refused(tmp_path: Path) -> None:
    config = small_config(round={"rounds": 1}, recipe={"steps": 1})
    folder = run_folder(tmp_path, config)
    run_of(folder, config).start()
    with claimed(folder), pytest.raises(UsageError, match="another job"):
        train_job(tmp_path, config, resume=True)


def test_a_killed_job_gives_its_folder_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UsageError), claimed(tmp_path):
                pass
        finally:
            holder.kill()
            holder.wait()
    with claimed(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="file/run cannot be written"),
        claimed(tmp_path / "file" / "run"),
    ):
        pass
