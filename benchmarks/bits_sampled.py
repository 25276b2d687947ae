"""`fedofa bench sampled-bits`: does a recipe that samples bits give better files of 4 bits?

For each task one supernet is trained as for the table of recipes, and one at the same cost whose every
step draws the width of its kernels (`recipe.sample_bits`). Of every budget the largest subnet is exported
from both, and measured on the same test examples.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

import torch
from fedofa.protos import durable
from fedofa.server.tables import table
from rich.console import Console

from .accuracy import commit
from .bits import KEPT, PUBLISHED, TASK_NAMES, TEST_EXAMPLES, VARIANTS, Record, measured
from .bits_subnets import measurable
from .timing import machine

SEEDS = (0, 1)
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"float": {}, "sampled": {"sample_bits": (32, 8, 4)}}
)
WANTED = tuple(v for v in VARIANTS if v.name in ("int8", PUBLISHED))


def command(results: Path, only: Sequence[str] = ()) -> list[Record]:
    """Measure what is not in `results` yet, write it after every supernet, print the summary."""
    torch.set_num_threads(1)
    path = results / "bits-sampled.json"
    kept: list[Record] = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in only or TASK_NAMES:
        for seed in SEEDS:
            for recipe, change in RECIPES.items():
                whose = {"task": name, "seed": seed, "recipe": recipe}
                if any(whose.items() <= row.items() for row in kept):
                    continue
                on = measurable(name, KEPT, TEST_EXAMPLES, change, seed)
                whose |= {"commit": commit(), "train_macs": on.task.budget_macs}
                for budget, arch in on.archs():
                    kept += [{**whose, "budget": budget, **r} for r in measured(on, arch, WANTED)]
                path.parent.mkdir(parents=True, exist_ok=True)
                record = {"machine": machine(), "rows": kept}
                durable.write(path, json.dumps(record, indent=1).encode() + b"\n")
    Console().print(table(summary(kept), "sampled bits: accuracy in per cent"))
    return kept


def summary(rows: Sequence[Record]) -> list[Record]:
    """Per task and kind of file: accuracy from both recipes, mean over budgets and seeds."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for form, variant in dict.fromkeys((r["form"], r["variant"]) for r in rows):
            cells = {"task": task, "runtime": form, "file": variant}
            for recipe in RECIPES:
                mine = [
                    row
                    for row in rows
                    if (row["task"], row["recipe"], row["form"], row["variant"])
                    == (task, recipe, form, variant)
                ]
                if mine:
                    right = mean(row["float_accuracy"] - row["drop"] for row in mine)
                    cells[recipe] = f"{100 * right:.2f}"
                    cells[f"{recipe}: lost"] = f"{100 * mean(row['drop'] for row in mine):+.2f}"
            found.append(cells)
    return found
