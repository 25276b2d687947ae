"""`fedofa bench robust`, `codec` and `heterogeneity`: trainings of unequal, lying, thrifty fleets.

All on Fashion-MNIST with 20 clients, Dirichlet 0.3 unless said otherwise, the recipe `fedofa`, seeds
paired; accuracy is the mean over the four budgets on the test part. Settings were not tuned on it.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

import numpy as np
from fedofa.protos import durable
from fedofa.protos.codec.config import PRESETS
from fedofa.protos.codec.wire import decode, encode
from fedofa.server.tables import table
from fedofa.supernet.axes import regions
from fedofa.supernet.weights import gather, initial, shapes_of, size_of
from rich.console import Console

from .accuracy import commit
from .accuracy_tasks import TASKS
from .kept import Kept, Record
from .timing import machine
from .trials import RATIO, Trial, gap, nodes, of, run_all, spread

CLIENTS, SEEDS = 20, 3
Runner = Callable[[Sequence[Trial]], list[Record]]
QUARANTINE = "clip + trimmed mean, quarantine"
RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "clip": {"clip": 2.0},
    "clip + trimmed mean": {"clip": 2.0, "rule": "trimmed_mean", "trim": 0.2},
    QUARANTINE: {"clip": 2.0, "rule": "trimmed_mean", "trim": 0.2},
    "clip + median": {"clip": 2.0, "rule": "median"},
    "multi-Krum": {"rule": "krum", "liars": 4},
}
LIARS = (1, 4)
REFUSED = ("NaN", "scaled x1e6", "wrong shape", "replay")
"""Lies that are refused before any rule sees them: tried with one rule."""
TRIED: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "sign-flipped x10": tuple(RULES),
        "constant": ("mean", "clip + trimmed mean", "clip + median", "multi-Krum"),
        "old values": ("mean", "clip + trimmed mean", "clip + median", "multi-Krum"),
        **dict.fromkeys(REFUSED, ("clip + trimmed mean",)),
    }
)
"""Kind of lie → rules that meet it."""
RESERVED = 1200
"""What the server has of Fashion-MNIST's 60,000 training images: 2 %, as in FedLAW's paper."""
ON_PROXY: dict[str, dict[str, Any]] = {
    "plain": {},
    "fedlaw": {"aggregation": {"rule": "fedlaw"}, "proxy": {}},
    "fedlaw, no shrink factor": {
        "aggregation": {"rule": "fedlaw", "law_shrink": False},
        "proxy": {},
    },
    "server fine-tuning, 1 epoch": {"proxy": {"tune_epochs": 1}},
    "server fine-tuning, 20 epochs": {"proxy": {"tune_epochs": 20}},
}
CODECS = ("none", "lean", "qsgd", "fedzip", "sparse")
DOWNLINKS = (("none", "int8"), ("qsgd", "int8"))
"""Codecs upwards and downwards together."""
CODEC_MACS = 4e11
"""Twice the length of the others: what an error memory owes counts for less, as in real trainings."""


def bench_robust(run: Runner) -> tuple[list[Record], list[dict[str, Any]]]:
    """Accuracy with liars against runs without: 1 or 4 of 20 clients, seven kinds of lies."""
    trials = [_lied_to(rule, None, 0) for rule in RULES]
    for kind, rules in TRIED.items():
        trials += [_lied_to(rule, kind, count) for rule in rules for count in LIARS]
    found = run(trials)
    clean = of(found, _title("mean", None, 0))
    rows = []
    for trial in trials:
        mine = of(found, trial.name)
        lying = {f"client-{node:02d}" for node in nodes(trial.liars[1])} if trial.liars else set()
        named = [name for one in mine.values() for name, times in one["named"].items() if times > 1]
        rows.append(
            {
                "trial": trial.name,
                "accuracy": spread([one["mean"] for one in mine.values()]),
                "against its own clean": gap(mine, of(found, f"{trial.name.split(':')[0]}: clean")),
                "against clean mean": gap(mine, clean),
                "finite": all(one["finite"] for one in mine.values()),
                "liars named": f"{sum(n in lying for n in named)}/{len(lying) * len(mine)}",
                "others named": sum(n not in lying for n in named),
            }
        )
    return found, rows


def bench_codec(run: Runner) -> tuple[list[Record], list[dict[str, Any]]]:
    """Bytes that travel, accuracy at the end and speed of each codec."""
    choices = [*((up, "none") for up in CODECS), *DOWNLINKS]
    trials = [_coded(up, down) for up, down in choices]
    found = run(trials)
    plain, space = of(found, "none"), TASKS["fashion"].space
    dense = 4 * size_of(shapes_of(regions(space, space.largest()))) * CLIENTS
    rows = []
    raw_down = mean(one["bytes_sent"] / one["rounds"] for one in plain.values())
    for trial, (codec, _) in zip(trials, choices, strict=True):
        mine = of(found, trial.name)
        up = mean(one["bytes_received"] / one["rounds"] for one in mine.values())
        raw = mean(one["bytes_received"] / one["rounds"] for one in plain.values())
        down = mean(one["bytes_sent"] / one["rounds"] for one in mine.values())
        rows.append(
            {
                "codec": trial.name,
                "accuracy": spread([one["mean"] for one in mine.values()]),
                "against none": gap(mine, plain),
                "kB up a round": f"{up / 1e3:.1f}",
                "kB down": f"{down / 1e3:.0f}",
                "fewer than dense": f"{dense / up:.0f}",
                "fewer than none": f"{raw / up:.0f}",
                "fewer down": f"{raw_down / down:.1f}",
                **_speed(codec),
            }
        )
    return found, rows


def bench_heterogeneity(run: Runner) -> tuple[list[Record], list[dict[str, Any]]]:
    """Label skew, a long tail and mixed bits: each method against plain averaging at equal cost.

    Of the devices: what the server spends on a proxy set of its own is in no row.
    """
    skew, tail = {"alpha": 0.1}, {"tail": 50.0}
    plain = {"logit_adjustment": 0.0}
    trials = [
        Trial("skew 0.1: plain", recipe=plain, arguments=skew),
        Trial("skew 0.1: FedDisco", {"aggregation": {"weights": "disco"}}, plain, skew),
        Trial("skew 0.1: uniform weights", {"aggregation": {"weights": "uniform"}}, plain, skew),
        Trial("skew 0.1: FedProx 0.01", recipe={**plain, "proximal": 0.01}, arguments=skew),
        Trial("skew 0.1: logit adjustment", arguments=skew),
        Trial("tail 50: plain", recipe=plain, arguments=tail),
        Trial("tail 50: FedDisco", {"aggregation": {"weights": "disco"}}, plain, tail),
        Trial("tail 50: logit adjustment", arguments=tail),
    ]
    for bits in (8, 4, 2):
        mean_only = {"aggregation": {"low_bits": 0}}
        masked = {"aggregation": {"low_bits": 8}}
        trials.append(Trial(f"half at {bits} bits: plain", mean_only, low_bits=bits))
        trials.append(Trial(f"half at {bits} bits: by sign", masked, low_bits=bits))
    trials += [
        Trial(f"skew 0.1, proxy of {RESERVED}: {name}", sections, plain, skew, reserved=RESERVED)
        for name, sections in ON_PROXY.items()
    ]
    found = run(trials)
    rows = []
    for trial in trials:
        base = of(found, trial.name.split(":")[0] + ": plain")
        mine = of(found, trial.name)
        rows.append(
            {
                "trial": trial.name,
                "accuracy": spread([one["mean"] for one in mine.values()]),
                "against plain": "" if trial.name.endswith("plain") else gap(mine, base),
                "TMACs": f"{mean(one['train_macs'] for one in mine.values()) / 1e12:.2f}",
            }
        )
    return found, rows


def _lied_to(rule: str, kind: str | None, count: int) -> Trial:
    # Quarantine only where it is named: it would hide what the rules themselves do.
    sections: dict[str, Any] = {"aggregation": RULES[rule]}
    if rule != QUARANTINE:
        sections["reputation"] = {"strikes": 0}
    if rule == "multi-Krum":
        sections["round"] = {"max_update_ratio": RATIO, "min_replies": 11}
    return Trial(_title(rule, kind, count), sections, liars=(kind, count) if kind else None)


def _coded(up: str, down: str) -> Trial:
    sections: dict[str, Any] = {} if up == "none" else {"codec": up}
    if down == "none":
        return Trial(up, sections, budget_macs=CODEC_MACS)
    sections["downlink"] = down
    return Trial(f"{up}, {down} down", sections, budget_macs=CODEC_MACS)


def _title(rule: str, kind: str | None, count: int) -> str:
    return f"{rule}: {f'{count} {kind}' if kind else 'clean'}"


def _speed(name: str) -> dict[str, str]:
    """CPU speed on a change of the largest subnet of normal values, median of 9."""
    if name == "none":
        return {"encode MB/s": "", "decode MB/s": ""}
    space = TASKS["fashion"].space
    where = regions(space, space.largest())
    shapes, config = shapes_of(where), PRESETS[name]
    delta = gather(initial(space, 1), where)
    data = encode(delta, shapes, config, 0)
    there, back = [], []
    for _ in range(9):
        begin = time.process_time()
        encode(delta, shapes, config, 0)
        middle = time.process_time()
        decode(data, shapes, config)
        there.append(middle - begin)
        back.append(time.process_time() - middle)
    return {
        "encode MB/s": f"{delta.nbytes / float(np.median(there)) / 1e6:.0f}",
        "decode MB/s": f"{delta.nbytes / float(np.median(back)) / 1e6:.0f}",
    }


TRIALS = MappingProxyType(
    {"robust": bench_robust, "codec": bench_codec, "heterogeneity": bench_heterogeneity}
)


def command(name: str, seeds: int | None, jobs: int, results: Path) -> None:
    """Run one of them, keep every run as JSON, print the table.

    What has ended waits beside the results: the same command goes on where it was stopped.
    """
    kept = Kept(results / f"{name}.trials.jsonl", commit())
    found, rows = TRIALS[name](lambda trials: run_all(trials, range(seeds or SEEDS), jobs, kept))
    content = {
        "benchmark": name,
        "machine": machine(),
        "command": " ".join(["fedofa", *sys.argv[1:]]),
        "commit": commit(),
        "table": rows,
        "runs": sorted(found, key=lambda one: (one["trial"], one["seed"])),
    }
    results.mkdir(parents=True, exist_ok=True)
    durable.write(results / f"{name}.json", json.dumps(content, indent=1).encode())
    title = (TRIALS[name].__doc__ or "").splitlines()[0]
    Console().print(table(rows, f"{name}: {title}"))
