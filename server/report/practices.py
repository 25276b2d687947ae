"""Whether a run kept to the best practices of architecture search, item by item, with its evidence.

After the lists of "Neural Architecture Search: Insights from 1000 Papers" (White et al. 2023) and "Best
Practices for Scientific Research on NAS" (Lindauer and Hutter 2020), as far as a run's files can show
them; "NAS evaluation is frustratingly hard" (Yang et al. 2020) for random baselines. What no file can
show is not judged: whether rivals were tuned as well, ablations, tabular benchmarks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import search_items, training_items
from .facts import Facts, Source
from .finding import Finding, Scene, finding
from .held_out import HeldOut
from .lineage import Lineage


@dataclass(frozen=True, slots=True)
class Item:
    """One practice; its name is stable. `rests_on` are files without which it cannot be judged."""

    name: str
    practice: str
    judge: Callable[[Scene], Finding]
    rests_on: tuple[Source, ...] = ()


RESULTS: tuple[Source, ...] = ("results",)
EVENTS: tuple[Source, ...] = ("events",)
ROUNDS: tuple[Source, ...] = ("events", "ledger")
ITEMS = (
    Item("configuration", "the whole configuration is recorded", training_items.configuration),
    Item("software", "versions and processor are recorded", training_items.software),
    Item("seeds", "several seeds, told", training_items.seeds),
    Item("data-cards", "each device's data are described", training_items.data_cards, ROUNDS),
    Item("splits", "training and validation examples are apart", training_items.splits, EVENTS),
    Item(
        "test-part",
        "results are of examples that nothing was chosen by",
        search_items.test_part,
        RESULTS,
    ),
    Item("ledger", "every round is recorded", training_items.ledger, ("ledger",)),
    Item("training-cost", "cost of training is told", training_items.training_cost, ROUNDS),
    Item(
        "search-cost",
        "cost of the search and its fidelity are told",
        search_items.search_cost,
        EVENTS,
    ),
    Item("anytime", "the search is told over its evaluations", search_items.anytime, RESULTS),
    Item("random-baseline", "random subnets beside the searched one", search_items.random, RESULTS),
    Item(
        "same-protocol", "all were measured alike, the largest too", search_items.protocol, RESULTS
    ),
    Item("claims", "searched is claimed above chance only", search_items.claims, RESULTS),
    Item(
        "predictor", "the predictor is tested on held-out subnets", search_items.predictor, RESULTS
    ),
    Item(
        "shipped-files",
        "what is shipped was measured, not its float twin",
        search_items.files,
        RESULTS,
    ),
    Item("lineage", "each file leads back to rounds and devices", training_items.lineage),
)


def judge(
    facts: Facts, lineage: Lineage, held_out: Sequence[HeldOut]
) -> list[tuple[Item, Finding]]:
    """Every item, in order; one that rests on a changed file is not met."""
    scene = Scene(facts, lineage, held_out)
    return [(item, _judged(item, scene)) for item in ITEMS]


def _judged(item: Item, scene: Scene) -> Finding:
    changed = [line for source in item.rests_on for line in scene.facts.changed[source]]
    if changed:
        return finding(changed, "", "restore that file: nothing is judged by what was changed")
    return item.judge(scene)


def told(found: Sequence[tuple[Item, Finding]]) -> list[dict[str, Any]]:
    """A row for each."""
    return [
        {
            "item": item.name,
            "state": one.state,
            "practice": item.practice,
            "evidence": one.evidence,
            "advice": one.advice,
        }
        for item, one in found
    ]
