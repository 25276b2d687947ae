"""Timing probes on this device, with the runtime that will run its model. No torch in here.

Files take turns: each round times every file once, so that a processor that grows slower, or another
program, harms all alike. In a round the fastest of many runs counts, what the device can do when
nothing disturbs it; over the rounds the median, so that no lucky round decides.
"""

import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import numpy as np

from ..protos.inference import InferenceModel, available_kinds, open_model
from ..protos.manifest import FileEntry, FileKind
from ..protos.probes import (
    LEAST_S,
    MOST_S,
    KindMeasured,
    Measurements,
    Probe,
    ProbeSet,
    absurd,
    read_probe,
    read_set,
)
from ..supernet.errors import ArtifactError, UsageError
from .probe_memory import Cost

ROUNDS, TURN_S, LEAST_RUNS = 7, 0.02, 5
FEW_ROUNDS, SLOW_S = 3, 0.1
MEMORY_TIMEOUT_S = 300.0
Tell = Callable[[str], None]


def measure(
    folder: Path,
    kinds: Iterable[FileKind] = (),
    threads: int = 1,
    tell: Tell = lambda _text: None,
    rounds: int = ROUNDS,
) -> Measurements:
    """Time the probes in a folder, as files of the kinds given, or of all that can run here.

    UsageError for a kind that no runtime here runs, or that the set lacks; ArtifactError for a file
    that is damaged, does not load, or answers faster than any processor could.
    """
    probes = read_set(folder)
    offered = {entry.kind for probe in probes.probes for entry in probe.files}
    wanted = tuple(kinds) or tuple(kind for kind in available_kinds() if kind in offered)
    for kind in wanted:
        if kind not in offered or kind not in available_kinds():
            raise UsageError(
                f"--kind {kind}: "
                + (
                    f"the probes in {folder} have no such files (they have {', '.join(sorted(offered))})"
                    if kind not in offered
                    else "no runtime here; pip install ai-edge-litert or onnxruntime"
                )
            )
    if not wanted:
        raise UsageError(
            "no runtime here runs the probes; pip install ai-edge-litert or onnxruntime"
        )
    found = []
    for kind in wanted:
        tell(f"{kind}: timing {len(probes.probes)} probes")
        found.append(_measured(folder, probes, kind, threads, rounds))
    return Measurements(probe_set=probes.digest, kinds=tuple(found))


def _measured(
    folder: Path, probes: ProbeSet, kind: FileKind, threads: int, rounds: int
) -> KindMeasured:
    with_file = [probe for probe in probes.probes if probe.file(kind)]
    for probe in with_file:
        read_probe(folder, probe, _entry(probe, kind))
    # In a process of its own, which has loaded nothing before.
    costs = _costs(folder, [p for p in with_file if p.arch is not None], kind, threads)
    models = {probe.name: _opened(folder, probe, kind, threads) for probe in with_file}
    inputs = {probe.name: _input(probe) for probe in with_file}
    for name, model in models.items():
        model.run(inputs[name])
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(fastest_s(model, inputs[name]))
    found = KindMeasured(
        kind=kind,
        runtime=_runtime(next(iter(models.values()))),
        threads=threads,
        seconds={name: median(mine) for name, mine in times.items()},
        noise=median(_spread(mine) for mine in times.values()),
        load_s={name: max(cost.load_s, LEAST_S) for name, cost in costs.items()},
        peak_bytes={name: cost.peak_bytes for name, cost in costs.items()},
    )
    if reason := absurd(found, probes):
        raise ArtifactError(f"{kind}: {reason}; is the clock right? Measure again")
    return found


def fastest_s(model: InferenceModel, x: np.ndarray) -> float:
    """Seconds of the fastest of many runs on the example `x` (1, …) within a turn."""
    best, runs, end = math.inf, 0, time.perf_counter() + TURN_S
    while runs < LEAST_RUNS or time.perf_counter() < end:
        begin = time.perf_counter()
        model.run(x)
        best = min(best, time.perf_counter() - begin)
        runs += 1
    return best


def latency_s(model: InferenceModel, x: np.ndarray) -> float | None:
    """Seconds of one run on the example `x` (1, …) of a model that has run before.

    The median of a few turns as probes are timed; of a slow model a single run. None for what is beyond
    any latency that is believed.
    """
    begin = time.perf_counter()
    model.run(x)
    once = time.perf_counter() - begin
    found = once if once > SLOW_S else median(fastest_s(model, x) for _ in range(FEW_ROUNDS))
    return max(found, LEAST_S) if found <= MOST_S else None


def _opened(folder: Path, probe: Probe, kind: FileKind, threads: int) -> InferenceModel:
    entry = _entry(probe, kind)
    return open_model(folder / probe.name / entry.name, entry, threads)


def _entry(probe: Probe, kind: FileKind) -> FileEntry:
    entry = probe.file(kind)
    if entry is None:
        raise ArtifactError(f"probe {probe.name} has no file {kind}")
    return entry


def _input(probe: Probe) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, *probe.input_shape)).astype(np.float32)


def _spread(times: list[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return (high - low) / middle


def _runtime(model: InferenceModel) -> str:
    package = model.runtime
    try:
        return f"{package} {importlib.metadata.version(package.replace('_', '-'))}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _costs(folder: Path, probes: list[Probe], kind: FileKind, threads: int) -> Mapping[str, Cost]:
    """Loading time and peak memory of each, from a fresh process; nothing where it is not Linux."""
    if not sys.platform.startswith("linux"):
        return {}
    asked = [probe.model_dump_json() for probe in probes]
    with TemporaryDirectory() as scratch:
        out = Path(scratch, "costs.json")
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fedofa.client.probe_memory", str(folder), kind,
             str(threads), str(out)],
            input=json.dumps(asked), text=True, capture_output=True, check=False,
            timeout=MEMORY_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ArtifactError(f"{kind}: the process that measures memory failed: {last[0]}")
        return {name: Cost(*values) for name, values in json.loads(out.read_text()).items()}
