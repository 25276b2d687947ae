"""The accuracy benchmark: the federation it trains is the product's, and its table is arithmetic."""

import math
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
from fedofa.benchmarks import accuracy, accuracy_run
from fedofa.benchmarks.accuracy import hypervolume, standard_error, summarized
from fedofa.benchmarks.accuracy_run import SEPARATE, as_record
from fedofa.benchmarks.accuracy_tasks import Task
from fedofa.benchmarks.federation import Federation, rounds_for
from fedofa.client.datasets import digits_test
from fedofa.protos.device import Device
from fedofa.server.config import RunConfig
from fedofa.supernet.errors import UsageError
from fedofa.supernet.weights import digest
from fleets import DIGITS_DATA, run_of, small_config, small_fleet
from strategies import DIGITS

TASK = Task(
    name="digits",
    folder="/",  # digits need none
    function=DIGITS_DATA,
    clients=4,
    space=DIGITS,
    budget_macs=1e9,
    test=lambda _root: digits_test(),
    seeds=1,
    arguments={"alpha": 1.0},
    recipe={"lr": 0.1, "batch_size": 16, "steps": 4},
    statistics_each=20,
    validation_each=20,
)


def devices(folder: Path) -> dict[str, Device]:
    return {device.name: device for device in small_fleet(folder)}


def test_a_federation_without_flower_trains_the_same_weights_as_one_with_it(tmp_path: Path) -> None:
    config = small_config()
    with_flower = run_of(tmp_path / "with", config).start().training.weights
    federation = Federation(config, devices(tmp_path / "without"), tmp_path / "without")
    spent, last = federation.train()
    assert digest(federation.training.weights) == digest(with_flower)
    assert spent.rounds == config.round.rounds
    assert len(last) == 3


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("fjord", "attentivenas", "deps")]


@pytest.mark.parametrize("name", ["fedofa", "heterofl", *SLOW])
def test_the_planned_rounds_cost_about_the_budget(name: str, tmp_path: Path) -> None:
    def made(rounds: int) -> Federation:
        config: RunConfig = small_config(
            recipe={"name": name, "steps": 2}, round={"rounds": rounds}
        )
        return Federation(config, devices(tmp_path), tmp_path)

    budget = 12 * made(2).train()[0].train_macs
    rounds = rounds_for(made(8), budget)
    spent, _ = made(rounds).train()
    assert spent.rounds == rounds
    assert spent.train_macs == pytest.approx(budget, rel=0.25)


@pytest.mark.parametrize("recipe", ["fedofa", "fedrolex", SEPARATE])
def test_a_row_keeps_to_its_budgets(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_run, "TASKS", MappingProxyType({"digits": TASK}))
    row = accuracy_run.run("digits", recipe, 0, {}, test=True)
    assert len(row.accuracy) == 4
    assert all(0 < a <= 1 for a in row.accuracy)
    assert all(m <= bound for m, bound in zip(row.macs, TASK.budgets().values(), strict=True))
    share = TASK.fedavg_share if recipe == SEPARATE else 1
    assert row.train_macs * share == pytest.approx(TASK.budget_macs, rel=0.35)


def record(recipe: str, seed: int, *accuracies: float) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "seed": seed,
        "accuracy": accuracies,
        "macs": [10 * 4**k for k in range(len(accuracies))],
        "mean": sum(accuracies) / len(accuracies),
        "train_macs": 10**12,
        "bytes_sent": 10**6,
        "bytes_received": 10**6,
    }


def test_the_table_pairs_seeds_and_says_how_far_ahead_ours_is() -> None:
    runs = [
        record("fedofa", 0, 0.8, 0.8, 0.9, 0.9),
        record("fedofa", 1, 0.7, 0.7, 0.8, 0.8),
        record("heterofl", 0, 0.7, 0.7, 0.9, 0.9),
        record("heterofl", 1, 0.6, 0.6, 0.7, 0.7),
    ]
    ours, theirs = summarized(runs, 640)
    assert ours["mean"] == "80.00 ± 7.07"
    assert theirs["fedofa ahead"] == "+7.50 ± 2.50"
    assert theirs["seeds"] == 2


def test_hypervolume_is_the_area_under_the_front() -> None:
    assert hypervolume(record("x", 0, 0.5, 0.9), 40) == pytest.approx(0.5 * 30 / 40)
    # A dearer subnet that is worse takes nothing away.
    assert hypervolume(record("x", 0, 0.5, 0.4, 0.6), 160) == pytest.approx(0.5 * 150 / 160)
    # A cheap one that is good is good in every dearer budget.
    assert hypervolume(record("x", 0, 0.9), 40) == pytest.approx(0.9 * 30 / 40)


def test_the_standard_error_of_one_pair_is_infinite() -> None:
    assert math.isinf(standard_error([0.1]))
    assert standard_error([0.1, 0.3]) == pytest.approx(0.1)


def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "accuracy-digits.json"
    accuracy._write(path, TASK, [record("fedofa", 0, 0.5)])
    assert accuracy._read(path, TASK)[0]["recipe"] == "fedofa"
    from dataclasses import replace

    with pytest.raises(UsageError, match="results of other settings"):
        accuracy._read(path, replace(TASK, budget_macs=5e9))


def test_unknown_names_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data 'mnist': known: fashion"):
        accuracy.Options("mnist", 1, ["fedofa"], 1, tmp_path)
    with pytest.raises(UsageError, match="--recipes: 'fedavg' is unknown; known: fedofa"):
        accuracy.Options("fashion", 1, ["fedavg"], 1, tmp_path)
    with pytest.raises(UsageError, match="at least 1"):
        accuracy.Options("fashion", 0, ["fedofa"], 1, tmp_path)


def test_a_record_holds_every_column() -> None:
    row = accuracy_run.Row("x", 0, (0.5, 0.7), (0.5,), (1,), (1,), ({},), 1, 1, 1, (1,), 1.0)
    assert as_record(row)["mean"] == pytest.approx(0.6)


def test_a_stopped_benchmark_leaves_no_process() -> None:
    code = (
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from fedofa.benchmarks.accuracy import ended_when_stopped\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    with ended_when_stopped(ProcessPoolExecutor(1, mp_context=context)) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600)\n"
        "        pool.submit(time.sleep, 600)\n"
        "        raise SystemExit(143)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 143, done.stderr
    assert not psutil.pid_exists(int(done.stdout))
