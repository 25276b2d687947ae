"""`fedofa demo`: the whole way on one machine with real processes and no shortcut.

A server, five devices, one training run, one specialization, and for each class a separate process
that pulls its model, verifies it and measures it on examples that no client saw.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from ..supernet.errors import RunError, UsageError
from .children import Child, Children
from .config import RunConfig, parse_config
from .demo_report import (
    build_report,
    print_report,
    require_all_published,
    write_page,
    write_plot,
)
from .operate import follow_job, train_job
from .progress import Event, View
from .serve import ADDRESSES_FILE, Addresses, read_addresses

DATA = "fedofa.client.datasets:digits"
TEST_DATA = "fedofa.client.datasets:digits_test"
ALPHA = 1.0  # of the Dirichlet split
FLEET = ("gateway", "gateway", "phone", "board", "micro")
KINDS = ("tflite_int8", "onnx_int8", "onnx_fp32")
MARKER = ".fedofa-demo"
SERVER_GRACE_S, DEVICE_TIMEOUT_S = 30.0, 120.0
# To sum them up, the kernel walks every page of every process: at most this share of a core.
MEMORY_POLL_S, MEMORY_SHARE = 2.0, 0.03
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def demo_config(seed: int) -> RunConfig:
    """The demo's run: four classes whose budgets differ 15 times."""
    return parse_config(
        {
            "name": "digits",
            "seed": seed,
            "space": {"preset": "digits"},
            "round": {
                "rounds": 8,
                "min_clients": len(FLEET),
                "min_replies": 3,
                "deadline_s": 300.0,
            },
            "search": {
                "samples": 16,
                "population": 32,
                "generations": 12,
                "finalists": 2,
                "random_baseline": 2,
            },
            "recipe": {
                "lr": 0.3,
                "epochs": 4,
                "batch_size": 32,
                "clip_norm": 1.0,
                "students": "sandwich",
            },
            # Eight rounds are too few to grow in: everybody's largest from the first one on.
            "sampler": {"kind": "cover"},
            "server": {"optimizer": "none"},
            "classes": {
                "gateway": {"macs": 1_000_000},
                "phone": {"macs": 300_000},
                "board": {"macs": 130_000},
                "micro": {"macs": 64_000, "params": 8_000},
            },
        }
    )


def run_demo(out: Path, seed: int, *, quiet: bool) -> dict[str, Any]:
    """Run it all; returns the report, which is also in OUT/report.json.

    UsageError when OUT holds something else; RunError when a process fails, naming its log.
    """
    begin = time.monotonic()
    config = demo_config(seed)
    _clean(out)
    stage = _Stage(out.resolve(), config)
    show: Callable[[Event], None] = _silent
    with contextlib.ExitStack() as stack:
        if not quiet:
            view = stack.enter_context(View(Console(stderr=True)))
            show = view
        memory = stack.enter_context(PeakMemory())
        addresses = stack.enter_context(stage.server())
        job = train_job(stage.state, config, resume=False, then_specialize=True)
        with stage.devices(addresses):
            follow_job(stage.state, job, show)
        require_all_published(Path(job.folder))
        stage.write_test_part()
        with ThreadPoolExecutor(2) as pool:  # threads only wait for processes
            list(pool.map(lambda name: stage.pull(name, addresses), config.classes))
        # One after the other: two at once would slow each other's latency.
        measured = {name: stage.measure(name) for name in config.classes}
    report = build_report(out, config, measured)
    report["seconds"] = round(time.monotonic() - begin, 1)
    report["peak_memory_mb"] = round(memory.peak_bytes / 2**20)
    (out / "report.json").write_text(json.dumps(report, indent=1))
    write_plot(out / "pareto.png", report)
    write_page(out / "report.html", Path(job.folder), measured)
    if not quiet:
        print_report(report, out)
    return report


def _silent(_event: Event) -> None:
    pass


def _clean(out: Path) -> None:
    """An empty output folder: a former demo's is emptied, anything else is left alone."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(f"{out} is not empty and holds no demo; give another folder (--out)")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


@dataclass(frozen=True, slots=True)
class _Stage:
    """The demo's folders and processes."""

    out: Path
    config: RunConfig

    @property
    def state(self) -> Path:
        return self.out / "state"

    @contextlib.contextmanager
    def server(self) -> Iterator[Addresses]:
        """`fedofa serve` as a process, until the end of the block."""
        ports = ("--port", "0", "--depot-port", "0")
        serve = Child(
            "serve",
            _module("fedofa.server.cli", "serve", "--state", str(self.state), *ports),
            lambda _log: (self.state / ADDRESSES_FILE).exists(),
            grace_s=SERVER_GRACE_S,
        )
        with self._running([serve]):
            yield read_addresses(self.state)

    @contextlib.contextmanager
    def devices(self, addresses: Addresses) -> Iterator[None]:
        """One `fedofa-device join` process per client, each reading only its own part."""
        with self._running([self._device(place, addresses) for place in range(len(FLEET))]):
            yield

    def _device(self, place: int, addresses: Addresses) -> Child:
        name = f"{FLEET[place]}-{place}"
        what = ("--name", name, "--device-class", FLEET[place], "--data", DATA)
        part = (
            "--client",
            str(place),
            "--clients",
            str(len(FLEET)),
            "--data-arg",
            f"alpha={ALPHA}",
        )
        join = ("join", "--server", addresses.devices, *what, *part, *self._seed)
        return Child(name, _module("fedofa.client.cli", *join), env=ONE_THREAD, waits=False)

    @contextlib.contextmanager
    def _running(self, table: list[Child]) -> Iterator[None]:
        with Children(table, self.out / "logs") as children:
            children.start(threading.Event())
            yield

    @property
    def _seed(self) -> tuple[str, str]:
        return "--data-arg", f"seed={self.config.seed}"

    def write_test_part(self) -> None:
        """The held-out examples as files, for the devices that measure their models."""
        self._ask("data", "--data", TEST_DATA, *self._seed, "--write", str(self.out / "test"))

    def pull(self, device_class: str, addresses: Addresses) -> None:
        """Pull each kind of a class's model, each in a new process that verifies it."""
        for kind in KINDS:
            place = self._store(device_class, kind)
            self._ask("pull", "--server", addresses.depot, "--kind", kind, *place, "--json")

    def measure(self, device_class: str) -> dict[str, Any]:
        """Run each kind of a class's model on the test part, each in a new process."""
        test = self.out / "test"
        data = ("--input", str(test / "x.npy"), "--labels", str(test / "y.npy"), "--json")
        return {
            kind: json.loads(self._ask("run", *self._store(device_class, kind), *data))
            for kind in KINDS
        }

    def _store(self, device_class: str, kind: str) -> tuple[str, ...]:
        return "--store", str(self.out / "devices" / kind), "--device-class", device_class

    def _ask(self, *arguments: str) -> str:
        command = _module("fedofa.client.cli", *arguments)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEVICE_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise RunError(f"fedofa-device {arguments[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    # -P: the current folder's files must not stand in for modules.
    return (sys.executable, "-P", "-m", name, *arguments)


class PeakMemory:
    """The largest memory of this process and all its descendants together, sampled.

    Proportional set size where the system gives it: pages that processes share count once.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        me, pause_s = psutil.Process(), MEMORY_POLL_S
        while not self._stop.wait(pause_s):
            begin_s, total = time.thread_time(), 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    info = process.memory_full_info()
                    total += getattr(info, "pss", info.rss)
            self.peak_bytes = max(self.peak_bytes, total)
            pause_s = max(MEMORY_POLL_S, (time.thread_time() - begin_s) / MEMORY_SHARE)
