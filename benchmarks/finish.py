"""Does finishing help? One class's subnet of a short Fashion-MNIST run, trained further in four ways.

`surgery` is `fedofa finish` as it comes; `sum` the same without projecting gradients; `plain` trains the
target alone for so many rounds that the devices spend the same multiply-accumulates; `plain-short` for
as many rounds as `surgery`. All start from the same weights with the same learning rate. Figures are of
the clients' validation examples (the test part is not read), paired example by example.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedofa.client.device import data as data_of
from fedofa.protos import durable
from fedofa.protos.device import Device
from fedofa.server.config import RunConfig
from fedofa.server.finishing.derived import finishing_config
from fedofa.server.limits import Limits
from fedofa.server.paired import Paired
from fedofa.server.samplers.assigned import Assigned
from fedofa.supernet.axes import Weights
from fedofa.supernet.batch import resized
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.space import Arch
from fedofa.supernet.weights import digest

from .accuracy_run import best_within, configuration, data_for
from .accuracy_tasks import TASKS, Task
from .federation import Federation, Spent, fleet_of, rounds_for
from .subnet_accuracy import Pooled, pooled, recalibrated

DATA, DEVICE_CLASS = "fashion", "c0"
SEEDS = (11, 12)
RUN_MACS = 1e11
"""A run of a twelfth of the accuracy benchmark's: one that leaves its smallest class weak."""
ROUNDS = 4
VALIDATION_EACH = 300
WAYS: Mapping[str, Mapping[str, Any]] = {
    "surgery": {},
    "sum": {"combine": "sum"},
    "plain": {"students": "none"},
    "plain-short": {"students": "none"},
}


def command(results: Path, seeds: int | None = None) -> None:
    """Run what is missing and print the table; the figures lie in RESULTS/finish.json."""
    path = results / "finish.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for seed in SEEDS[:seeds]:
        if not any(row["seed"] == seed for row in rows):
            rows += one_seed(TASKS[DATA], seed)
            durable.make_folder(results)
            durable.write(path, json.dumps(rows, indent=1).encode())
    for row in rows:
        print(
            f"seed {row['seed']} {row['way']:<12} {row['rounds']:>3} rounds "
            f"{row['train_macs'] / 1e9:6.1f} GMACs  {row['before']:.4f} -> {row['after']:.4f}  "
            f"gain {100 * row['gain']:+.2f} ± {100 * row['error']:.2f}  over plain "
            f"{100 * row['over_plain']:+.2f} ± {100 * row['over_plain_error']:.2f} points"
        )


def one_seed(task: Task, seed: int) -> list[dict[str, Any]]:
    """The four ways from one run's weights."""
    torch.set_num_threads(1)
    devices = fleet_of(task.source(seed), list(task.budgets()))
    with tempfile.TemporaryDirectory() as folder:
        make = partial(configuration, task, "fedofa", seed, change={})
        rounds = rounds_for(Federation(make(rounds=8), devices, Path(folder)), RUN_MACS)
        run = Federation(make(rounds=rounds), devices, Path(folder))
        run.train()
        weights, config = run.training.weights, run.config
        data = data_for(task, devices, seed, test=False)
        limits = Limits(Budget(macs=task.budgets()[DEVICE_CLASS]), config.recipe.batch_size)
        assigned, _, _ = best_within(task.space, limits, weights, data, (seed, 0))
        target = assigned.arch
        found, rights = list[dict[str, Any]](), dict[str, np.ndarray]()
        watched = _watched(devices, seed)
        before = _right(task, target, weights, data.statistics, watched)
        spent_macs = 0
        for way, change in WAYS.items():
            rounds = ROUNDS
            if way == "plain":
                rounds = _rounds_of(config, target, devices, spent_macs)
            begin = time.process_time()
            own = _config(config, target, run.training.round, rounds, change)
            after, spent = _finished(own, devices, weights, Path(folder))
            seconds = time.process_time() - begin
            spent_macs = spent_macs or spent.train_macs
            rights[way] = _right(task, target, after, data.statistics, watched)
            gain = _paired(before, rights[way])
            found.append(
                {
                    "seed": seed,
                    "way": way,
                    "rounds": rounds,
                    "train_macs": spent.train_macs,
                    "cpu_seconds": seconds,
                    "run_rounds": run.training.round,
                    "target": dict(target),
                    "target_macs": cost(task.space, target).macs,
                    "before": gain.first.accuracy,
                    "after": gain.second.accuracy,
                    "gain": gain.gain,
                    "error": gain.error,
                    "examples": gain.examples,
                    "weights": digest(after),
                }
            )
    for row in found:
        beside = _paired(rights["plain"], rights[row["way"]])
        row |= {"over_plain": beside.gain, "over_plain_error": beside.error}
    return found


def _config(
    config: RunConfig, target: Arch, begun: int, rounds: int, change: Mapping[str, Any]
) -> RunConfig:
    if change.get("students") == "none":
        plain = config.finish.model_copy(update={"method": "plain"})
        config = config.model_copy(update={"finish": plain})
    own = finishing_config(config, DEVICE_CLASS, target, begun, rounds)
    recipe = own.recipe.model_copy(update=dict(change))
    return own.model_copy(update={"recipe": recipe})


def _finished(
    config: RunConfig, devices: Mapping[str, Device], weights: Weights, folder: Path
) -> tuple[Weights, Spent]:
    federation = Federation(config, devices, folder)
    federation.training.weights = weights
    spent, _ = federation.train()
    return federation.training.weights, spent


def _rounds_of(
    config: RunConfig, target: Arch, devices: Mapping[str, Device], train_macs: int
) -> int:
    """How many rounds of the target alone come nearest to these MACs."""
    recipe, each = config.recipe, 3 * cost(config.build_space(), target).macs
    one = sum(
        (recipe.steps or 0) * min(recipe.batch_size, len(data_of(device).train)) * each
        for device in devices.values()
    )
    return max(1, round(train_macs / one))


def _watched(devices: Mapping[str, Device], seed: int) -> Pooled:
    clients = [data_of(device) for device in devices.values()]
    parts = [(c.normalized(c.validation.x), c.validation.y) for c in clients]
    return pooled(parts, VALIDATION_EACH, seed)


def _right(
    task: Task, target: Arch, weights: Weights, statistics: Pooled, data: Pooled
) -> np.ndarray:
    module, found = recalibrated(task.space, Assigned(target), weights, statistics), []
    with torch.inference_mode():
        for begin in range(0, len(data.y), 500):
            x = resized(
                torch.from_numpy(data.x[begin : begin + 500]), task.space.input_shape(target)
            )
            found.append(module(x).argmax(1).numpy() == data.y[begin : begin + 500])
    return np.concatenate(found)


def _paired(first: np.ndarray, second: np.ndarray) -> Paired:
    counts = (first & second, first & ~second, second & ~first)
    both, lost, gained = (int(one.sum()) for one in counts)
    return Paired(both, lost, gained, len(first))
