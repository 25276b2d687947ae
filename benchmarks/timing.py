"""Paired timing: two pieces of work in turn, the ratio pair by pair, in CPU seconds."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

REPEATS = 15


@dataclass(frozen=True, slots=True)
class Paired:
    """CPU milliseconds of a call of each, median, and the median ratio with its quartiles."""

    ours_ms: float
    reference_ms: float
    ratio: float
    low: float
    high: float


def paired(
    ours: Callable[[], None], reference: Callable[[], None], calls: int, repeats: int = REPEATS
) -> Paired:
    """Time `calls` calls of each in turn, `repeats` times; the order alternates."""
    for work in (ours, reference):
        work()
    mine: list[float] = []
    theirs: list[float] = []
    for repeat in range(repeats):
        pairs = [(mine, ours), (theirs, reference)]
        for times, work in pairs if repeat % 2 else reversed(pairs):
            begin = time.process_time()
            for _ in range(calls):
                work()
            times.append(1e3 * (time.process_time() - begin) / calls)
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    quarter = len(ratios) // 4
    return Paired(
        median(mine), median(theirs), median(ratios), ratios[quarter], ratios[-1 - quarter]
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    return {
        "processor": model,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
