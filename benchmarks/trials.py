"""Short trainings of one recipe under changed circumstances, side by side: what benchmarks compare."""

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from fedofa.protos.device import DataSource
from fedofa.server.events import read_events
from fedofa.server.round_config import RoundConfig
from fedofa.supernet.precision import Bits
from rich.console import Console

from .accuracy import ended_when_stopped
from .accuracy_run import configuration, data_for, measured
from .accuracy_tasks import TASKS
from .federation import Federation, fleet_of, honest, rounds_for
from .kept import Kept, Record
from .liars import Liars

RATIO = RoundConfig().max_update_ratio
"""The product's own limit: an update further from what was sent is refused."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One row: the recipe `fedofa` on Fashion-MNIST with some sections of the configuration changed.

    `liars` = (kind, how many); `low_bits` is the width of every second client; `arguments` are the
    data's; `recipe` replaces fields of the recipe. `reserved` examples are no client's: they are the
    server's, in trials whose sections have a proxy table.
    """

    name: str
    sections: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    liars: tuple[str, int] | None = None
    low_bits: Bits | None = None
    budget_macs: float = 2e11
    reserved: int = 0


def run_trial(trial: Trial, seed: int) -> Record:
    """Train and measure on the test part; what it cost, and whom the server suspected."""
    torch.set_num_threads(1)
    begin = time.process_time()
    base = TASKS["fashion"]
    held_back = {"reserved": trial.reserved} if trial.reserved else {}
    task = replace(
        base,
        budget_macs=trial.budget_macs,
        arguments={**base.arguments, **trial.arguments, **held_back},
    )
    devices = fleet_of(task.source(seed), list(task.budgets()))
    if trial.low_bits is not None:
        devices = {
            # Every second one of each class: classes alternate too.
            name: replace(device, train_bits=trial.low_bits) if place // 4 % 2 else device
            for place, (name, device) in enumerate(devices.items())
        }
    data = data_for(task, devices, seed, test=True)
    with tempfile.TemporaryDirectory() as folder:
        make = partial(configuration, task, "fedofa", seed, change=trial.recipe)
        plan = Federation(make(rounds=8), devices, Path(folder))
        rounds = rounds_for(plan, task.budget_macs)
        # A name of its own: what devices remember belongs to a run, and processes outlive trials.
        run = hashlib.sha256(f"{trial.name} {seed}".encode()).hexdigest()[:12]
        limits = {"max_update_ratio": RATIO}
        sections = with_proxy_data(trial, task.source(seed))
        config = make(rounds=rounds, **{"name": run, "round": limits, **sections})
        tamper = honest if trial.liars is None else Liars(trial.liars[0], nodes(trial.liars[1]))
        federation = Federation(config, devices, Path(folder), tamper)
        spent, last = federation.train()
        named = suspects(Path(folder))
    weights = federation.training.weights
    finite = all(bool(torch.isfinite(value).all()) for value in weights.values())
    found = measured(task, weights, last, data, seed)
    return {
        "trial": trial.name,
        "seed": seed,
        "accuracy": found["accuracy"],
        "mean": mean(found["accuracy"]),
        "finite": finite,
        "rounds": spent.rounds,
        "train_macs": spent.train_macs,
        "bytes_sent": spent.bytes_sent,
        "bytes_received": spent.bytes_received,
        "named": named,
        "cpu_seconds": time.process_time() - begin,
    }


def with_proxy_data(trial: Trial, source: DataSource) -> dict[str, Any]:
    """The trial's sections; their proxy table says where what was reserved is found."""
    if "proxy" not in trial.sections:
        return dict(trial.sections)
    data = {
        "data": f"{source.function}_reserved",
        "data_root": source.root,
        "arguments": {"reserved": trial.reserved, "seed": source.arguments["seed"]},
    }
    return {**trial.sections, "proxy": {**data, **trial.sections["proxy"]}}


def nodes(count: int) -> frozenset[int]:
    """Liars among 20 clients of four classes in turn: the first of the largest class, then others."""
    return frozenset((3 + 3 * place) % 20 for place in range(count))


def suspects(folder: Path) -> dict[str, int]:
    """Device → how often its update was refused or suspected."""
    found: dict[str, int] = {}
    for event, _ in read_events(folder / "events.jsonl"):
        if event["event"] in ("update_refused", "update_suspected"):
            found[str(event["device"])] = found.get(str(event["device"]), 0) + 1
    return found


def run_all(trials: Sequence[Trial], seeds: Sequence[int], jobs: int, kept: Kept) -> list[Record]:
    """Every trial with every seed, `jobs` processes side by side, one thread each.

    Those that `kept` has are not run again; those that end are added to it.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    console, found = Console(stderr=True), list[Record]()
    context = multiprocessing.get_context("spawn")
    with ended_when_stopped(ProcessPoolExecutor(jobs, mp_context=context)) as pool:
        waiting: dict[Future[Record], Trial] = {}
        for seed in seeds:
            for trial in trials:
                known = kept.find(trial, seed)
                if known is None:
                    waiting[pool.submit(run_trial, trial, seed)] = trial
                else:
                    found.append(known)
        total = len(found) + len(waiting)
        for done in as_completed(waiting):
            one = kept.add(waiting[done], done.result())
            found.append(one)
            console.print(
                f"{one['trial']}, seed {one['seed']}: {one['mean']:.4f}, "
                f"{one['cpu_seconds']:.0f} CPU-s ({len(found)} of {total})",
                highlight=False,
            )
    return found


def of(found: Sequence[Record], trial: str) -> dict[int, Record]:
    """Seed → a trial's record."""
    return {one["seed"]: one for one in found if one["trial"] == trial}


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, in points; of one seed the value alone."""
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{deviation}"


def gap(mine: Mapping[int, Record], base: Mapping[int, Record]) -> str:
    """Paired difference of two trials' mean accuracy, ± its standard error, in points.

    One pair has no error to tell.
    """
    gaps = [mine[seed]["mean"] - base[seed]["mean"] for seed in mine if seed in base]
    error = f" ± {100 * stdev(gaps) / len(gaps) ** 0.5:.2f}" if len(gaps) > 1 else ""
    return f"{100 * mean(gaps):+.2f}{error}"
