"""The README's two-terminal way, with real processes: serve, join, run, specialize, pull."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fedofa.server.checkpoint import CheckpointStore
from fedofa.supernet.weights import digest

CONFIG = """
name = "tiny"
seed = 3

[space]
preset = "digits"
stem_widths = [8]
head_widths = [24]
stages = [
  {{ widths = [8, 16], depths = [1, 2], expands = [2, 3], kernels = [3], stride = 2 }},
  {{ widths = [16, 24], depths = [1], expands = [2], kernels = [3], stride = 2 }},
]

[round]
rounds = {rounds}
min_clients = 2
deadline_s = 300.0

[recipe]
lr = 0.2
epochs = 1

[search]
samples = 8
population = 8
generations = 2
finalists = 1
random_baseline = 1

[export]
formats = ["onnx"]
max_accuracy_drop = 0.5

[classes.big]
macs = 1_000_000

[classes.small]
macs = 40_000

[simulation]
clients = {{ big = 1, small = 1 }}
"""
CLASSES = ("big", "small")


def fedofa(*arguments: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    return _run("fedofa.server.cli", *arguments, timeout_s=timeout_s)


def device(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _run("fedofa.client.cli", *arguments, timeout_s=120)


def _run(module: str, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def started(log: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=file, stderr=subprocess.STDOUT, env=environment(), start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@contextlib.contextmanager
def server(folder: Path) -> Iterator[dict[str, Any]]:
    state = folder / "state"
    arguments = ("serve", "--state", str(state), "--port", "0", "--depot-port", "0")
    with started(folder / "serve.log", "fedofa.server.cli", *arguments) as process:
        yield {**_addresses(state, folder / "serve.log", process), "process": process}


def _addresses(state: Path, log: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    end = time.monotonic() + 60
    while not (state / "serve.json").exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    found: dict[str, Any] = json.loads((state / "serve.json").read_text())
    return found


@contextlib.contextmanager
def devices(folder: Path, address: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for place, name in enumerate(CLASSES):
            stack.enter_context(
                started(
                    folder / f"{name}.log", "fedofa.client.cli", "join", "--server", address,
                    "--name", f"{name}-0", "--device-class", name,
                    "--data", "fedofa.client.datasets:digits",
                    "--client", str(place), "--clients", "2",
                )
            )  # fmt: skip
        yield


def weights_of(state: Path) -> str:
    found = CheckpointStore(state / "runs" / "tiny" / "checkpoints").latest()
    assert found is not None
    return digest(found.weights)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fedofa.toml"
    path.write_text(CONFIG.format(rounds=2))
    return path


@pytest.mark.timeout(400)
def test_the_way_by_hand_works_and_gives_the_same_supernet_as_a_simulation(
    tmp_path: Path, config: Path
) -> None:
    before = set(psutil.pids())
    state = tmp_path / "state"
    place = ("--config", str(config), "--state", str(state))
    with server(tmp_path) as addresses, devices(tmp_path, addresses["devices"]):
        finished = json.loads(fedofa("run", *place, "--json").stdout)
        published = json.loads(fedofa("specialize", *place, "--json").stdout)
        device("data", "--data", "fedofa.client.datasets:digits_test", "--write", str(tmp_path))
        store = ("--store", str(tmp_path / "models"), "--device-class", "small")
        device("pull", "--server", addresses["depot"], *store)
        inputs = ("--input", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy"))
        measured = json.loads(device("run", *store, *inputs, "--json").stdout)
    simulated = tmp_path / "simulated"
    fedofa("simulate", "--config", str(config), "--state", str(simulated), "--json")
    assert finished["weights"] == weights_of(state) == weights_of(simulated)
    assert {row["class"] for row in published} == set(CLASSES)
    small = next(row for row in published if row["class"] == "small")
    assert small["cost"]["macs"] <= 40_000
    assert measured["examples"] == 449
    assert 0.0 <= measured["accuracy"] <= 1.0
    left = [p for p in set(psutil.pids()) - before if _ours(p, tmp_path)]
    assert not left


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_devices_of_a_fleet_pull_models_of_their_own_from_a_live_server(
    tmp_path: Path, config: Path
) -> None:
    fleet = tmp_path / "fleet.json"
    bounds = {"meter": 40_000, "door": 1_000_000}
    fleet.write_text(
        json.dumps(
            {
                "runtimes": {"board": {"kind": "onnx_int8", "macs_per_s": 4e7}},
                "devices": [
                    {"name": name, "runtime": "board", "budget": {"macs": macs}}
                    for name, macs in bounds.items()
                ],
            }
        )
    )
    config.write_text(config.read_text().replace("samples = 8", "samples = 12"))
    place = ("--config", str(config), "--state", str(tmp_path / "state"))
    device("data", "--data", "fedofa.client.datasets:digits_test", "--write", str(tmp_path))
    inputs = ("--input", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy"))
    with server(tmp_path) as addresses, devices(tmp_path, addresses["devices"]):
        fedofa("run", *place, "--evaluate", "--json")
        done = json.loads(fedofa("specialize", *place, "--fleet", str(fleet), "--json").stdout)
        assert done["summary"]["served"] == len(bounds)
        for name in bounds:
            store = ("--store", str(tmp_path / name), "--device", name)
            device("pull", "--server", addresses["depot"], *store)
            measured = json.loads(device("run", *store, *inputs, "--json").stdout)
            assert measured["examples"] == 449
            (held,) = json.loads(device("status", *store, "--json").stdout)["models"]
            (mine,) = (
                one
                for one in done["artifacts"]
                if one["device_class"] == held["current"]["device_class"]
            )
            assert held["device"] == name
            assert mine["macs"] <= bounds[name]
            assert mine["size_bytes"] == Path(held["current"]["path"]).stat().st_size


def _ours(pid: int, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and str(folder) in " ".join(
            process.cmdline()
        )
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_whose_server_was_killed_resumes_and_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    config = tmp_path / "fedofa.toml"
    config.write_text(CONFIG.format(rounds=6))
    state = tmp_path / "state"
    place = ("--config", str(config), "--state", str(state))
    with (
        server(tmp_path) as addresses,
        devices(tmp_path, addresses["devices"]),
        started(tmp_path / "run.log", "fedofa.server.cli", "run", *place),
    ):
        _wait_for_round(state, 2)
        mine = psutil.Process(addresses["process"].pid)
        for process in [*mine.children(recursive=True), mine]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(1)
    done = CheckpointStore(state / "runs" / "tiny" / "checkpoints").rounds()[-1]
    assert 2 <= done < 6
    (state / "serve.json").unlink(missing_ok=True)
    with server(tmp_path) as addresses, devices(tmp_path, addresses["devices"]):
        fedofa("run", *place, "--resume", "--json", timeout_s=400)
    simulated = tmp_path / "simulated"
    fedofa("simulate", "--config", str(config), "--state", str(simulated), "--json")
    assert weights_of(state) == weights_of(simulated)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_asynchronous_run_goes_through_real_processes_and_its_ledger_is_whole(
    tmp_path: Path,
) -> None:
    config = tmp_path / "fedofa.toml"
    limits = 'deadline_s = 300.0\nmode = "async"\nbuffer = 1'
    config.write_text(CONFIG.format(rounds=5).replace("deadline_s = 300.0", limits))
    state = tmp_path / "state"
    place = ("--config", str(config), "--state", str(state))
    with server(tmp_path) as addresses, devices(tmp_path, addresses["devices"]):
        finished = json.loads(fedofa("run", *place, "--json", timeout_s=400).stdout)
    assert finished["weights"] == weights_of(state)
    folder = state / "runs" / "tiny"
    head = json.loads(fedofa("verify", "--ledger", str(folder), "--json").stdout)
    assert (head["ok"], head["recorded"]) == (True, 5)
    rounds = [
        event
        for line in (folder / "events.jsonl").read_text().splitlines()
        if (event := json.loads(line))["event"] == "round"
    ]
    assert [event["accepted"] for event in rounds] == [1] * 5
    # Two at work, one makes a version: the other's weights are older than the newest by then.
    assert max(event["staleness"] for event in rounds) >= 1


def _wait_for_round(state: Path, number: int) -> None:
    store = CheckpointStore(state / "runs" / "tiny" / "checkpoints")
    end = time.monotonic() + 200
    while not store.rounds() or store.rounds()[-1] < number:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_gives_the_same_supernet_as_one_process(tmp_path: Path, config: Path) -> None:
    found = []
    for backend in ("local", "ray"):
        state = tmp_path / backend
        fedofa(
            "simulate", "--config", str(config), "--state", str(state), "--backend", backend,
            "--json", timeout_s=400,
        )  # fmt: skip
        found.append(weights_of(state))
    assert found[0] == found[1]
