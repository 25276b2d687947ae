"""Merging updates of a 5 M-parameter supernet: time against a numpy running mean, peak memory.

Memory is what a fresh process needs beyond its libraries, in supernets' sizes: the shared weights,
the running sum, the one update that is being added, and whatever else the merge makes. The updates
lie in files that another process wrote; each is read, added and dropped. glibc's limit above which
an array has memory of its own, given back when it is dropped, is held at its initial 128 KiB. Left
alone it rises, and the process keeps freed updates for later ones: 3.3 instead of 2.7 supernets for
random subnets, whatever their number.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.server.aggregation.update import Update
from fedofa.server.optimizer import ServerOptimizer, ServerOptimizerConfig
from fedofa.supernet.axes import Regions, regions
from fedofa.supernet.families.mobilenet_presets import MOBILE
from fedofa.supernet.space import Arch
from fedofa.supernet.weights import Flat, gather, initial, shapes_of, split

from .timing import paired

SPACE = replace(MOBILE, classes=100, feature_widths=())
UPDATES = 100
KINDS = ("all largest", "random subnets")
MEASURED = (1, 10, 100, 1000)


def bench_merge() -> list[dict[str, Any]]:
    """Merging 100 updates, ours against a numpy running mean (goal: at most 1.1)."""
    rows = []
    for name in KINDS:
        timed = _time(name)
        speed = _bytes(name) * UPDATES / timed.ours_ms / 1e6
        rows.append({"updates": name, "goal": 1.1, **asdict(timed), "GB_per_s": speed})
    return rows


def bench_memory() -> list[dict[str, Any]]:
    """Peak of merging K updates, in supernets: weights, sum, one update (goal: at most 3)."""
    rows = []
    for name in KINDS:
        peaks = peak_supernets(name, MEASURED)
        rows.append({"updates": name, "goal": 3.0, **{f"K={k}": v for k, v in peaks.items()}})
    return rows


def _archs(name: str) -> list[Arch]:
    if name == KINDS[0]:
        return [SPACE.largest()]
    rng = random.Random(0)
    return [SPACE.sample(rng) for _ in range(10)]


def _updates(name: str) -> list[tuple[Arch, Flat]]:
    shared = initial(SPACE, 0)
    return [(arch, gather(shared, regions(SPACE, arch))) for arch in _archs(name)]


def _bytes(name: str) -> float:
    updates = _updates(name)
    return sum(flat.nbytes for _, flat in updates) / len(updates)


def _time(name: str) -> Any:
    shapes, updates = shapes_of(whole()), _updates(name)

    def ours() -> None:
        mean = OverlapMean(shapes)
        for place in range(UPDATES):
            arch, flat = updates[place % len(updates)]
            mean.add(Update("d", flat, regions(SPACE, arch), 1.0 + place))
        mean.result()

    def reference() -> None:
        # The textbook running mean, in place, on one flat array of the update's size.
        means = [np.zeros_like(flat) for _, flat in updates]
        spare = [np.empty_like(flat) for _, flat in updates]
        for place in range(UPDATES):
            at = place % len(updates)
            np.subtract(updates[at][1], means[at], out=spare[at])
            spare[at] *= 1.0 / (1 + place // len(updates))
            means[at] += spare[at]

    return paired(ours, reference)


def peak_supernets(name: str, counts: Sequence[int]) -> dict[int, float]:
    """Number of updates → peak memory of merging them, in supernets, each in its own process.

    Counted: the shared weights (1), the running sum (1), one update (at most 1), and all that the
    merge makes besides. Not counted: Python, the libraries, and the spaces' descriptions.
    """
    with TemporaryDirectory() as folder:
        np.save(Path(folder, "shared.npy"), gather(initial(SPACE, 0), whole()))
        write(name, folder)
        return {count: _peak_of_child(name, folder, count) for count in counts}


def _peak_of_child(name: str, folder: str, count: int) -> float:
    code = f"from fedofa.benchmarks.merging import child; child({name!r}, {folder!r}, {count})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout))


def child(name: str, folder: str, count: int) -> None:
    """Merge files in this process and print its peak above what it held before, in supernets."""
    torch.set_num_threads(1)
    places, shapes = places_of(name), shapes_of(whole())
    warm_up()
    before = memory_before()
    shared = split(np.load(Path(folder, "shared.npy")), shapes)
    mean = OverlapMean(shapes)
    for turn in range(count):
        _add_file(mean, Path(folder, f"{turn % len(places)}.npy"), places[turn % len(places)])
    found = ServerOptimizer(ServerOptimizerConfig(), 1).step(shared, mean.result())
    peak = peak_bytes()
    if found.keys() != shared.keys():
        raise AssertionError("the merge lost tensors")
    supernet = sum(tensor.nbytes for tensor in shared.values())
    sys.stdout.write(json.dumps(round((peak - before) / supernet, 2)))


def whole() -> Regions:
    """Where the largest subnet's values lie: all of them."""
    return regions(SPACE, SPACE.largest())


def places_of(name: str) -> list[Regions]:
    """Where the updates of a kind lie, in turn."""
    return [regions(SPACE, arch) for arch in _archs(name)]


def memory_before() -> int:
    """Bytes that this process holds now; its peak counts from here on."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the kernel's peak
    return int(psutil.Process().memory_info().rss)


def write(name: str, folder: str) -> None:
    """The updates of a kind as files: 0.npy, 1.npy, …"""
    for place, (_, flat) in enumerate(_updates(name)):
        np.save(Path(folder, f"{place}.npy"), flat)


def _add_file(mean: OverlapMean, path: Path, where: Regions) -> None:
    """Add one stored update, which is gone when this returns."""
    mean.add(Update("d", np.load(path), where, 1.0))


def warm_up() -> None:
    """Merge something small: what torch sets up at first use is none of the merge's memory."""
    warm = OverlapMean({"w": (8,)})
    warm.add(Update("d", np.ones(4, np.float32), {"w": (slice(0, 4),)}, 1.0))
    ServerOptimizer(ServerOptimizerConfig(), 1).step({"w": torch.zeros(8)}, warm.result())


def peak_bytes() -> int:
    """The most memory that this process has held since `memory_before`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
