"""`fedofa bench search`: every search method against exhaustive truth, at equal evaluations.

Regret is how far the best subnet that a method has evaluated falls behind the best that there is
within the budget, in points of accuracy, after 10, 25, 50 and 100 evaluations. It is taken on the
validation examples, which the evaluations are made on; the default method was chosen by it. The
test part is only told: of the subnet that was chosen after 25 evaluations, and of what looking at
every subnet would have chosen.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from fedofa.protos import durable
from fedofa.server.tables import table
from fedofa.specialize.predictors import linear
from fedofa.specialize.search.contract import Found, Method, Scored, Task
from fedofa.specialize.search.loop import search
from fedofa.specialize.search.methods import METHODS
from fedofa.specialize.search.predicted import Predicted
from fedofa.specialize.zero_cost import zero_cost_scores
from fedofa.supernet.randomness import stream
from fedofa.supernet.space import Arch
from fedofa.supernet.weights import initial
from rich.console import Console

from .accuracy import commit
from .search_table import CAPS, GOAL_AT, MARKS, Record, beside, largest, rows, within
from .search_truth import SPACE, Truth, truth_of
from .timing import machine

SEEDS, REPEATS = 5, 2
AT_ONCE = 4
EXTRA: Mapping[str, Callable[[], Method]] = {
    "predicted once": lambda: Predicted(linear.fit, share=0.8),
}


def methods() -> dict[str, Method]:
    """What the table compares; those that predict fit a linear model unless they say otherwise."""
    named = {name: make(linear.fit) for name, make in METHODS.items()}
    named["predicted"] = Predicted(linear.fit, share=0.1)
    return named | {name: make() for name, make in EXTRA.items()}


def run(truth: Truth, cap: str, name: str, method: Method, repeats: int) -> Iterable[Record]:
    """Searches within a cap, each from the largest subnet that fits, over the table of truths."""
    fitting = within(truth, cap)
    best = max(truth.validation[arch] for arch in fitting)
    prior = zero_cost_scores(SPACE, initial(SPACE, truth.seed), truth.seed)["saliency"]
    for repeat in range(repeats):
        task = Task(
            SPACE,
            fitting.__contains__,
            MARKS[-1],
            at_once=AT_ONCE,
            start=(largest(fitting),),
            prior=prior,
        )
        # One fit with four fifths of the evaluations: at each mark another search.
        marks = MARKS if name == "predicted once" else MARKS[-1:]
        found = [
            search(
                method,
                replace(task, evaluations=mark, at_once=mark if len(marks) > 1 else AT_ONCE),
                partial(_looked_up, truth.validation),
                stream(truth.seed, "bench search", repeat, mark),
            )
            for mark in marks
        ]
        at = {mark: _best_at(found[place if len(marks) > 1 else 0], mark)
              for place, mark in enumerate(MARKS)}  # fmt: skip
        yield Record(
            name, cap, truth.seed, repeat,
            tuple(100 * (best - truth.validation[at[mark]]) for mark in MARKS),
            found[-1].evaluations, truth.validation[at[GOAL_AT]], truth.test[at[GOAL_AT]],
        )  # fmt: skip


def _searched(truths: Sequence[Truth], cap: str, name: str) -> list[Record]:
    method = methods()[name]
    return [one for truth in truths for one in run(truth, cap, name, method, REPEATS)]


def _looked_up(table: Mapping[Arch, float], archs: Sequence[Arch]) -> list[Scored]:
    return [Scored(table[arch]) for arch in archs]


def _best_at(found: Found, mark: int) -> Arch:
    so_far = found.best_so_far
    return so_far[min(mark, len(so_far)) - 1].arch


def command(seeds: int | None, jobs: int, results: Path) -> None:
    """Train the supernets, measure all subnets, search; keep the truth and every run as JSON."""
    with ProcessPoolExecutor(jobs) as pool:
        truths = list(pool.map(truth_of, range(seeds or SEEDS)))
    report(truths, jobs, results)


def report(truths: Sequence[Truth], jobs: int, results: Path) -> None:
    """Search over the tables of truths, write the results, print the tables."""
    with ProcessPoolExecutor(jobs) as pool:
        pairs = [(cap, name) for name in methods() for cap in CAPS]
        parts = pool.map(partial(_searched, truths), *zip(*pairs, strict=True))
        records = [record for part in parts for record in part]
    write(truths, records, results)


def write(truths: Sequence[Truth], records: Sequence[Record], results: Path) -> None:
    """Keep truth and runs as JSON, print the tables."""
    shown, references = rows(records, methods()), beside(truths)
    content = {
        "benchmark": "search",
        "machine": machine(),
        "command": " ".join(["fedofa", *sys.argv[1:]]),
        "commit": commit(),
        "space": SPACE.to_dict(),
        "caps": CAPS,
        "table": shown,
        "beside": references,
        "runs": [asdict(record) for record in records],
        "truth": [truth.to_dict() for truth in truths],
    }
    results.mkdir(parents=True, exist_ok=True)
    durable.write(results / "search.json", json.dumps(content, indent=1).encode())
    console = Console()
    console.width = max(console.width, 150)
    console.print(table(references, "accuracy on validation / test, %"))
    console.print(table(shown, "regret in points of validation accuracy, mean ± error over seeds"))
