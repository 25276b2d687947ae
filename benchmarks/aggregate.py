"""`fedofa bench aggregate`: every rule of aggregation against a numpy running mean of the same bytes.

Each figure comes from a process of its own. Updates of ten random subnets of a 5 M-parameter supernet
lie in files that another process wrote; each is read (not counted), added and dropped. `messages`
hands them over as Flower messages and counts reading those. With K distinct subnets every update is of
another random subnet, its values a copy of the supernet's first ones.

The ratio is of CPU time per byte, of a rule's process and numpy's of the same turn. Every figure is a
median over the turns, of its own; rules that take a hundred times as long are timed once.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from fedofa.protos.flower import from_record, to_record
from fedofa.protos.messages import ProfileRequest
from fedofa.server.aggregation.catalogue import AggregationConfig
from fedofa.server.aggregation.clipping import MEDIAN_SIZES
from fedofa.server.aggregation.update import Update
from fedofa.server.aggregation.weighing import Holder
from fedofa.server.optimizer import ServerOptimizer, ServerOptimizerConfig
from fedofa.supernet.axes import Regions, regions
from fedofa.supernet.weights import Flat, Shapes, gather, initial, shapes_of, size_of
from flwr.app import RecordDict

from .merging import KINDS, SPACE, memory_before, peak_bytes, places_of, warm_up, whole, write

COUNTS = (10, 100, 1000)
MOST_STORED = 100
"""Rules that keep updates on disk are measured up to so many: 1000 would take 8 GB of it."""
REFERENCE = "numpy running mean"
RULES: Mapping[str, AggregationConfig] = MappingProxyType(
    {
        "mean": AggregationConfig(),
        "mean, messages": AggregationConfig(),
        "mean, K distinct subnets": AggregationConfig(),
        "clipped mean": AggregationConfig(clip=2.0),
        "FedDisco": AggregationConfig(weights="disco"),
        "mean, float64 sums": AggregationConfig(accumulate="float64"),
        "trimmed mean": AggregationConfig(rule="trimmed_mean", trim=0.1),
        "median": AggregationConfig(rule="median"),
        "multi-Krum": AggregationConfig(rule="krum", liars=2),
    }
)
GOALS = MappingProxyType({"mean": 1.1, "clipped mean": 1.3, "FedDisco": 1.1})
REPEATS = 3
STORED = ("trimmed mean", "median", "multi-Krum")
BY_MESSAGE = ("mean, messages",)
DISTINCT = ("mean, K distinct subnets",)


def bench_aggregate() -> list[dict[str, Any]]:
    """Each rule over K updates: CPU seconds against numpy's, peak memory in supernets."""
    rows = []
    with TemporaryDirectory() as folder:
        write(KINDS[1], folder)
        for count in COUNTS:
            found: dict[str, list[dict[str, float]]] = {}
            for turn in range(REPEATS):
                base = _of_child(REFERENCE, folder, count)
                found.setdefault(REFERENCE, []).append(base)
                for rule in RULES:
                    # What takes a hundred times as long is timed once.
                    if rule not in STORED or (turn == 0 and count <= MOST_STORED):
                        mine = _of_child(rule, folder, count)
                        mine["ratio"] = base["GB_per_s"] / mine["GB_per_s"]
                        found.setdefault(rule, []).append(mine)
            for rule, turns in found.items():
                goal = {"goal": GOALS[rule]} if rule in GOALS else {}
                rows.append({"rule": rule, "K": count, **_middle(turns), **goal})
    keys = ("rule", "K", "seconds", "cpu_s", "GB_per_s", "supernets", "ratio", "goal")
    return [{key: row.get(key, "") for key in keys} for row in rows]


def _middle(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: median(one[key] for one in found) for key in found[0]}


def _of_child(rule: str, folder: str, count: int) -> dict[str, float]:
    code = f"from fedofa.benchmarks.aggregate import child; child({rule!r}, {folder!r}, {count})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def child(rule: str, folder: str, count: int) -> None:
    """Merge files in this process; print seconds, CPU seconds, bytes a second and peak memory."""
    torch.set_num_threads(1)
    shapes, distinct = shapes_of(whole()), rule in DISTINCT
    places = _distinct(count) if distinct else places_of(KINDS[1])
    longest = gather(initial(SPACE, 0), whole()) if distinct else None
    warm_up()
    before = memory_before()
    work = _Reference(len(places)) if rule == REFERENCE else _Rule(rule, places, shapes, count)
    clock, seen = _Clock(), 0
    for turn in range(count):
        if longest is None:
            flat = np.load(Path(folder, f"{turn % len(places)}.npy"))
        else:
            flat = longest[: size_of(shapes_of(places[turn]))].copy()
        seen += flat.nbytes
        handed = to_record(ProfileRequest(space={}), flat) if rule in BY_MESSAGE else flat
        del flat
        clock.time(partial(work.add, turn, handed))
        del handed
    clock.time(work.finish)
    size = 4 * size_of(shapes)
    figures = {
        "seconds": clock.wall_s,
        "cpu_s": clock.cpu_s,
        "GB_per_s": seen / clock.cpu_s / 1e9,
        "supernets": (peak_bytes() - before) / size,
    }
    sys.stdout.write(json.dumps(figures))


def _distinct(count: int) -> list[Regions]:
    rng = random.Random(0)
    return [regions(SPACE, SPACE.sample(rng)) for _ in range(count)]


class _Clock:
    """Seconds and CPU seconds of some calls together."""

    wall_s, cpu_s = 0.0, 0.0

    def time(self, work: Callable[[], None]) -> None:
        """Call and count."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu


class _Rule:
    """A rule as a round uses it, up to the stepped weights."""

    def __init__(self, rule: str, places: Sequence[Regions], shapes: Shapes, count: int) -> None:
        config = RULES[rule]
        self._shared, self._places = initial(SPACE, 0), places
        # A bound from former rounds: in the first round updates would wait on disk.
        self._fold = config.fold(shapes, {MEDIAN_SIZES: [1e-2]})
        holders = [Holder(f"d{k}", 100 + k % 7, (1 + k % 3, 5, 5)) for k in range(count)]
        self._weights = config.weigh(holders).weights

    def add(self, turn: int, handed: Flat | RecordDict) -> None:
        """Count one update."""
        name = f"d{turn}"
        flat = _read(handed) if isinstance(handed, RecordDict) else handed
        where = self._places[turn % len(self._places)]
        self._fold.add(Update(name, flat, where, self._weights[name]))

    def finish(self) -> None:
        """Merge and step."""
        ServerOptimizer(ServerOptimizerConfig(), 1).step(self._shared, self._fold.result())


class _Reference:
    """The textbook running mean, in place, on one flat array for each subnet."""

    def __init__(self, subnets: int) -> None:
        self._means: dict[int, tuple[Flat, Flat]] = {}
        self._subnets = subnets

    def add(self, turn: int, handed: Any) -> None:
        """Count one more array."""
        at = turn % self._subnets
        if at not in self._means:
            self._means[at] = handed.copy(), np.empty_like(handed)
            return
        mean, spare = self._means[at]
        np.subtract(handed, mean, out=spare)
        spare *= np.float32(1.0 / (1 + turn // self._subnets))
        mean += spare

    def finish(self) -> None:
        """Nothing is left to do."""


def _read(record: RecordDict) -> Flat:
    _, values = from_record(ProfileRequest, record)
    if values is None or values.dtype != np.float32:
        raise AssertionError("the message lost its values")
    return values.astype(np.float32, copy=False)
