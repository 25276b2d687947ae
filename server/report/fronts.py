"""Pareto fronts, one chart for each runtime: what accuracy there is for what cost.

`subnets` are networks of the supernet in PyTorch over MACs, as the search measured them; LiteRT and ONNX
Runtime have the published files over their bytes; a runtime that held-out measurements name has files
over milliseconds. Each class is measured on its own devices: between classes accuracies compare as far
as those do.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...specialize.search.pareto import nondominated
from ...supernet.cost import cost
from .facts import Facts
from .held_out import HeldOut
from .logs import Row

RUNTIMES = {"tflite": "LiteRT", "onnx": "ONNX Runtime"}
Points = list[dict[str, Any]]


def of(facts: Facts, held_out: Sequence[HeldOut] = ()) -> Points:
    """A row for each point, by chart; `on_front` where nothing is as cheap and better, or cheaper."""
    points = [*_subnets(facts), *_files(facts), *_timed(held_out)]
    found: Points = []
    for chart in dict.fromkeys(str(point["chart"]) for point in points):
        mine = [point for point in points if point["chart"] == chart]
        at = np.array([(point["x"], -point["accuracy"]) for point in mine], dtype=np.float64)
        kept = nondominated(at)
        found += [
            {**point, "on_front": bool(on)}
            for point, on in sorted(zip(mine, kept, strict=True), key=lambda pair: pair[0]["x"])
        ]
    return found


def _point(chart: str, device_class: str, what: str, axis: tuple[str, float]) -> dict[str, Any]:
    return {"chart": chart, "class": device_class, "what": what, "unit": axis[0], "x": axis[1]}


def _subnets(facts: Facts) -> Iterator[dict[str, Any]]:
    for row in facts.results:
        name = str(row["class"])
        for one in row["evaluated"]:
            macs = cost(facts.space, facts.space.arch(one["arch"])).macs
            yield _point("subnets", name, "explored", ("MACs", macs)) | _measured(one)
        for one in row["candidates"]:
            point = _point("subnets", name, one["origin"], ("MACs", one["macs"]))
            yield point | _measured(one)


def _measured(one: Any) -> dict[str, Any]:
    return {"accuracy": one["accuracy"], "standard_error": one["standard_error"]}


def _files(facts: Facts) -> Iterator[dict[str, Any]]:
    for row in facts.results:
        for kind, size_bytes in row["size_bytes"].items():
            accuracy = row["validation"][kind]
            point = _point(
                RUNTIMES[kind.partition("_")[0]], str(row["class"]), kind, ("bytes", size_bytes)
            )
            examples = file_examples(row, kind)
            error = None if examples is None else _error(accuracy, examples)
            yield point | {"accuracy": accuracy, "standard_error": error}


def file_examples(row: Row, kind: str) -> int | None:
    """How many examples a file's accuracy is of; None where results are of a version that did not say."""
    found: int | None = row.get("validation_examples", {}).get(kind)
    return found


def _timed(held_out: Sequence[HeldOut]) -> Iterator[dict[str, Any]]:
    for one in held_out:
        chart, axis = f"{one.runtime}, held-out examples", ("ms", one.latency_ms.median)
        point = _point(chart, one.device_class, one.kind, axis)
        error = _error(one.accuracy, one.examples)
        yield point | {"accuracy": one.accuracy, "standard_error": error}


def _error(accuracy: float, examples: int) -> float:
    """Standard error of a share, as a binomial proportion."""
    return math.sqrt(accuracy * (1 - accuracy) / examples)
