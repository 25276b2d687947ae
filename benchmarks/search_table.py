"""The tables of `fedofa bench search`: regrets over evaluations, and what no method can do."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

from fedofa.specialize.search.audit import Arm, Audit, audit_over_seeds
from fedofa.specialize.search.feasible import largest_that_fits
from fedofa.supernet.cost import cost
from fedofa.supernet.space import Arch

from .search_truth import SPACE, Truth

CAPS = {"tight": 0.35, "loose": 0.7}
"""Budgets, in MACs of the largest subnet."""
MARKS = (10, 25, 50, 100)
GOAL_POINTS, GOAL_AT = 0.3, 25
Fitting = dict[Arch, None]
"""Subnets within a cap, in a fixed order."""
CONTROL = "random"
PROTOCOL = "norm statistics from the training examples, accuracy on the test part"


@dataclass(frozen=True, slots=True)
class Record:
    """One search: regrets at the marks in points, and what its choice at 25 scores."""

    method: str
    cap: str
    seed: int
    repeat: int
    regret: tuple[float, ...]
    evaluations: int
    validation: float
    test: float


def rows(records: Sequence[Record], names: Iterable[str]) -> list[dict[str, Any]]:
    """The table: one row a method and cap; ± is the standard error over the supernets.

    RI is over random search with as many evaluations, of the choices at 25, on the test part.
    """
    found = []
    for cap in CAPS:
        for name in names:
            mine = [r for r in records if (r.method, r.cap) == (name, cap)]
            regrets = {
                f"regret at {mark}": _over_seeds(mine, partial(_regret, at))
                for at, mark in enumerate(MARKS)
            }
            audit = _audit(mine, [r for r in records if (r.method, r.cap) == (CONTROL, cap)])
            found.append(
                {
                    "cap": cap,
                    "method": name,
                    **regrets,
                    f"test at {GOAL_AT}": f"{100 * mean(r.test for r in mine):.2f}",
                    "RI over random search %": f"{audit.improvement.value:+.2f} "
                    f"({audit.improvement.low:+.2f} to {audit.improvement.high:+.2f})",
                    "searched": audit.searched,
                    "within goal": mean(r.regret[MARKS.index(GOAL_AT)] for r in mine)
                    <= GOAL_POINTS,
                }
            )
    return found


def _regret(place: int, record: Record) -> float:
    return record.regret[place]


def _over_seeds(records: Sequence[Record], value: Callable[[Record], float]) -> str:
    by_seed: dict[int, list[float]] = {}
    for record in records:
        by_seed.setdefault(record.seed, []).append(value(record))
    means = [mean(values) for values in by_seed.values()]
    error = stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return f"{mean(means):.2f} ± {error:.2f}"


def _audit(mine: Sequence[Record], control: Sequence[Record]) -> Audit:
    arms = [
        Arm(PROTOCOL, [mean(r.test for r in part if r.seed == seed) for seed in _seeds(mine)])
        for part in (mine, control)
    ]
    return audit_over_seeds(*arms)


def _seeds(records: Sequence[Record]) -> list[int]:
    return sorted({record.seed for record in records})


def beside(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    """What no method can do: the mean subnet, the largest, the best by validation and by test."""
    found = []
    for cap in CAPS:
        row: dict[str, Any] = {"cap": cap, "subnets": len(within(truths[0], cap))}
        for name, pick in PICKS.items():
            pairs = [pick(truth, within(truth, cap)) for truth in truths]
            row[name] = " / ".join(f"{100 * mean(side):.2f}" for side in zip(*pairs, strict=True))
        found.append(row)
    return found


def _mean(truth: Truth, fitting: Fitting) -> tuple[float, float]:
    return mean(truth.validation[a] for a in fitting), mean(truth.test[a] for a in fitting)


def _largest(truth: Truth, fitting: Fitting) -> tuple[float, float]:
    return _both(truth, largest(fitting))


def _best_by_validation(truth: Truth, fitting: Fitting) -> tuple[float, float]:
    return _both(truth, max(fitting, key=truth.validation.__getitem__))


def _best_by_test(truth: Truth, fitting: Fitting) -> tuple[float, float]:
    return _both(truth, max(fitting, key=truth.test.__getitem__))


def _both(truth: Truth, arch: Arch) -> tuple[float, float]:
    return truth.validation[arch], truth.test[arch]


Pick = Callable[[Truth, Fitting], tuple[float, float]]
PICKS: Mapping[str, Pick] = {
    "mean": _mean,
    "largest": _largest,
    "best by validation": _best_by_validation,
    "best by test": _best_by_test,
}


def within(truth: Truth, cap: str) -> Fitting:
    """The subnets within a cap."""
    bound = CAPS[cap] * cost(SPACE, SPACE.largest()).macs
    return {arch: None for arch in truth.validation if cost(SPACE, arch).macs <= bound}


def largest(fitting: Fitting) -> Arch:
    """The largest subnet that fits, as the product finds it."""
    return largest_that_fits(SPACE, fitting.__contains__, lambda arch: cost(SPACE, arch).macs)
