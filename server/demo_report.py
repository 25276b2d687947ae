"""The demo's report: one record, a table, a Pareto plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..specialize.search.pareto import nondominated
from ..supernet.errors import RunError
from ..supernet.space import Space
from .config import RunConfig
from .events import read_events
from .jobs import EVENTS
from .model_folders import RESULTS
from .operate import run_folder
from .report import command
from .tables import table

TABLE_WIDTH = 110
SEARCH_KEYS = (
    "candidates",
    "over_random",
    "over_random_percent",
    "audit",
    "rank_report",
    "method",
    "evaluations",
    "best_so_far",
)


def build_report(out: Path, config: RunConfig, measured: dict[str, Any]) -> dict[str, Any]:
    """Everything the run came to; `measured` is what each class's device process printed."""
    folder = run_folder(out / "state", config)
    events = [event for event, _ in read_events(folder / EVENTS)]
    results = json.loads((folder / RESULTS).read_text())
    space = config.build_space()
    rounds = [event for event in events if event["event"] == "round"]
    return {
        "dataset": "scikit-learn digits",
        "seed": config.seed,
        "rounds": len(rounds),
        "clients": [
            {
                "device": event["device"],
                "class": event["device_class"],
                "examples": event["examples"],
                "budget": event["budget"],
            }
            for event in events
            if event["event"] == "device_joined"
        ],
        "devices": [_device(row, measured[row["class"]], space) for row in results],
        "training": rounds,
        "search": {row["class"]: {key: row[key] for key in SEARCH_KEYS} for row in results},
        "supernet_sha256": json.loads(Path(results[0]["manifest"]).read_text())["supernet_sha256"],
    }


def require_all_published(folder: Path) -> None:
    """RunError with the reason when a class got no model: there would be nothing to measure."""
    for event, _ in read_events(folder / EVENTS):
        if event["event"] == "class_failed":
            raise RunError(f"class {event['device_class']} got no model: {event['reason']}")


def _device(row: dict[str, Any], measured: dict[str, Any], space: Space) -> dict[str, Any]:
    accuracy = {kind: measured[kind]["accuracy"] for kind in ("tflite_int8", "onnx_int8")}
    return {
        "class": row["class"],
        "arch": row["arch"],
        "description": space.describe(space.arch(row["arch"])),
        "origin": row["origin"],
        "macs": row["cost"]["macs"],
        "params": row["cost"]["params"],
        "budget": row["budget"],
        "accuracy": {"fp32": measured["onnx_fp32"]["accuracy"], **accuracy},
        "validation_accuracy": row["validation"],
        "latency_ms": {kind: found["latency_ms"] for kind, found in measured.items()},
        "size_bytes": row["size_bytes"],
        "files": {
            "tflite": row["files"]["tflite_int8"],
            "onnx": row["files"]["onnx_int8"],
            **row["files"],
        },
        "manifest": row["manifest"],
    }


def write_page(path: Path, folder: Path, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """The page of `fedofa report`, with what the device processes measured on held-out examples.

    Their words are kept beside it, in `held-out/`, for another report.
    """
    beside, files = path.parent / "held-out", []
    beside.mkdir(exist_ok=True)
    for name, kinds in measured.items():
        for kind, found in kinds.items():
            files.append(beside / f"{name}-{kind}.json")
            files[-1].write_text(json.dumps(found))
    report = command.report_of(folder, measured=files)
    command.require_whole(report)
    command.write_page(report, path)


def print_report(report: dict[str, Any], out: Path) -> None:
    """The table, and where the rest is."""
    rows = [
        {
            "device": device["class"],
            "budget": f"{device['budget']['macs']:,}",
            "MACs": device["macs"],
            "params": device["params"],
            "int8 bytes": device["size_bytes"]["tflite_int8"],
            "fp32": f"{device['accuracy']['fp32']:.3f}",
            "tflite int8": f"{device['accuracy']['tflite_int8']:.3f}",
            "onnx int8": f"{device['accuracy']['onnx_int8']:.3f}",
            "ms": f"{device['latency_ms']['tflite_int8']['median']:.3f}",
        }
        for device in report["devices"]
    ]
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table(rows))
    for device in report["devices"]:
        line = f"{device['class']}: {device['description']}"
        console.print(line, highlight=False, markup=False)
    for name, search in report["search"].items():
        console.print(f"{name}: {search_line(search)}", highlight=False, markup=False)
    console.print(
        f"{report['seconds']} s, {report['peak_memory_mb']} MB at most; "
        f"report, plot, models and logs in {out}",
        highlight=False,
    )


def search_line(search: Mapping[str, Any]) -> str:
    """What a class's search may claim, and what its predictor is worth."""
    audit, rank = search["audit"], search["rank_report"]
    claim = "searched" if audit and audit["searched"] else "not shown to beat random"
    return f"{claim} ({search['over_random_percent']} % over random); predictor: {rank['verdict']}"


def pareto(candidates: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(MACs, accuracy) of the candidates that no cheaper one equals, by MACs."""
    points = np.array([(c["macs"], -c["accuracy"]) for c in candidates], dtype=np.float64)
    kept = {(int(macs), -float(worse)) for macs, worse in points[nondominated(points)]}
    return sorted(kept)


def write_plot(path: Path, report: dict[str, Any]) -> None:
    """Accuracy on the devices over MACs of every measured subnet, the chosen ones marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    measured = [c for search in report["search"].values() for c in search["candidates"]]
    axes.step(*zip(*pareto(measured), strict=True), where="post", color="grey", lw=1, zorder=0)
    styles = {"searched": "o", "largest": "s", "random": "x"}
    for origin, marker in styles.items():
        points = [(c["macs"], c["accuracy"]) for c in measured if c["origin"] == origin]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, alpha=0.6, label=origin)
    for device in report["devices"]:
        at = (device["macs"], device["validation_accuracy"]["pytorch"])
        axes.scatter(*at, marker="*", s=160, color="black", zorder=3)
        axes.annotate(device["class"], at, textcoords="offset points", xytext=(6, -12))
    axes.set_xscale("log")
    axes.set_xlabel("multiply-accumulates")
    axes.set_ylabel("accuracy on the devices' validation examples")
    axes.set_title(f"{report['dataset']}: chosen subnets (stars), seed {report['seed']}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
