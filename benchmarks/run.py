"""Runs benchmarks by name and prints a table that states the machine."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from fedofa.server.tables import table
from fedofa.supernet.errors import UsageError
from rich.console import Console

from .aggregate import bench_aggregate
from .exports import bench_export
from .fleet_plan import bench_fleet
from .groups import bench_groups
from .merging import bench_memory, bench_merge
from .subnets import bench_static, bench_views
from .timing import machine
from .training_steps import bench_masked, bench_profile, bench_sandwich, bench_step

BENCHMARKS: Mapping[str, Callable[[], list[dict[str, Any]]]] = MappingProxyType(
    {
        "static": bench_static,
        "views": bench_views,
        "step": bench_step,
        "sandwich": bench_sandwich,
        "profile": bench_profile,
        "masked": bench_masked,
        "merge": bench_merge,
        "memory": bench_memory,
        "aggregate": bench_aggregate,
        "groups": bench_groups,
        "fleet": bench_fleet,
        "export": bench_export,
    }
)


def main(name: str, as_json: bool) -> None:
    """Run one benchmark or `all`; UsageError lists the known ones."""
    if name != "all" and name not in BENCHMARKS:
        raise UsageError(f"benchmark {name!r} is unknown; known: all, {', '.join(BENCHMARKS)}")
    torch.set_num_threads(1)
    found = {key: run() for key, run in BENCHMARKS.items() if name in ("all", key)}
    console = Console()
    if as_json:
        console.print_json(json.dumps({"machine": machine(), "results": found}))
        return
    stated = ", ".join(f"{key} {value}" for key, value in machine().items())
    console.print(f"{stated}; CPU milliseconds, median of paired repeats", highlight=False)
    for key, rows in found.items():
        shown = [{k: f"{v:.3g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
        console.print(table(shown, f"{key}: {(BENCHMARKS[key].__doc__ or '').splitlines()[0]}"))
