"""What a fleet gets: for people in a few lines and a table, for machines device by device."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..protos import durable
from ..specialize.fleet.plan import Artifact, Placed
from .fleet_delivery import Delivered
from .fleet_file import Rejected
from .fleet_plan import FOLDER, FleetPlan

ASSIGNMENT = "assignment.json"
SHOWN = 10


def planned_report(found: FleetPlan) -> dict[str, Any]:
    """What a plan says before anything is exported."""
    plan = found.plan
    counts = Counter(one.artifact for one in plan.placed)
    rows = [
        {**_artifact(one, found), "devices": counts[place]}
        for place, one in enumerate(plan.artifacts)
    ]
    summary = _summary(found, plan.placed, len(found.not_served))
    return {"summary": summary, "artifacts": rows, "not_served": _rejected(found.not_served)}


def write_assignment(folder: Path, done: Delivered, taken: Mapping[str, int]) -> Path:
    """Put what was published, and each device's artifact, into the run's folder.

    `taken`: `RUN/FLEET` → so many devices got what that other plan gave them until now.
    """
    path = folder / FOLDER / done.plan.fleet / ASSIGNMENT
    durable.make_folder(path.parent)
    told = _assignment(done, path)
    told["summary"]["devices_of_other_plans"] = dict(taken)
    durable.write(path, json.dumps(told).encode())
    return path


def read_assignment(folder: Path, fleet: str) -> dict[str, Any]:
    """`write_assignment`'s table without its devices, for the command line."""
    path = folder / FOLDER / fleet / ASSIGNMENT
    found: dict[str, Any] = json.loads(path.read_bytes())
    del found["devices"]
    return found


def as_lines(report: Mapping[str, Any]) -> list[Any]:
    """A report for a terminal: the summary, a table of artifacts, the first that are not served."""
    artifacts = [_narrow(row) for row in report["artifacts"]]
    rejected: Sequence[Mapping[str, str]] = report["not_served"]
    told = [f"{one['device']}: {one['field']}: {one['reason']}" for one in rejected[:SHOWN]]
    if len(rejected) > SHOWN:
        told.append(f"and {len(rejected) - SHOWN} more; --json, or the file, has them all")
    return [report["summary"], artifacts, *([{"not served": told}] if told else [])]


def _narrow(row: Mapping[str, Any]) -> dict[str, Any]:
    """An artifact's row that fits a terminal, its class in full: devices pull by it."""
    measured = {"measured": row["validation_file"]} if "validation_file" in row else {}
    return {
        "device_class": row["device_class"],
        "macs": row["macs"],
        "bytes": row.get("size_bytes", row["predicted_bytes"]),
        "predicted": row["predicted_accuracy"],
        **measured,
        "devices": row["devices"],
    }


def _assignment(done: Delivered, path: Path) -> dict[str, Any]:
    plan = done.plan.plan
    counts = Counter(one.artifact for one in done.placed)
    artifacts = []
    for place, (made, measured) in sorted(done.made.items()):
        one = plan.artifacts[place]
        entry = made.manifest.file(one.kind)
        artifacts.append(
            {
                **_artifact(one, done.plan),
                "devices": counts[place],
                "size_bytes": entry.size_bytes,
                "validation": measured.accuracy,
                "validation_file": made.figures[one.kind].file.accuracy,
                "version": made.manifest.version,
                "manifest": str(made.path),
            }
        )
    sizes = {
        place: float(made.manifest.file(plan.artifacts[place].kind).size_bytes)
        for place, (made, _) in done.made.items()
    }
    summary = {
        **_summary(done.plan, done.placed, len(done.not_served)),
        "artifacts": len(artifacts),
        "moved_after_export": done.moved,
        "assignment": str(path),
    }
    return {
        "summary": summary,
        "artifacts": artifacts,
        "not_served": _rejected(done.not_served),
        "devices": [_device(one, done.plan, sizes[one.artifact]) for one in done.placed],
    }


def _summary(found: FleetPlan, placed: Sequence[Placed], not_served: int) -> dict[str, Any]:
    plan = found.plan
    losses = np.array([one.best - plan.artifacts[one.artifact].accuracy for one in placed])
    weights = np.array([one.demand.weight for one in placed])
    predictor = found.known["predictor"]
    verdict = predictor["verdict"] if isinstance(predictor, Mapping) else ""
    return {
        "fleet": found.fleet,
        "devices": len(placed) + not_served,
        "served": len(placed),
        "not_served": not_served,
        "artifacts": len(plan.artifacts),
        "artifacts_if_each_had_its_own": plan.distinct,
        "loss_of_predicted_accuracy": {
            "mean": float(np.average(losses, weights=weights)),
            "95_percent_below": float(np.quantile(losses, 0.95)),
            "most": float(losses.max()),
        },
        "candidates": plan.candidates,
        "fronts": dict(plan.fronts),
        "measured_subnets": found.known["measured_subnets"],
        "predictor": verdict,
        "latency_doubts": [
            f"{name}: {doubt}"
            for name, trust in _mapping(found.known["latency"]).items()
            for doubt in trust["doubts"]
        ],
    }


def _artifact(one: Artifact, plan: FleetPlan) -> dict[str, Any]:
    return {
        "device_class": plan.name_of(one),
        "kind": one.kind,
        "macs": int(one.columns["macs"]),
        "params": int(one.columns["params"]),
        "predicted_bytes": int(one.columns[f"file_bytes:{one.kind}"]),
        "predicted_accuracy": one.accuracy,
        "arch": dict(one.arch),
    }


def _device(one: Placed, found: FleetPlan, size_bytes: float) -> dict[str, Any]:
    """A device's row: its artifact, what that spends of its bounds, and what sharing costs it."""
    artifact = found.plan.artifacts[one.artifact]
    columns = {**artifact.columns, f"file_bytes:{artifact.kind}": size_bytes}
    return {
        "device": one.demand.device,
        "device_class": found.name_of(artifact),
        "kind": artifact.kind,
        "predicted_accuracy": artifact.accuracy,
        "loss": one.best - artifact.accuracy,
        "spends": {b.name: b.spent(columns[b.column]) for b in one.demand.bounds},
        "bounds": {b.name: b.limit for b in one.demand.bounds},
    }


def _rejected(found: Sequence[Rejected]) -> list[dict[str, str]]:
    return [asdict(one) for one in found]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
