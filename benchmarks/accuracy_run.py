"""One row of the accuracy benchmark for one seed: train by a recipe, choose by validation, test."""

import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fedofa.client.device import data as data_of
from fedofa.protos.device import Device
from fedofa.server.config import RunConfig, parse_config
from fedofa.server.limits import Limits
from fedofa.server.open_round import Assignments
from fedofa.server.samplers.assigned import Assigned
from fedofa.server.samplers.drawing import ladder, largest_fit, maximal_fit, rung_that_fits
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.randomness import stream
from fedofa.supernet.space import Space, plain
from torch import Tensor

from .accuracy_tasks import TASKS, Task, data_folder
from .federation import Federation, fleet_of, rounds_for
from .subnet_accuracy import Pooled, accuracy, pooled, recalibrated

RANDOM_CANDIDATES = 6
SEPARATE = "fedavg-separate"


@dataclass(frozen=True, slots=True)
class Row:
    """What one recipe came to with one seed: per budget accuracies, in order; and its cost."""

    recipe: str
    seed: int
    accuracy: tuple[float, ...]
    validation: tuple[float, ...]
    macs: tuple[int, ...]
    params: tuple[int, ...]
    archs: tuple[dict[str, Any], ...]
    train_macs: int
    bytes_sent: int
    bytes_received: int
    rounds: tuple[int, ...]
    cpu_seconds: float

    @property
    def mean(self) -> float:
        """Mean accuracy over the budgets."""
        return sum(self.accuracy) / len(self.accuracy)


@dataclass(frozen=True, slots=True)
class Data:
    """What subnets are measured on: examples for norm statistics, for choosing, for the table."""

    statistics: Pooled
    validation: Pooled
    test: Pooled | None


def run(task_name: str, recipe: str, seed: int, change: Mapping[str, Any], *, test: bool) -> Row:
    """Train and measure; `change` replaces recipe fields. Without `test` accuracies are validation's."""
    torch.set_num_threads(1)
    begin = time.process_time()
    task = TASKS[task_name]
    devices = fleet_of(task.source(seed), list(task.budgets()))
    data = data_for(task, devices, seed, test=test)
    found = (
        _separate(task, devices, data, seed, change)
        if recipe == SEPARATE
        else _supernet(task, recipe, devices, data, seed, change)
    )
    return Row(recipe=recipe, seed=seed, cpu_seconds=time.process_time() - begin, **found)


def configuration(
    task: Task, recipe: str, seed: int, rounds: int, change: Mapping[str, Any], **sections: Any
) -> RunConfig:
    """A run's configuration: the task's training, the recipe's method; `sections` count more."""
    limits = {"deadline_s": 1e7, "max_update_ratio": 1e6, **sections.pop("round", {})}
    fields = {
        "name": "bench",
        "seed": seed,
        "space": plain(task.space.to_dict()),
        "recipe": {"name": recipe, **task.recipe, **change},
        "round": {"rounds": rounds, **limits},
        "classes": {name: {"macs": macs} for name, macs in task.budgets().items()},
        **sections,
    }
    return parse_config(fields)


