"""`fedofa-device` as its users run it: real processes, a real depot, a real model."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import draft, swapping_onnx, write
from fedofa.client.golden import run_golden
from fedofa.client.store import DeviceStore
from fedofa.protos.depot import CHUNK_BYTES
from fedofa.protos.manifest import FileKind
from fedofa.server.depot import Depot, serve_depot
from fedofa.server.registry import Registry
from fedofa.server.registry_plans import Settled, settle
from fedofa.supernet.errors import ArtifactError
from tcp_proxy import Proxy

KIND: FileKind = "onnx_fp32"
GOOD = {KIND: swapping_onnx()}
WRONG = {KIND: swapping_onnx(swaps=False)}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry") as opened:
        yield opened


@pytest.fixture
def depot(registry: Registry) -> Iterator[Depot]:
    running = serve_depot(registry, "127.0.0.1:0")
    yield running
    running.stop(0)


def publish(registry: Registry, contents: dict[FileKind, bytes]) -> None:
    registry.publish(draft(contents), write(registry.root.parent / "source", contents))


def device(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fedofa.client.cli", *arguments]
    environment = {**os.environ, "FEDOFA_STORE": str(tmp_path / "device"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def answer(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    done = device(tmp_path, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def placed(tmp_path: Path, contents: dict[FileKind, bytes]) -> Path:
    """A version's folder without a depot."""
    store, manifest = DeviceStore(tmp_path / "placed", "board"), draft(contents)
    model = store.find(manifest.to_json(), manifest, KIND)
    part = write(tmp_path / "source", contents)[KIND]
    store.place(model, manifest.to_json(), part)
    return model.folder


def test_pull_run_status_and_rollback(registry: Registry, depot: Depot, tmp_path: Path) -> None:
    server, board = ("--server", f"127.0.0.1:{depot.port}"), ("--device-class", "board")
    publish(registry, GOOD)
    pulled = answer(tmp_path, "pull", *server, *board)
    assert (pulled["version"], pulled["kind"], pulled["activated"]) == (1, KIND, True)
    assert Path(pulled["path"]).read_bytes() == GOOD[KIND]

    np.save(tmp_path / "x.npy", np.array([[9, 0], [0, 9], [0, 5], [7, 1]], np.uint8))
    np.save(tmp_path / "y.npy", np.array([1, 0, 0, 0]))
    x, y = str(tmp_path / "x.npy"), str(tmp_path / "y.npy")
    ran = answer(tmp_path, "run", *board, "--input", x, "--labels", y)
    assert (ran["accuracy"], ran["examples"], ran["predictions"]) == (0.75, 4, None)
    assert 0 < ran["latency_ms"]["median"] <= ran["latency_ms"]["p95"]
    ran = answer(tmp_path, "run", *board, "--input", x)
    assert (ran["accuracy"], ran["predictions"]) == (None, ["b", "a", "a", "b"])

    publish(registry, WRONG)
    failed = device(tmp_path, "pull", *server, *board)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: golden test: onnx_fp32: its output is off by 2;")
    assert failed.stderr.count("\n") == 1
    (one,) = answer(tmp_path, "status")["models"]
    assert (one["current"]["version"], one["previous"]) == (1, None)
    assert [strikes["count"] for strikes in one["failed"].values()] == [1]

    publish(registry, {KIND: swapping_onnx(note="third")})
    assert answer(tmp_path, "pull", *server, *board)["version"] == 3
    assert answer(tmp_path, "rollback", *board)["version"] == 1
    text = device(tmp_path, "status").stdout
    assert "version 1" in text
    assert "previous: 3-" in text


