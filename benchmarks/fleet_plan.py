"""Planning for ten thousand devices over six runtimes: seconds and processor seconds of each stage.

The devices' budgets are drawn log-uniformly between what the smallest and the largest subnet spend, so a
few fit nothing; accuracies are a made-up function of the subnet with noise, of which 60 are "measured".
Nothing is exported here. What sharing costs is stated beside it, and what a search of its own, in that very
budget, would still find for ten devices of the small space.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
from fedofa.server.fleet_demands import Wanted, wanted
from fedofa.server.fleet_file import read_fleet
from fedofa.server.fleet_plan import FleetPlan
from fedofa.server.fleet_plan_file import write_plan
from fedofa.specialize.fleet.candidates import Accuracies, candidates
from fedofa.specialize.fleet.demand import Demand
from fedofa.specialize.fleet.plan import Plan, plan_fleet
from fedofa.specialize.fleet.shares import divided
from fedofa.specialize.fleet.table import Table
from fedofa.specialize.predictors.contract import Sample
from fedofa.specialize.predictors.linear import fit
from fedofa.specialize.search.contract import Scored, Task
from fedofa.specialize.search.evolution import Evolution
from fedofa.specialize.search.loop import search
from fedofa.supernet.errors import ArtifactError
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.space import Arch, Space

DEVICES, MEASURED, ARTIFACTS = 10_000, 60, 64
RUNTIMES: dict[str, dict[str, Any]] = {
    "phone": {"kind": "tflite_int8", "macs_per_s": 2e9, "power_w": 2.0},
    "tablet": {"kind": "tflite_fp32", "macs_per_s": 4e9, "power_w": 4.0},
    "board": {"kind": "tflite_int8", "pj_per_mac": 5.0, "pj_per_byte": 30.0},
    "camera": {"kind": "onnx_int8", "macs_per_s": 5e8},
    "pi": {"kind": "onnx_fp32", "macs_per_s": 1e9, "power_w": 5.0},
    "micro": {"kind": "tflite_int8", "macs_per_s": 3e7, "pj_per_mac": 15.0, "pj_per_byte": 90.0},
}
BOUNDS: dict[str, tuple[str, ...]] = {
    "phone": ("latency_ms", "file_bytes"),
    "tablet": ("latency_ms", "energy_mj"),
    "board": ("energy_mj", "params", "peak_activation_bytes"),
    "camera": ("macs", "file_bytes"),
    "pi": ("latency_ms", "energy_mj", "file_bytes"),
    "micro": ("file_bytes", "peak_activation_bytes", "energy_mj"),
}
T = TypeVar("T")


def bench_fleet() -> list[dict[str, Any]]:
    """Planning for a fleet: 10,000 devices, 6 runtimes, 64 artifacts."""
    return [row for name in ("digits", "ofa-mbv3") for row in _planned(name)]


def _planned(name: str) -> list[dict[str, Any]]:
    space, rng = preset(name), Random(0)
    samples = _measured(space, rng)
    stages: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.json"
        path.write_text(json.dumps(_fleet(space, rng)))
        file = _timed(stages, "read", lambda: read_fleet(path))
        asked = _timed(stages, "demands", lambda: wanted(file, path.parent, space, _no_probes))
        runtime = {device.name: device.runtime for device in file.devices}
        accuracies = Accuracies(fit, samples)
        table = _timed(stages, "search", lambda: candidates(
            asked.columns, accuracies, _bounded(asked, runtime), 0))  # fmt: skip
        demands = _timed(stages, "gateways", lambda: [*asked.alone, *_shares(asked, table)])
        plan = _timed(stages, "assign", lambda: plan_fleet(table, demands, ARTIFACTS))
        known = {"predictor": {}, "latency": {}, "measured_subnets": MEASURED}
        done = FleetPlan("fleet", "run", "0" * 64, plan, (), known)
        _timed(stages, "write", lambda: write_plan(Path(folder), done))
    gaps = _own_searches(asked, accuracies, plan) if name == "digits" else []
    total = tuple(sum(each) for each in zip(*stages.values(), strict=True))
    rows = [{"space": name, "stage": stage, "seconds": wall, "processor_s": cpu}
            for stage, (wall, cpu) in [*stages.items(), ("all", total)]]  # fmt: skip
    said = {
        "served": len(plan.placed),
        "artifacts": len(plan.artifacts),
        "own artifacts": plan.distinct,
        "mean loss": float(plan.losses.mean()),
        "most loss": float(plan.losses.max()),
    }
    if gaps:
        said["own search better by"] = max(gaps)
    return [
        *rows,
        *({"space": name, "stage": k, "seconds": v, "processor_s": ""} for k, v in said.items()),
    ]


def _timed(stages: dict[str, tuple[float, float]], name: str, work: Callable[[], T]) -> T:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    stages[name] = (time.perf_counter() - wall, time.process_time() - cpu)
    return found


def _measured(space: Space, rng: Random) -> list[Sample]:
    """Each option brings something, larger ones mostly more, with a standard error of a point."""
    gains = {
        (gene.name, option): rng.gauss(0.01 * place, 0.004)
        for gene in space.genes
        for place, option in enumerate(gene.options)
    }
    archs = [space.sample(rng) for _ in range(MEASURED)]
    sums = np.array([sum(gains[item] for item in arch.items()) for arch in archs])
    scaled = 0.75 + 0.15 * (sums - sums.mean()) / max(float(np.ptp(sums)), 1e-9)
    return [
        Sample(arch, "all", float(value) + rng.gauss(0, 0.01), 0.01)
        for arch, value in zip(archs, scaled, strict=True)
    ]


def _fleet(space: Space, rng: Random) -> dict[str, Any]:
    """Devices with budgets between 0.9 of what the smallest subnet spends and what the largest does."""
    names = list(RUNTIMES)
    probe = {"name": "x", "runtime": "", "budget": {}}
    ends: dict[tuple[str, str], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = [{**probe, "name": n, "runtime": n, "budget": dict.fromkeys(BOUNDS[n], 10**9)}
                for n in names]  # fmt: skip
        path = Path(folder) / "ends.json"
        path.write_text(json.dumps({"runtimes": RUNTIMES, "devices": rows}))
        asked = wanted(read_fleet(path), path.parent, space, _no_probes)
    for demand in asked.alone:
        for each in demand.bounds:
            of = asked.columns.some([each.column])
            low, high = (each.spent(of(arch)[0]) for arch in (space.smallest(), space.largest()))
            ends[demand.device, each.name] = (0.9 * low, high)
    devices: list[dict[str, Any]] = []
    for place in range(DEVICES):
        runtime = names[place % len(names)]
        budget: dict[str, float] = {}
        for bound in BOUNDS[runtime]:
            low, high = ends[runtime, bound]
            value = math.exp(rng.uniform(math.log(low), math.log(high)))
            budget[bound] = value if bound in ("latency_ms", "energy_mj") else max(1, int(value))
        device: dict[str, Any] = {
            "name": f"{runtime}-{place}",
            "runtime": runtime,
            "budget": budget,
        }
        if "latency_ms" in budget:
            device["slowdown"] = rng.uniform(0.8, 1.25)
        if place % 100 < 2:  # a hundred gateways of two models of one kind
            device = {
                "name": f"hosted-{place}",
                "runtime": "camera",
                "gateway": f"hub-{place // 100}",
            }
        devices.append(device)
    low, high = ends["camera", "file_bytes"]
    gateways = {
        f"hub-{place}": {"budget": {"file_bytes": int(rng.uniform(2.5 * low, high))}}
        for place in range(-(-DEVICES // 100))
    }
    return {"runtimes": RUNTIMES, "devices": devices, "gateways": gateways}


def _bounded(asked: Wanted, runtime: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for demand in asked.alone:
        found.setdefault(runtime[demand.device], set()).update(demand.columns)
    return {name: sorted(columns) for name, columns in found.items()}


def _shares(asked: Wanted, table: Table) -> list[Demand]:
    front = table.front(["macs", "file_bytes:onnx_int8"])
    found: list[Demand] = []
    for name, (limits, hosted) in asked.gateways.items():
        found += divided(name, limits, hosted, [front] * len(hosted))[0]
    return found


def _own_searches(asked: Wanted, accuracies: Accuracies, plan: Plan) -> list[float]:
    """How much better 400 looks within one device's budget are than its best on the front."""
    score = accuracies.scorer(asked.columns.space)
    level, found = accuracies.level(score), []
    for one in plan.placed[:: max(1, len(plan.placed) // 10)]:
        most = one.demand.most
        of = asked.columns.some(most)

        def fits(arch: Arch, most: dict[str, float] = most, of: Any = of) -> bool:
            return all(value <= bound for value, bound in zip(of(arch), most.values(), strict=True))

        start = (plan.artifacts[one.artifact].arch,)
        task = Task(asked.columns.space, fits, 400, start=start)
        best = search(
            Evolution(24), task, lambda archs: [Scored(float(v)) for v in score(archs)], Random(0)
        ).best
        found.append(best.score + level - one.best)
    return found


def _no_probes() -> Any:
    raise ArtifactError("no probes here")
