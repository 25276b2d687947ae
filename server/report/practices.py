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
from .facts import Facts
from .finding import Finding, Scene
from .held_out import HeldOut
from .lineage import Lineage


@dataclass(frozen=True, slots=True)
class Item:
    """One practice; its name is stable."""

    name: str
    practice: str
    judge: Callable[[Scene], Finding]


ITEMS = (
    Item("configuration", "the whole configuration is recorded", training_items.configuration),
    Item("software", "versions and processor are recorded", training_items.software),
    Item("seeds", "several seeds, told", training_items.seeds),
    Item("data-cards", "each device's data are described", training_items.data_cards),
    Item("splits", "training and validation examples are apart", training_items.splits),
    Item("test-part", "results are of examples that nothing was chosen by", search_items.test_part),
    Item("ledger", "every round is recorded", training_items.ledger),
    Item("training-cost", "cost of training is told", training_items.training_cost),
    Item("search-cost", "cost of the search and its fidelity are told", search_items.search_cost),
    Item("anytime", "the search is told over its evaluations", search_items.anytime),
    Item("random-baseline", "random subnets beside the searched one", search_items.random),
    Item("same-protocol", "all were measured alike, the largest too", search_items.protocol),
    Item("claims", "searched is claimed above chance only", search_items.claims),
    Item("predictor", "the predictor is tested on held-out subnets", search_items.predictor),
    Item("shipped-files", "what is shipped was measured, not its float twin", search_items.files),
    Item("lineage", "each file leads back to rounds and devices", training_items.lineage),
)


def judge(
    facts: Facts, lineage: Lineage, held_out: Sequence[HeldOut]
) -> list[tuple[Item, Finding]]:
    """Every item, in order."""
    scene = Scene(facts, lineage, held_out)
    return [(item, item.judge(scene)) for item in ITEMS]


def told(found: Sequence[tuple[Item, Finding]]) -> list[dict[str, Any]]:
    """A row for each."""
    return [
        {
            "item": item.name,
            "state": finding.state,
            "practice": item.practice,
            "evidence": finding.evidence,
            "advice": finding.advice,
        }
        for item, finding in found
    ]
