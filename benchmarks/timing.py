"""Paired timing: two pieces of work in turn, the ratio pair by pair, in CPU seconds."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

SAMPLE_MS, PAIRS_MS = 100.0, 15_000.0
FEWEST, MOST = 7, 31


@dataclass(frozen=True, slots=True)
class Paired:
    """CPU milliseconds of a call of each, median, and the median ratio with its quartiles."""

    ours_ms: float
    reference_ms: float
    ratio: float
    low: float
    high: float


def paired(ours: Callable[[], None], reference: Callable[[], None]) -> Paired:
    """Time both in turn, 7 to 31 times, for about 15 s in all; the order alternates.

    A short piece of work is called several times at a stretch, so that it takes about 100 ms.
    """
    _milliseconds(ours, 1)  # the first call is slower
    first_ms = max(_milliseconds(ours, 1), _milliseconds(reference, 1))
    calls = max(1, round(SAMPLE_MS / first_ms))
    repeats = min(MOST, max(FEWEST, int(PAIRS_MS / (2 * calls * first_ms))))
    mine: list[float] = []
    theirs: list[float] = []
    for repeat in range(repeats):
        pairs = [(mine, ours), (theirs, reference)]
        for times, work in pairs if repeat % 2 else reversed(pairs):
            times.append(_milliseconds(work, calls))
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    quarter = len(ratios) // 4
    return Paired(
        median(mine), median(theirs), median(ratios), ratios[quarter], ratios[-1 - quarter]
    )


def _milliseconds(work: Callable[[], None], calls: int) -> float:
    """CPU milliseconds of one call, the mean of several."""
    begin = time.process_time()
    for _ in range(calls):
        work()
    return 1e3 * (time.process_time() - begin) / calls


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