def test_a_device_pulls_runs_and_rolls_back_by_its_own_name(
    registry: Registry, depot: Depot, tmp_path: Path
) -> None:
    server, me = ("--server", f"127.0.0.1:{depot.port}"), ("--device", "pi-1")
    publish(registry, GOOD)
    settle(registry, Settled("run", "sensors", {"pi-1": ("net", 1)}, {}))
    pulled = answer(tmp_path, "pull", *server, *me)
    assert (pulled["device_class"], pulled["activated"]) == ("board", True)
    noted = {KIND: swapping_onnx(note="of another class")}
    other = draft(noted, "other", "phone")
    registry.publish(other, write(registry.root.parent / "other", noted))
    settle(registry, Settled("run", "sensors", {"pi-1": ("other", 1)}, {}))
    assert answer(tmp_path, "pull", *server, *me)["device_class"] == "phone"
    np.save(tmp_path / "x.npy", np.array([[9, 0], [0, 9]], np.uint8))
    ran = answer(tmp_path, "run", *me, "--input", str(tmp_path / "x.npy"))
    assert (ran["device_class"], ran["predictions"]) == ("phone", ["b", "a"])
    assert answer(tmp_path, "rollback", *me)["device_class"] == "board"
    (one,) = answer(tmp_path, "status", *me)["models"]
    assert (one["device"], one["current"]["device_class"]) == ("pi-1", "board")
    assert answer(tmp_path, "status")["models"] == [one]
    settle(registry, Settled("run", "sensors", {}, {"pi-1": "budget.macs: no subnet fits"}))
    refused = device(tmp_path, "pull", *server, *me)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "fleet sensors (run run): budget.macs: no subnet fits" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pull", "--server", "127.0.0.1:1"], "--device NAME"),
        (["pull", "--server", "127.0.0.1:1", "--device", "a/b"], "device 'a/b': 1 to 128"),
        (["run", "--device", "a", "--input", "x.npy"], "no model for device 'a'"),
        (["rollback", "--device", "a", "--device-class", "a"], "--device-class NAME, or --device"),
        (["pull", "--server", "depot.example:1", "--device-class", "a"], "--ca FILE"),
        (["pull", "--server", "nowhere", "--device-class", "a"], "HOST:PORT"),
        (["pull", "--server", "127.0.0.1:1", "--device-class", "../a"], "device class '../a'"),
        (["pull", "--server", "127.0.0.1:1", "--device-class", "a", "--kind", "pt"], "tflite_int8"),
        (["pull", "--server", "127.0.0.1:1", "--device-class", "a", "--token-file", "x"], "token"),
        (["pull", "--server", "127.0.0.1:1", "--device-class", "a", "--ca", "x"], "ca: x"),
        (["run", "--device-class", "a", "--input", "x.npy"], "fedofa-device pull"),
        (["rollback", "--device-class", "a"], "no previous model"),
        (["pull"], "--server"),
    ],
)
def test_wrong_use_ends_with_exit_code_2_and_says_what_is_allowed(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = device(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("input", np.zeros((3, 5), np.float32), "(N, 2) in layout NC"),
        ("input", np.zeros((0, 2), np.float32), "(N, 2)"),
        ("input", np.zeros(2, np.float32), "(N, 2)"),
        ("input", np.full((3, 2), np.nan, np.float32), "NaN"),
        ("input", np.array([["a", "b"]]), "numbers"),
        ("input", np.array([[{}, {}]], object), "numbers"),
        ("labels", np.zeros(4, np.int64), "integers (3,)"),
        ("labels", np.zeros(3, np.float32), "integers (3,)"),
        ("labels", np.array([0, 1, 2]), "allowed: 0 to 1"),
        ("labels", np.array([0, 1, -1]), "allowed: 0 to 1"),
    ],
)
def test_arrays_of_the_wrong_form_are_refused(
    tmp_path: Path, name: str, array: np.ndarray[Any, Any], said: str
) -> None:
    from fedofa.client.device_model import read_inputs, read_labels
    from fedofa.supernet.errors import UsageError

    path = tmp_path / "array.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UsageError) as caught:
        read_inputs(path, draft(GOOD)) if name == "input" else read_labels(path, 3, 2)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    from fedofa.client.device_model import read_inputs
    from fedofa.supernet.errors import UsageError

    path = tmp_path / "array.npy"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"input .*npy"):
        read_inputs(path, draft(GOOD))


