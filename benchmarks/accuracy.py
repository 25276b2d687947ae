"""`fedofa bench accuracy`: all recipes on the same splits at the same cost, against peers' methods.

Every recipe trains the same space on the same clients with the same local steps and, within a few
percent, the same total of training MACs; then the best of some subnets within each device class's
budget is chosen on the clients' validation parts and measured on the test part, each with norm
statistics of its own. Results are written after every run, and a run that is there is not repeated.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from fedofa.protos import durable
from fedofa.server.tables import table
from fedofa.specialize.search.pareto import hypervolume as volume
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from rich.console import Console

from .accuracy_plot import plot
from .accuracy_run import SEPARATE, as_record, configuration, run
from .accuracy_tasks import SHARES, TASKS, Task
from .timing import machine

RECIPES = (
    "fedofa", "heterofl", "fjord", "fedrolex", "superfednas", "bignas", "alphanet", "attentivenas",
    "deps", SEPARATE,
)  # fmt: skip
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What to run: task, seeds 0 to `seeds` - 1, recipes, and how many processes side by side."""

    task: str
    seeds: int
    recipes: Sequence[str]
    jobs: int
    results: Path

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"--data {self.task!r}: known: {', '.join(TASKS)}")
        for recipe in self.recipes:
            if recipe not in RECIPES:
                raise UsageError(f"--recipes: {recipe!r} is unknown; known: {', '.join(RECIPES)}")
        if min(self.seeds, self.jobs) < 1:
            raise UsageError("--seeds and --jobs: at least 1")


def command(
    data: str,
    seeds: int | None,
    recipes: Sequence[str],
    jobs: int,
    results: Path,
    pictures: Path,
) -> None:
    """Run the benchmark with what was not given filled in, and draw its picture."""
    known = TASKS[data].seeds if data in TASKS else 1
    served = [name for name in RECIPES if data not in TASKS or serves(TASKS[data], name)]
    main(Options(data, known if seeds is None else seeds, recipes or served, jobs, results))
    plot(results / f"accuracy-{data}.json", pictures / f"accuracy-{data}.png")


def serves(task: Task, recipe: str) -> bool:
    """Whether the task's space can be trained by a recipe: not every one can roll its channels."""
    if recipe == SEPARATE:
        return True
    try:
        configuration(task, recipe, seed=0, rounds=2, change={})
    except UsageError:
        return False
    return True


def main(options: Options) -> Record:
    """Run what is missing, keep the results as JSON, print the table; returns the results."""
    path, task = options.results / f"accuracy-{options.task}.json", TASKS[options.task]
    kept = _read(path, task)
    wanted = [(r, s) for s in range(options.seeds) for r in options.recipes]
    missing = [key for key in wanted if key not in {(r["recipe"], r["seed"]) for r in kept}]
    console, made_by = Console(stderr=True), commit()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ended_when_stopped(ProcessPoolExecutor(options.jobs, mp_context=context)) as pool:
        waiting = {
            pool.submit(run, options.task, recipe, seed, {}, test=True): (recipe, seed)
            for recipe, seed in missing
        }
        for done in as_completed(list(waiting)):
            kept.append({**as_record(done.result()), "commit": made_by})
            _write(path, task, kept)
            recipe, seed = waiting.pop(done)
            console.print(
                f"{recipe}, seed {seed}: mean {kept[-1]['mean']:.4f}, "
                f"{kept[-1]['cpu_seconds']:.0f} CPU-s ({len(wanted) - len(waiting)} of {len(wanted)})",
                highlight=False,
            )
    chosen = [r for r in kept if (r["recipe"], r["seed"]) in wanted]
    summary = summarized(chosen, cost(task.space, task.space.largest()).macs)
    Console().print(table(summary, f"{task.name}: accuracy of the best subnet in each budget"))
    return {"summary": summary, "runs": chosen}


@contextmanager
def ended_when_stopped(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """The pool; when the block is left by an error or a signal, what waits and what runs is ended."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown()


def summarized(runs: Sequence[Record], most: int) -> list[Record]:
    """A row for each recipe: mean ± standard deviation over seeds, and paired against `fedofa`.

    `most` are the MACs of the largest subnet.
    """
    by_recipe = {name: [r for r in runs if r["recipe"] == name] for name in RECIPES}
    ours = {r["seed"]: r["mean"] for r in by_recipe["fedofa"]}
    rows = []
    for name, mine in by_recipe.items():
        if not mine:
            continue
        gaps = [ours[r["seed"]] - r["mean"] for r in mine if r["seed"] in ours]
        columns = zip(*(r["accuracy"] for r in mine), strict=True)
        budgets = {f"1/{1 / s:.3g}": _spread(c) for s, c in zip(SHARES, columns, strict=True)}
        rows.append(
            {
                "recipe": name,
                **budgets,
                "mean": _spread([r["mean"] for r in mine]),
                "hypervolume": _spread([hypervolume(r, most) for r in mine]),
                "fedofa ahead": "" if name == "fedofa" or not gaps else _gap(gaps),
                "TMACs": f"{mean(r['train_macs'] for r in mine) / 1e12:.2f}",
                "MB down/up": f"{mean(r['bytes_sent'] for r in mine) / 1e6:.0f}/"
                f"{mean(r['bytes_received'] for r in mine) / 1e6:.0f}",
                "seeds": len(mine),
            }
        )
    return rows


def hypervolume(record: Mapping[str, Any], most: int) -> float:
    """Area under the front of accuracy over MACs, 0 to 1: MACs as a share of `most`, the largest
    subnet's; below the cheapest subnet nothing is counted.
    """
    costs = np.array(record["macs"], dtype=np.float64) / most
    return volume(np.column_stack([costs, -np.array(record["accuracy"])]), (1.0, 0.0))


def standard_error(gaps: Sequence[float]) -> float:
    """Of the mean of paired differences; infinite for a single pair."""
    return stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("inf")


def _gap(gaps: Sequence[float]) -> str:
    return f"{100 * mean(gaps):+.2f} ± {100 * standard_error(gaps):.2f}"


def _spread(values: Sequence[float]) -> str:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{100 * mean(values):.2f} ± {100 * deviation:.2f}"


def _read(path: Path, task: Task) -> list[Record]:
    """Runs that are there, of the same task; others are an error rather than mixed in."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if found["task"] != _description(task):
        raise UsageError(f"{path} holds results of other settings; move it away to start anew")
    return list(found["runs"])


def _write(path: Path, task: Task, runs: Sequence[Record]) -> None:
    content = {
        "task": _description(task),
        "machine": machine(),
        "command": " ".join(["fedofa", *sys.argv[1:]]),
        "runs": sorted(runs, key=lambda r: (r["recipe"], r["seed"])),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, json.dumps(content, indent=1).encode())


def _description(task: Task) -> Record:
    """What must be the same for two runs to stand in one table."""
    described = {
        "data": task.name,
        "function": task.function,
        "clients": task.clients,
        "arguments": dict(task.arguments),
        "recipe": dict(task.recipe),
        "budget_macs": task.budget_macs,
        "fedavg_share": task.fedavg_share,
        "budgets": task.budgets(),
        "largest_macs": cost(task.space, task.space.largest()).macs,
        "space": task.space.to_dict(),
    }
    return json.loads(json.dumps(described))  # type: ignore[no-any-return]


def commit() -> str:
    """The project's commit, with a + where files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
