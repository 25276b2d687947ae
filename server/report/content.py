"""The report as one record: tables by name, each a list of rows of plain values.

Every value is read or counted from the run's files (`facts.py`, `lineage.py`, `costs.py`); the page and
the terminal show these rows and compute nothing. None: not known, or nothing to be said.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...supernet.cost import cost
from ..run_record import Environment
from . import costs, fronts, lineage, other_content, others, practices
from .columns import TABLES
from .facts import Facts
from .fronts import file_examples
from .held_out import HeldOut
from .logs import Row
from .others import Others

SCHEMA = 1
Report = dict[str, Any]
NO_CLAIM = "not shown to beat random"


def build(facts: Facts, held_out: Sequence[HeldOut] = (), beside: Others | None = None) -> Report:
    """All of it; `beside` are the run's fleets and finishings, read here where they are not given.

    Where a link of the lineage is broken, that and the practices alone: no figure of files that may
    have been changed.
    """
    beside = others.read(facts) if beside is None else beside
    found = lineage.trace(facts, beside)
    return {
        "schema_version": SCHEMA,
        **({name: [] for name in TABLES} if found.broken else _figures(facts, held_out, beside)),
        "practices": practices.told(practices.judge(facts, found, held_out)),
        "lineage": lineage.told(found),
        "lineage_notes": list(found.notes),
        "broken": list(found.broken),
    }


def _figures(facts: Facts, held_out: Sequence[HeldOut], beside: Others) -> Report:
    return {
        "run": [_run(facts)],
        "models": _models(facts),
        "audit": [_audit(row) for row in facts.results],
        **other_content.rows(beside),
        "held_out": [one.to_row() for one in held_out],
        "calibration": _calibration(facts),
        "fronts": fronts.of(facts, held_out),
        "devices": _devices(facts),
        "costs": [*costs.totals(facts), *other_content.costs(beside)],
        "rounds": costs.of_rounds(facts),
        "evaluations": costs.of_measuring(facts),
        "anytime": _anytime(facts),
        "predictor": [_predictor(row) for row in facts.results],
    }


def _run(facts: Facts) -> Row:
    job, book = facts.job, facts.book
    config, trained = facts.config, facts.trained_by
    return {
        "name": config.name,
        "seed": trained and trained.seed,
        "space": str(config.space.get("preset", config.space.get("family"))),
        "recipe": trained and trained.recipe.name,
        "round": job.round,
        "devices": len(facts.joined),
        "classes": list(config.classes),
        "method": config.search.method,
        "search_seed": config.seed,
        "supernet_sha256": job.weights,
        "ledger_head": job.head,
        "abandoned": None if book is None else book.abandoned,
        "unrecorded": None if book is None else book.unrecorded,
        "began_unix_s": facts.record.jobs[0].began_unix_s,
        **_software(job.environment),
    }


def _software(where: Environment) -> Row:
    packages = [f"{name} {version}" for name, version in where.packages.items()]
    return {
        "processor": where.processor,
        "cores": where.cores,
        "system": where.system,
        "python": where.python,
        "packages": packages,
    }


def _models(facts: Facts) -> list[dict[str, Any]]:
    """A row for each class and file."""
    rows = []
    for row in facts.results:
        for kind, size_bytes in row["size_bytes"].items():
            rows.append(
                {
                    "class": row["class"],
                    "kind": kind,
                    "version": row["version"],
                    "arch": facts.space.describe(facts.space.arch(row["arch"])),
                    "macs": row["cost"]["macs"],
                    "params": row["cost"]["params"],
                    "size_bytes": size_bytes,
                    "budget": dict(row["budget"]),
                    "accuracy": row["validation"][kind],
                    "subnet_accuracy": row["validation"]["pytorch"],
                    "examples": file_examples(row, kind),
                    "subnet_examples": row["validation"]["examples"],
                    **_latency(row, kind),
                }
            )
    return rows


def _latency(row: Row, kind: str) -> dict[str, Any]:
    """Milliseconds, predicted and as the class's devices measured them; None where nobody did."""
    known = row.get("latency_ms", {}).get(kind, {})
    return {
        "predicted_ms": known.get("predicted"),
        "median_ms": known.get("median"),
        "slowest_ms": known.get("slowest"),
        "timed_by": known.get("devices"),
    }


def _audit(row: Row) -> dict[str, Any]:
    """What may be claimed of a class's search; `claim` is worked out again from the interval."""
    audit = row["audit"]
    none: dict[str, Any] = {"value": None, "low": None, "high": None}
    improvement, over, beats = (
        (audit or {}).get(name) or none for name in ("improvement", "over_largest", "beats_random")
    )
    low = improvement["low"]
    return {
        "class": row["class"],
        "claim": "searched" if low is not None and low > 0 else NO_CLAIM,
        "improvement_percent": improvement["value"],
        "improvement_low": low,
        "improvement_high": improvement["high"],
        "over_largest": over["value"],
        "over_largest_low": over["low"],
        "over_largest_high": over["high"],
        "beats_random": beats["value"],
        "beats_random_low": beats["low"],
        "beats_random_high": beats["high"],
        "random": audit and audit["random"],
        "searches": audit and audit["seeds"],
        "origin": row["origin"],
    }


def _calibration(facts: Facts) -> list[dict[str, Any]]:
    return [
        {"class": row["class"], "network": network, **figures}
        for row in facts.results
        for network, figures in (row["calibration"] or {}).items()
    ]


def _devices(facts: Facts) -> list[dict[str, Any]]:
    """A row for each device: its data as it told them, what it gave, and the model of its class."""
    given = {} if facts.book is None else {one.device: one for one in facts.book.contributions}
    models = {row["class"]: row for row in facts.results}
    rows = []
    for device in sorted({*facts.joined, *given}):
        card, gave = facts.joined.get(device, {}), given.get(device)
        model = models.get(str(card.get("device_class")))
        rows.append(
            {
                "device": device,
                "class": card.get("device_class"),
                "examples": card.get("examples"),
                "validation_examples": card.get("validation_examples"),
                "labels": card.get("labels"),
                "asked": gave and gave.assigned,
                "accepted": gave and gave.accepted,
                "share": gave and gave.share,
                "strikes": gave and gave.strikes,
                "version": model and model["version"],
                "macs": model and model["cost"]["macs"],
            }
        )
    return rows


def _anytime(facts: Facts) -> list[dict[str, Any]]:
    """The best accuracy after each evaluation of each class's search."""
    return [
        {
            "class": row["class"],
            "method": row["method"],
            "evaluation": place,
            "macs": cost(facts.space, facts.space.arch(one["arch"])).macs,
            "accuracy": one["accuracy"],
            "best": best,
        }
        for row in facts.results
        for place, (one, best) in enumerate(
            zip(row["evaluated"], row["best_so_far"], strict=True), start=1
        )
    ]


def _predictor(row: Row) -> Mapping[str, Any]:
    rank = row["rank_report"]
    names = ("subnets", "tau", "tau_macs", "ceiling", "rmse", "rmse_of_mean")
    low, high = rank["gain"]
    return {
        "class": row["class"],
        "verdict": rank["verdict"],
        **{name: rank[name] for name in names},
        "gain_low": low,
        "gain_high": high,
    }