def test_raw_inputs_are_normalized_along_the_channels() -> None:
    from fedofa.client.device_model import normalize
    from fedofa.protos.manifest import Normalization

    normalization = Normalization(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    raw = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    by_hand = np.stack([(raw[:, 0] - 1) / 1, (raw[:, 1] - 2) / 2, (raw[:, 2] - 3) / 4], 1)
    for layout, order in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1))):
        changes = {"normalization": normalization, "layout": layout}
        manifest = draft(GOOD).model_copy(update=changes)
        result = normalize(manifest, raw.transpose(order))
        np.testing.assert_allclose(result, by_hand.transpose(order), rtol=1e-6)


def test_the_golden_test_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    run_golden(placed(tmp_path, GOOD), KIND)
    with pytest.raises(ArtifactError, match=r"off by 2; the manifest allows 0\.001"):
        run_golden(placed(tmp_path, WRONG), KIND)
    with pytest.raises(ArtifactError, match="golden test: onnx_fp32"):
        run_golden(placed(tmp_path, {KIND: b"no model"}), KIND)


@pytest.mark.parametrize(
    ("script", "timeout_s", "said"),
    [
        ("kill -SEGV $$", 30, "crashed its runtime .signal 11."),
        ("exec sleep 60", 0.5, "no result in 0.5 s"),
        ("exit 3", 30, "no message"),
    ],
)
def test_a_model_that_crashes_or_hangs_its_runtime_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, timeout_s: float, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ArtifactError, match=said):
        run_golden(tmp_path, KIND, timeout_s)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_pull_that_is_stopped_leaves_a_download_to_resume(
    registry: Registry, depot: Depot, tmp_path: Path, number: int, code: int
) -> None:
    contents = {KIND: swapping_onnx(note="long" * CHUNK_BYTES)}
    publish(registry, contents)
    store = DeviceStore(tmp_path / "device", "board")
    part, board = store.part(draft(contents).files[0].sha256), ("--device-class", "board")
    with Proxy(depot.port, stalls=[2 * CHUNK_BYTES]) as proxy:
        command = [sys.executable, "-m", "fedofa.client.cli", "pull", *board]
        command += ["--server", f"127.0.0.1:{proxy.port}", "--store", str(store.root)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 30
            while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert part.stat().st_size >= CHUNK_BYTES
    assert store.current() is None
    pulled = answer(tmp_path, "pull", "--server", f"127.0.0.1:{depot.port}", *board)
    assert pulled["resumed_bytes"] >= CHUNK_BYTES
    assert pulled["resumed_bytes"] + pulled["downloaded_bytes"] == len(contents[KIND])


FORBIDDEN = """
import sys
from fedofa.client.cli import app
app(sys.argv[1:], standalone_mode=False)
found = {name.partition(".")[0] for name in sys.modules}
print("loaded:", sorted(found & {"torch", "flwr", "sqlalchemy", "grpc", "numpy"}), file=sys.stderr)
"""


def loaded(*arguments: str) -> str:
    command = [sys.executable, "-c", FORBIDDEN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_pulling_and_running_import_neither_torch_nor_flwr(
    registry: Registry, depot: Depot, tmp_path: Path
) -> None:
    publish(registry, GOOD)
    np.save(tmp_path / "x.npy", np.zeros((2, 2), np.float32))
    board = ("--device-class", "board", "--store", str(tmp_path / "device"))
    pulled = loaded("pull", *board, "--server", f"127.0.0.1:{depot.port}")
    assert pulled == "loaded: ['grpc', 'numpy']"
    assert loaded("run", *board, "--input", str(tmp_path / "x.npy")) == "loaded: ['numpy']"


def test_the_depot_imports_neither_torch_nor_flwr() -> None:
    script = "import sys, fedofa.server.depot; print({'torch', 'flwr'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "set()\n", done.stderr


def test_help_answers_at_once() -> None:
    # Processor time: the machine may be busy.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert loaded("--help") == "loaded: []"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
