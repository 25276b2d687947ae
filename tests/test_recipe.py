"""Recipes: combinations that make no sense are refused, and what a step costs is known before."""

from typing import Any

import pytest
from fedofa.protos.recipe import Recipe
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"train_assigned": False, "students": "none"}, "trains nothing"),
        ({"train_assigned": False, "learn": "labels", "student_weight": 0}, "trains nothing"),
        ({"train_assigned": False}, "learn = kl: students learn from the assigned subnet"),
        ({"students": "random", "random_subnets": 0}, "at least 1 with students = random"),
        ({"attentive": "best", "random_subnets": 0}, "chooses among random subnets"),
        ({"attentive": "worst", "students": "smallest"}, "chooses among random subnets"),
        ({"listed": ({"a": 1},), "students": "smallest"}, "listed is not used"),
        ({"temperature": 2.0, "learn": "alpha"}, "with learn = kl only"),
        ({"label_weight": 1.0, "learn": "labels"}, "leave it at 0"),
        ({"alpha_min": 1.0, "alpha_max": 1.0}, "must be below alpha_max = 1.0"),
        ({"combine": "project", "students": "none"}, "needs both sides"),
        ({"one_pass": True, "students": "smallest"}, "at most one"),
        ({"one_pass": True, "random_subnets": 2, "batch_size": 5}, "at least 6"),
        ({"students": "some"}, "students"),
        ({"student_weight": -1}, "student_weight"),
        ({"distill": True}, "distill"),
    ],
    ids=str,
)
def test_a_recipe_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Recipe(**fields)


def test_what_a_step_costs_at_most_follows_from_the_recipe() -> None:
    assert Recipe().passes() == 9
    assert Recipe(students="none").passes() == 3
    assert Recipe(student_weight=0.0).passes() == 3
    assert Recipe(students="random", train_assigned=False, learn="labels").passes() == 3
    looking = Recipe(random_subnets=2, attentive="best", attentive_candidates=4, redraw="step")
    assert looking.passes() == 12 + 8
    assert looking.model_copy(update={"redraw": "epoch"}).passes() == 12
    assert Recipe(random_subnets=3, one_pass=True).passes() == 6
    assert Recipe(students="listed", listed=({"a": 1}, {"a": 2})).passes() == 9
