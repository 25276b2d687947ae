"""The demo as a user runs it: what it reports, its bounds, and that nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest
from fedofa.protos.manifest import Manifest
from fedofa.server.demo_report import pareto

BUDGETS = {"gateway", "phone", "board", "micro"}


def start(out: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fedofa.server.cli", "demo", "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def running_in(folder: Path) -> list[psutil.Process]:
    """Live processes that name this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(folder) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_front_holds_what_no_cheaper_subnet_equals() -> None:
    points = [(5, 0.9), (3, 0.8), (4, 0.8), (9, 0.9), (3, 0.7), (8, 0.95), (10, 0.5)]
    found = pareto([{"macs": macs, "accuracy": accuracy} for macs, accuracy in points])
    assert found == [(3, 0.8), (5, 0.9), (8, 0.95)]


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_the_demo_keeps_its_bounds_over_three_seeds_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    reports = [report_of(tmp_path / str(seed), seed) for seed in range(3)]
    means = {
        (place, kind): fmean(report["devices"][place]["accuracy"][kind] for report in reports)
        for place in range(len(BUDGETS))
        for kind in ("fp32", "tflite_int8", "onnx_int8")
    }
    largest, smallest = 0, len(BUDGETS) - 1
    assert means[largest, "fp32"] >= 0.95
    assert means[smallest, "fp32"] >= 0.90
    for (place, _), mean in means.items():
        assert mean >= means[place, "fp32"] - 0.01


def report_of(out: Path, seed: int) -> dict[str, Any]:
    with start(out, "--json", "--seed", str(seed)) as demo:
        printed, said = demo.communicate(timeout=500)
    assert demo.returncode == 0, said
    report: dict[str, Any] = json.loads(printed)
    assert json.loads((out / "report.json").read_text()) == report
    assert (report["dataset"], report["seed"]) == ("scikit-learn digits", seed)
    assert len(report["clients"]) >= 5
    assert {client["class"] for client in report["clients"]} == BUDGETS
    budgets = [device["budget"]["macs"] for device in report["devices"]]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[0] >= 8 * budgets[-1]
    for device in report["devices"]:
        check_device(device)
    assert report["devices"][0]["macs"] > budgets[-1]
    assert report["peak_memory_mb"] < 4000
    assert report["seconds"] < 180
    assert (out / "pareto.png").stat().st_size > 5000
    assert not running_in(out)
    return report


def check_device(device: dict[str, Any]) -> None:
    assert device["macs"] <= device["budget"]["macs"]
    for path in device["files"].values():
        assert Path(path).stat().st_size > 1000
    manifest = Manifest.from_json(Path(device["manifest"]).read_bytes())
    assert manifest.device_class == device["class"]
    assert dict(manifest.arch) == device["arch"]
    assert device["latency_ms"]["tflite_int8"]["median"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_demo_that_is_ended_half_way_takes_its_processes_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with start(out, "--json") as demo:
        log, end = out / "state" / "runs" / "digits" / "events.jsonl", time.monotonic() + 120
        while not log.exists() or '"round"' not in log.read_text():
            assert demo.poll() is None, demo.communicate()
            assert time.monotonic() < end
            time.sleep(0.2)
        processes = family(demo.pid)
        assert len(processes) > 15
        os.kill(demo.pid, number)
        demo.communicate(timeout=90)
    end = time.monotonic() + 30
    while alive(processes) and time.monotonic() < end:
        time.sleep(0.2)
    left = alive(processes)
    for process in left:
        process.kill()
    assert not left
    assert demo.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