def _supernet(
    task: Task, recipe: str, devices: Mapping[str, Device], data: Data, seed: int,
    change: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make = partial(configuration, task, recipe, seed, change=change)
        rounds = rounds_for(Federation(make(rounds=8), devices, Path(folder)), task.budget_macs)
        federation = Federation(make(rounds=rounds), devices, Path(folder))
        spent, last = federation.train()
    return {
        **measured(task, federation.training.weights, last, data, seed),
        "train_macs": spent.train_macs,
        "bytes_sent": spent.bytes_sent,
        "bytes_received": spent.bytes_received,
        "rounds": (spent.rounds,),
    }


def measured(
    task: Task, weights: Mapping[str, Tensor], last: Assignments, data: Data, seed: int
) -> dict[str, Any]:
    """The best subnet in each budget, chosen on validation; `last` is what was trained last."""
    trained, chosen = [assigned for _, assigned in last.values()], []
    for place, macs in enumerate(task.budgets().values()):
        limits = Limits(Budget(macs=macs), task.recipe["batch_size"])
        chosen.append(best_within(task.space, limits, weights, data, (seed, place), trained))
    return _columns(task.space, chosen)


def _separate(
    task: Task, devices: Mapping[str, Device], data: Data, seed: int, change: Mapping[str, Any]
) -> dict[str, Any]:
    """A model for each budget, trained by the clients that can hold it, all for as many rounds.

    Together they cost what the task's `fedavg_share` says. As everywhere a budget gets the best of
    the models within it, so a smaller one where that validates better.
    """
    chosen, spents, feds = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for place, macs in enumerate(task.budgets().values()):
            limits = Limits(Budget(macs=macs), task.recipe["batch_size"])
            arch = largest_fit(task.space, limits, seed)
            make = partial(
                configuration, task, "fedavg", seed, change=change,
                sampler={"kind": "single", "arch": dict(arch)},
            )  # fmt: skip
            feds.append((make, arch, Path(folder, str(place))))
        a_round = sum(
            task.budget_macs
            / rounds_for(Federation(make(rounds=8), devices, path), task.budget_macs)
            for make, _, path in feds
        )
        rounds = max(2, round(task.budget_macs / task.fedavg_share / a_round))
        for make, arch, path in feds:
            federation = Federation(make(rounds=rounds), devices, path)
            spents.append(federation.train()[0])
            weights = federation.training.weights
            chosen.append(_best(task.space, [Assigned(arch)], weights, data))
    best = [max(chosen[: place + 1], key=lambda c: c[1]) for place in range(len(chosen))]
    return {
        **_columns(task.space, best),
        "train_macs": sum(spent.train_macs for spent in spents),
        "bytes_sent": sum(spent.bytes_sent for spent in spents),
        "bytes_received": sum(spent.bytes_received for spent in spents),
        "rounds": tuple(spent.rounds for spent in spents),
    }


def best_within(
    space: Space,
    limits: Limits,
    weights: Mapping[str, Tensor],
    data: Data,
    key: tuple[object, ...],
    trained: Iterable[Assigned] = (),
) -> tuple[Assigned, float, float]:
    """The subnet within a budget that validates best, its accuracy there and on the test part.

    Looked at are the largest few `trained`, the ladder's rungs, and random ones of the stream `key`.
    """
    fits = partial(limits.fits, space)
    return _best(space, _candidates(space, fits, trained, key), weights, data)


def _candidates(
    space: Space, fits: Any, trained: Iterable[Assigned], key: tuple[object, ...]
) -> list[Assigned]:
    """Within a budget: what was trained last, the ladder's rungs, and maximal random subnets."""
    rng = stream("candidates", *key)
    rungs = ladder(space)[: rung_that_fits(space, fits) + 1]
    drawn = [maximal_fit(space, fits, rng) for _ in range(RANDOM_CANDIDATES)]
    own = [a for a in trained if fits(a.arch)]
    # Of those that were trained, the largest few: what the method itself would deploy.
    own.sort(key=lambda a: -cost(space, a.arch).macs)
    plain_ones = [Assigned(arch) for arch in (*rungs, *drawn)]
    seen = {(a.arch, a.offset): a for a in (*own[:3], *plain_ones)}
    return list(seen.values())


def _best(
    space: Space, candidates: list[Assigned], weights: Mapping[str, Any], data: Data
) -> tuple[Assigned, float, float]:
    """The candidate that validates best, with its accuracy there and on the test part."""
    best, score, module = candidates[0], -1.0, None
    for candidate in candidates:
        made = recalibrated(space, candidate, weights, data.statistics)
        found = accuracy(space, candidate.arch, made, data.validation)
        if found > score:
            best, score, module = candidate, found, made
    if module is None:
        raise AssertionError("no candidate")
    tested = score if data.test is None else accuracy(space, best.arch, module, data.test)
    return best, score, tested


def _columns(space: Space, chosen: list[tuple[Assigned, float, float]]) -> dict[str, Any]:
    costs = [cost(space, assigned.arch) for assigned, _, _ in chosen]
    return {
        "accuracy": tuple(test for _, _, test in chosen),
        "validation": tuple(validation for _, validation, _ in chosen),
        "macs": tuple(spent.macs for spent in costs),
        "params": tuple(spent.params for spent in costs),
        "archs": tuple(dict(assigned.arch) for assigned, _, _ in chosen),
    }


def data_for(task: Task, devices: Mapping[str, Device], seed: int, *, test: bool) -> Data:
    """What subnets of a seed's split are measured on."""
    clients = [data_of(device) for device in devices.values()]
    train = [(c.normalized(c.train.x[:1000]), c.train.y[:1000]) for c in clients]
    validation = [(c.normalized(c.validation.x), c.validation.y) for c in clients]
    held_out = task.test(str(data_folder() / task.folder)) if test else None
    return Data(
        pooled(train, task.statistics_each, seed),
        pooled(validation, task.validation_each, seed),
        Pooled(clients[0].normalized(held_out.x), held_out.y) if held_out else None,
    )


def as_record(row: Row) -> dict[str, Any]:
    """A row for a results file."""
    return {**asdict(row), "mean": row.mean}
