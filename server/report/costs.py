"""What a run cost, from its event logs: MACs, seconds, bytes, evaluations and their fidelity.

Cost and fidelity belong beside a searched result (Insights from 1000 Papers; CE-NAS survey). MACs are
multiply-accumulates of the networks, as devices told them (training) or as the examples of their
profiles give them (measuring); seconds are the server's, with the waiting for devices.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .facts import Facts
from .logs import Row

FIDELITY: Mapping[str, str] = {
    "query.moments": "norm statistics, on the devices' training examples",
    "query.inputs": "second moments of kernels' inputs, on the devices' training examples",
    "evaluate": "subnets of the supernet, on the devices' validation examples",
    "query.ranges": "activation ranges of float files, on the devices' training examples",
    "evaluate.files": "exported files in their runtimes, on the devices' validation examples",
}
"""What was measured, by the question that devices were asked."""
SUMS = ("subnets", "devices", "runs", "examples", "macs", "seconds")


def of_rounds(facts: Facts) -> list[dict[str, Any]]:
    """A row for each time that a round was done, up to the one whose weights were specialized.

    A round that was done again after a kill has two.
    """
    names = (
        "round",
        "accepted",
        "refused",
        "missing",
        "loss",
        "coverage",
        "train_macs",
        "bytes_sent",
        "bytes_received",
        "seconds",
    )
    return [
        {name: event.get(name) for name in names}
        for event in facts.trained
        if event["event"] == "round" and event["round"] <= facts.job.round
    ]


def of_measuring(facts: Facts) -> list[dict[str, Any]]:
    """A row for each step of the specialization and each fidelity: exchanges added up.

    `subnets` adds up over exchanges; `devices` is the most that answered one.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for step, event in _steps(facts.searched):
        about = str(event["about"])
        key = (step, FIDELITY.get(about, about))
        row = found.setdefault(
            key, {"step": key[0], "fidelity": key[1], "exchanges": 0, **dict.fromkeys(SUMS, 0)}
        )
        row["exchanges"] += 1
        for name in SUMS:
            value = event[name]
            row[name] = max(row[name], value) if name == "devices" else row[name] + value
    return list(found.values())


def _steps(events: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    step = "before the first step"
    for event in events:
        if event["event"] == "step":
            step = str(event["what"])
        if event["event"] == "measured":
            yield step, event


def totals(facts: Facts) -> list[dict[str, Any]]:
    """Training, and specialization for the classes: what each took in all.

    `seconds` of training is what its rounds took, of specialization what the job took.
    """
    rounds, measured = of_rounds(facts), of_measuring(facts)
    training = {
        "what": "training",
        "rounds": len(rounds),
        "evaluations": None,
        "macs": sum(row["train_macs"] for row in rounds),
        "seconds": sum(row["seconds"] for row in rounds),
        "bytes": sum(row["bytes_sent"] + row["bytes_received"] for row in rounds),
    }
    specialization = {
        "what": "specialization",
        "rounds": None,
        "evaluations": sum(int(row["evaluations"]) for row in facts.results),
        "macs": sum(row["macs"] for row in measured),
        "seconds": facts.job.seconds,
        "bytes": None,
    }
    # That for a fleet is told with the others.
    return [training, specialization] if facts.job.kind == "specialize" else [training]
