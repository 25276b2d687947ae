"""Which subnets a device's steps train beside the assigned one."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from fedofa.client.batches import Step
from fedofa.client.students import BINS, Students
from fedofa.protos.recipe import Recipe
from fedofa.supernet.batch import Batch
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.space import Arch
from strategies import DIGITS

KEY = (0, 1, "dev-0")
ASSIGNED = DIGITS.sample(random.Random(6))
STUDENTS = [DIGITS.smallest(), DIGITS.sample_within(ASSIGNED, random.Random(7))]
BATCH = Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))


def drawn_by(recipe: Recipe, arch: Arch = ASSIGNED, epochs: int = 2, per_epoch: int = 3) -> Any:
    """The students of each step, and every (step, candidate) that was rated: by its MACs."""
    rated: list[tuple[int, Arch]] = []
    students, found = Students(DIGITS, arch, recipe, KEY), []
    for number in range(epochs * per_epoch):
        step = Step(number // per_epoch, number, BATCH)

        def rate(candidate: Arch, number: int = number) -> float:
            rated.append((number, candidate))
            return float(hash(candidate) % 1000)

        found.append(students.of(step, rate))
    return found, rated


def test_every_way_of_choosing_students_chooses_what_it_says() -> None:
    smallest = DIGITS.smallest()
    assert drawn_by(Recipe(students="none"))[0] == [[]] * 6
    assert drawn_by(Recipe(student_weight=0.0))[0] == [[]] * 6
    assert drawn_by(Recipe(students="smallest"))[0] == [[smallest]] * 6
    sandwich = drawn_by(Recipe(students="sandwich", random_subnets=2))[0]
    alone = drawn_by(Recipe(students="random", random_subnets=2))[0]
    for both, drawn in zip(sandwich, alone, strict=True):
        assert both == [smallest, *drawn]
        assert len(set(drawn)) == 2
        assert all(DIGITS.contains(ASSIGNED, arch) for arch in drawn)


def test_students_are_drawn_anew_each_epoch_or_each_step() -> None:
    def changes(redraw: str) -> list[bool]:
        recipe = Recipe(students="random", redraw=redraw, random_subnets=2)
        found = drawn_by(recipe, DIGITS.largest())[0]
        return [a != b for a, b in pairwise(found)]

    assert changes("epoch") == [False, False, True, False, False]
    assert changes("step") == [True] * 5


def test_an_assigned_subnet_that_is_trained_is_not_its_own_student() -> None:
    smallest = DIGITS.smallest()
    assert drawn_by(Recipe(), smallest)[0] == [[]] * 6
    lone = Recipe(train_assigned=False, students="random", learn="labels")
    assert drawn_by(lone, smallest)[0] == [[smallest]] * 6


def test_listed_subnets_are_trained_or_drawn_from_where_they_fit() -> None:
    listed = tuple(dict(arch) for arch in (*STUDENTS, DIGITS.largest()))
    assert drawn_by(Recipe(students="listed", listed=listed))[0] == [STUDENTS] * 6
    found = drawn_by(Recipe(students="random", redraw="step", listed=listed), epochs=8)[0]
    assert {arch for step in found for arch in step} == set(STUDENTS)
    largest = (dict(DIGITS.largest()),)
    for students in ("listed", "random"):
        assert drawn_by(Recipe(students=students, listed=largest))[0] == [[]] * 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"students": "listed"}, "listed is empty"),
        ({"students": "listed", "listed": ({"stem.width": 8},)}, "is missing"),
        (
            {
                "students": "random", "learn": "labels", "train_assigned": False,
                "listed": (dict(DIGITS.largest()),),
            },
            "none of the listed subnets lies within the assigned one",
        ),
    ],
)  # fmt: skip
def test_a_list_that_trains_nothing_is_a_usage_error(fields: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Students(DIGITS, ASSIGNED, Recipe(**fields), KEY)


@pytest.mark.parametrize("mode", ["best", "worst"])
def test_an_attentive_choice_is_the_extreme_of_candidates_of_its_cost(mode: str) -> None:
    largest = DIGITS.largest()
    plain = Recipe(students="random", redraw="step")
    recipe = plain.model_copy(update={"attentive": mode, "attentive_candidates": 3})
    found, rated = drawn_by(recipe, largest, epochs=4)
    first = drawn_by(plain, largest, epochs=4)[0]
    bin_size = (cost(DIGITS, largest).macs - cost(DIGITS, DIGITS.smallest()).macs) / BINS
    for number, (chosen,) in enumerate(found):
        looked_at = [arch for at, arch in rated if at == number] or [chosen]
        losses = [hash(arch) % 1000 for arch in looked_at]
        extreme = min(losses) if mode == "best" else max(losses)
        assert hash(chosen) % 1000 == extreme
        assert looked_at[0] == first[number][0]  # the first candidate is the plain draw
        assert len(looked_at) <= 3
        macs = [cost(DIGITS, arch).macs for arch in looked_at]
        assert max(macs) - min(macs) <= bin_size + 1
    assert len(rated) > 2 * len(found)


def test_one_candidate_is_no_choice_and_costs_nothing() -> None:
    plain = Recipe(students="random", redraw="step")
    one = plain.model_copy(update={"attentive": "best", "attentive_candidates": 1})
    assert drawn_by(one) == drawn_by(plain)
