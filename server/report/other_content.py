"""Rows of the report that are about fleets and finishings; as `content.py` has those of the run."""

from collections.abc import Iterator
from typing import Any

from .costs import FIDELITY, of_measuring, of_rounds
from .logs import Row
from .others import FinishingFacts, FleetFacts, Others

Rows = list[dict[str, Any]]


def rows(others: Others) -> dict[str, Rows]:
    """The tables `fleets`, `artifacts` and `finished`; of a file that was changed nothing is told."""
    return {
        "fleets": [_fleet(one, one.assignment) for one in others.fleets if one.assignment],
        "artifacts": [
            row
            for one in others.fleets
            if one.assignment
            for row in _artifacts(one, one.assignment)
        ],
        "finished": [_finished(one, one.outcome) for one in others.finishings if one.outcome],
    }


def costs(others: Others) -> Rows:
    """What each fleet's artifacts and each finishing cost, as `costs.totals` has it."""
    found = []
    for fleet in others.fleets:
        measured = of_measuring(fleet.facts)
        subnets = [row for row in measured if row["fidelity"] == FIDELITY["evaluate"]]
        found.append(
            {
                "what": f"fleet {fleet.name}",
                "rounds": None,
                "evaluations": sum(row["subnets"] for row in subnets),
                "macs": sum(row["macs"] for row in measured),
                "seconds": fleet.facts.job.seconds,
                "bytes": None,
            }
        )
    for one in others.finishings:
        rounds = of_rounds(one.facts)
        measured = of_measuring(one.facts)
        found.append(
            {
                "what": f"finishing {one.device_class}",
                "rounds": len(rounds),
                "evaluations": None,
                "macs": sum(row["train_macs"] for row in rounds)
                + sum(row["macs"] for row in measured),
                "seconds": one.facts.job.seconds,
                "bytes": sum(row["bytes_sent"] + row["bytes_received"] for row in rounds),
            }
        )
    return found


def _fleet(fleet: FleetFacts, assignment: Row) -> dict[str, Any]:
    told = assignment["summary"]
    loss = told["loss_of_predicted_accuracy"]
    names = ("devices", "served", "not_served", "artifacts", "artifacts_if_each_had_its_own")
    return {
        "fleet": fleet.name,
        "round": fleet.facts.job.round,
        **{name: told[name] for name in names},
        "loss_mean": loss["mean"],
        "loss_95_percent_below": loss["95_percent_below"],
        "loss_most": loss["most"],
        "moved": told["moved_after_export"],
        "measured_subnets": told["measured_subnets"],
        "predictor": told["predictor"],
        "channel": fleet.facts.job.published and fleet.facts.job.published.channel,
    }


def _artifacts(fleet: FleetFacts, assignment: Row) -> Iterator[dict[str, Any]]:
    space = fleet.facts.space
    names = ("kind", "version", "devices", "macs", "params", "size_bytes", "predicted_accuracy")
    for row in assignment["artifacts"]:
        yield {
            "fleet": fleet.name,
            "class": row["device_class"],
            **{name: row[name] for name in names},
            "accuracy": row["validation_file"],
            "subnet_accuracy": row["validation"],
            "arch": space.describe(space.arch(row["arch"])),
        }


def _finished(one: FinishingFacts, outcome: Row) -> dict[str, Any]:
    names = ("published", "version", "before", "after", "gain", "standard_error", "p", "examples")
    return {
        "class": one.device_class,
        **{name: outcome[name] for name in (*names, "method", "verdict")},
        "from_version": one.start.version,
        "from_round": one.start.round,
        "rounds": one.start.rounds,
        "arch": one.facts.space.describe(one.facts.space.arch(one.start.arch)),
    }
