"""The linter of best practices: each item is met by its own evidence, and by nothing else."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedofa.server.report import practices
from fedofa.server.report.facts import Facts
from fedofa.server.report.held_out import HeldOut
from fedofa.server.report.lineage import Lineage
from reported import facts_of, held_out_of, traced

Scene = tuple[Facts, Lineage, list[HeldOut]]


def states(scene: Scene) -> dict[str, str]:
    return {item.name: finding.state for item, finding in practices.judge(*scene)}


@pytest.fixture
def exemplary(reported_run: Path) -> Scene:
    """The small run as it would be with three seeds, eight random subnets, a predictor and a test."""
    facts = facts_of(reported_run)
    rows: Any = copy.deepcopy(facts.results)
    for row in rows:
        row["audit"]["random"] = 8
        row["rank_report"]["subnets"] = 10
    search = facts.config.search.model_copy(update={"method": "predicted"})
    config = facts.config.model_copy(update={"search": search})
    better = replace(facts, results=rows, config=config, seeds=(0, 1, 2))
    return better, traced(reported_run), held_out_of(reported_run)


def without(facts: Facts, kind: str, **fields: object) -> Facts:
    """Without the events of a kind that have these fields."""

    def kept(event: Mapping[str, Any]) -> bool:
        return event["event"] != kind or any(event.get(k) != v for k, v in fields.items())

    return replace(
        facts,
        trained=tuple(filter(kept, facts.trained)),
        searched=tuple(filter(kept, facts.searched)),
    )


def changed_rows(change: Callable[[Any], None]) -> Callable[[Scene], Scene]:
    """With the first class's row changed."""

    def apply(scene: Scene) -> Scene:
        facts, found, held_out = scene
        rows = copy.deepcopy(facts.results)
        change(rows[0])
        return replace(facts, results=rows), found, held_out

    return apply


def changed(change: Callable[[Facts], Facts]) -> Callable[[Scene], Scene]:
    return lambda scene: (change(scene[0]), *scene[1:])


def other_recipe(facts: Facts) -> Facts:
    recipe = facts.config.recipe.model_copy(update={"lr": 0.123})
    return replace(facts, config=facts.config.model_copy(update={"recipe": recipe}))


def no_versions(facts: Facts) -> Facts:
    environment = facts.job.environment.model_copy(update={"packages": {}})
    return replace(facts, job=facts.job.model_copy(update={"environment": environment}))


def one_card_less(facts: Facts) -> Facts:
    joined = dict(facts.joined)
    del joined["dev-1"]
    return replace(facts, joined=joined)


def no_validation(facts: Facts) -> Facts:
    joined = {name: {**card, "validation_examples": 0} for name, card in facts.joined.items()}
    return replace(facts, joined=joined)


def a_gap(facts: Facts) -> Facts:
    assert facts.book is not None
    return replace(facts, book=replace(facts.book, unrecorded=1))


def claim_more(row: Any) -> None:
    row["searched"] = not row["searched"]


REMOVED: Mapping[str, Callable[[Scene], Scene]] = {
    "configuration": changed(other_recipe),
    "software": changed(no_versions),
    "seeds": changed(lambda facts: replace(facts, seeds=(0,))),
    "data-cards": changed(one_card_less),
    "splits": changed(no_validation),
    "test-part": lambda scene: (*scene[:2], scene[2][1:]),
    "ledger": changed(a_gap),
    "training-cost": changed(lambda facts: without(facts, "round", round=2)),
    "search-cost": changed(lambda facts: without(facts, "measured", about="evaluate.files")),
    "anytime": changed_rows(lambda row: row["evaluated"].pop()),
    "random-baseline": changed_rows(lambda row: row["audit"].update(random=7)),
    "same-protocol": changed_rows(lambda row: row["candidates"][1].update(examples=1)),
    "claims": changed_rows(claim_more),
    "predictor": changed_rows(lambda row: row["rank_report"].update(subnets=9)),
    "shipped-files": changed_rows(lambda row: row["validation"].pop("onnx_int8")),
    "lineage": lambda scene: (scene[0], replace(scene[1], broken=("file x",)), scene[2]),
}


def test_with_all_its_evidence_every_practice_is_met(exemplary: Scene) -> None:
    assert set(states(exemplary).values()) == {"met"}


def test_every_practice_has_a_case_here() -> None:
    assert set(REMOVED) == {item.name for item in practices.ITEMS}


@pytest.mark.parametrize("name", REMOVED)
def test_a_practice_whose_evidence_is_gone_is_not_met_and_only_that_one(
    name: str, exemplary: Scene
) -> None:
    scene = REMOVED[name](exemplary)
    unmet = [item for item, state in states(scene).items() if state != "met"]
    assert unmet == [name]
    (row,) = [row for row in practices.told(practices.judge(*scene)) if row["item"] == name]
    assert row["state"] == "not met"
    assert row["evidence"]
    assert row["advice"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("configuration", lambda facts: replace(facts, training=None)),
        ("data-cards", lambda facts: replace(facts, data_form=None)),
        ("training-cost", lambda facts: replace(facts, trained=())),
        ("search-cost", lambda facts: without(facts, "measured", about="evaluate")),
        ("ledger", lambda facts: replace(facts, book=None)),
    ],
)
def test_other_evidence_of_a_practice_counts_too(
    name: str, change: Callable[[Facts], Facts], exemplary: Scene
) -> None:
    assert states((change(exemplary[0]), *exemplary[1:]))[name] == "not met"


def test_a_class_called_searched_without_an_audit_claims_too_much(exemplary: Scene) -> None:
    scene = changed_rows(lambda row: row.update(audit=None, searched=True))(exemplary)
    assert states(scene)["claims"] == "not met"


def test_what_cannot_be_asked_of_a_run_does_not_apply(exemplary: Scene) -> None:
    facts, found, held_out = exemplary
    search = facts.config.search.model_copy(update={"method": "mutation"})
    config = facts.config.model_copy(update={"search": search})
    assert states((replace(facts, config=config), found, held_out))["predictor"] == "does not apply"
    rows = copy.deepcopy(facts.results)
    for row in rows:
        assert isinstance(row, dict)
        row.update(candidates=row["candidates"][:1], audit=None, searched=False)
    alone = replace(facts, results=rows)
    assert states((alone, found, held_out))["random-baseline"] == "does not apply"
