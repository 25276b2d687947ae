"""Merging 100 updates of a 5 M-parameter supernet against a numpy running mean of the same bytes."""

import json
import random
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import psutil
import torch
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.supernet.axes import regions
from fedofa.supernet.families.mobilenet import MOBILE
from fedofa.supernet.space import Arch
from fedofa.supernet.weights import Flat, gather, initial, shapes_of, split

from .timing import paired

SPACE = replace(MOBILE, classes=100, feature_width=0)
UPDATES = 100


def bench_merge() -> list[dict[str, Any]]:
    """Ours against numpy, for equal and for unequal updates (goal 1.1; memory at most 3)."""
    rows = []
    for name in ("all largest", "random subnets"):
        timed = _time(name)
        memory = {k: _memory(name, k) for k in (10, UPDATES)}
        rows.append(
            {
                "updates": f"{UPDATES}, {name}",
                "goal": 1.1,
                **asdict(timed),
                "GB_per_s": _bytes(name) * UPDATES / timed.ours_ms / 1e6,
                "peak_supernets": memory[UPDATES],
                "peak_at_10": memory[10],
            }
        )
    return rows


def _archs(name: str) -> list[Arch]:
    if name == "all largest":
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
    shared, updates = initial(SPACE, 0), _updates(name)

    def ours() -> None:
        mean = OverlapMean(shared)
        for place in range(UPDATES):
            arch, flat = updates[place % len(updates)]
            where = regions(SPACE, arch)
            mean.add(split(flat, shapes_of(where)), where, 1.0 + place)
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

    return paired(ours, reference, 1, repeats=7)


def _memory(name: str, updates: int) -> float:
    """Peak memory of merging in a process of its own, beyond the weights and one update.

    In supernets' sizes; the previous weights, which the result is compared with, count as one.
    """
    code = f"from fedofa.benchmarks.merging import child; child({name!r}, {updates})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def child(name: str, updates: int) -> None:
    """Merge in this process and print the peak, in supernets."""
    torch.set_num_threads(1)
    shared, made = initial(SPACE, 0), _updates(name)
    supernet = sum(t.numel() for t in shared.values()) * 4
    warm = OverlapMean({"w": torch.zeros(8)})
    warm.add({"w": torch.ones(4)}, {"w": (slice(0, 4),)}, 1.0)
    warm.result()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the kernel's peak
    before = psutil.Process().memory_info().rss
    mean = OverlapMean(shared)
    for place in range(updates):
        arch, flat = made[place % len(made)]
        where = regions(SPACE, arch)
        mean.add(split(flat, shapes_of(where)), where, 1.0)
    mean.result()
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    sys.stdout.write(json.dumps(round((peak - before) / supernet + 1, 2)))
