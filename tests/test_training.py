"""A device's steps: which subnets, what gradients, what they cost; recipes that make no sense."""

import platform
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.batches import Step, steps
from fedofa.client.local_step import LocalStep
from fedofa.client.students import Students
from fedofa.client.training import LocalTask, Trained, train
from fedofa.protos.recipe import Recipe
from fedofa.supernet.axes import regions, take
from fedofa.supernet.batch import Batch
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.losses.alpha_divergence import adaptive_divergence
from fedofa.supernet.losses.cross_entropy import cross_entropy
from fedofa.supernet.losses.distillation import distillation
from fedofa.supernet.masked import group_sizes
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import regions_within, static
from invariants import shared_weights
from strategies import DIGITS, SMALL
from torch import Tensor
from torch.nn.functional import interpolate

Weights = dict[str, Tensor]
KEY = (0, 1, "dev-0")
ASSIGNED, MEDIUM = DIGITS.sample(random.Random(6)), DIGITS.sample(random.Random(8))
STUDENTS = [DIGITS.smallest(), DIGITS.sample_within(ASSIGNED, random.Random(7))]


def held(space: Space, arch: Arch, dtype: torch.dtype = torch.float64) -> Weights:
    values = take(shared_weights(space, 3), regions(space, arch))
    return {name: value.to(dtype) for name, value in values.items()}


def examples(space: Space, count: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    shape = space.input_shape(space.largest())
    return rng.normal(size=(count, *shape)).astype(np.float32), rng.integers(0, 10, count)


def batch_of(space: Space, rows: int = 12) -> Batch:
    x, y = examples(space, rows)
    return Batch(torch.from_numpy(x).double(), torch.from_numpy(y))


def alone(space: Space, arch: Arch, outer: Arch, values: Mapping[str, Tensor]) -> Any:
    """The subnet as a module of its own, with the values that it has of the assigned one's."""
    inside = take(values, regions_within(space, arch, outer))
    module = static(space, arch, {n: v.float() for n, v in inside.items()}).double().train()
    module.load_state_dict(inside, strict=False)
    return module


def at_places(module: Any, space: Space, arch: Arch, outer: Arch, values: Weights) -> Weights:
    """A module's gradients at their places in the assigned subnet's tensors, else zeros."""
    found = {name: torch.zeros_like(value) for name, value in values.items()}
    parameters = dict(module.named_parameters())
    for name, region in regions_within(space, arch, outer).items():
        if parameters[name].grad is not None:
            found[name][region] = parameters[name].grad
    return found


def separately(
    recipe: Recipe, values: Weights, batch: Batch, students: Sequence[Arch]
) -> tuple[Weights, list[Weights]]:
    """The assigned subnet's gradients and each student's, every one by a module of its own."""
    labels = batch.labels_b
    teacher = alone(DIGITS, ASSIGNED, ASSIGNED, values)
    logits = teacher(batch.inputs((1, 8, 8)))
    cross_entropy(logits, labels, recipe.label_smoothing).backward()  # type: ignore[no-untyped-call]
    found = []
    for arch in students:
        module = alone(DIGITS, arch, ASSIGNED, values)
        student = module(batch.inputs((1, 8, 8)))
        on_labels = cross_entropy(student, labels, recipe.label_smoothing)
        loss = {
            "labels": on_labels,
            "kl": distillation(student, logits, recipe.temperature),
            "alpha": adaptive_divergence(
                student, logits, recipe.alpha_min, recipe.alpha_max, recipe.alpha_clip
            ),
        }[recipe.learn]
        (loss + recipe.label_weight * on_labels).backward()  # type: ignore[no-untyped-call]
        found.append(at_places(module, DIGITS, arch, ASSIGNED, values))
    return at_places(teacher, DIGITS, ASSIGNED, ASSIGNED, values), found


def filled(
    recipe: Recipe, values: Weights, batch: Batch, students: Sequence[Arch]
) -> tuple[LocalStep, float, Weights]:
    """The step, its loss, and its gradients (zeros where there is none)."""
    local = LocalStep(DIGITS, ASSIGNED, recipe, values, batch.labels_b)
    loss = local.fill(batch, students)
    none = {name: torch.zeros_like(value) for name, value in values.items()}
    found = {n: none[n] if leaf.grad is None else leaf.grad for n, leaf in local.leaves.items()}
    return local, loss, found


def assert_equal(mine: Weights, theirs: Weights) -> None:
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"label_smoothing": 0.1},
        {"temperature": 3.0},
        {"temperature": 2.0, "label_weight": 0.5, "label_smoothing": 0.1},
        {"learn": "labels"},
        {"learn": "alpha"},
        {"learn": "alpha", "alpha_min": -2.0, "alpha_max": 0.5, "alpha_clip": 2.0},
        {"student_weight": 0.25},
        {"combine": "mean", "student_weight": 3.0},
    ],
    ids=str,
)
def test_a_steps_gradient_is_the_sum_of_separately_computed_ones(fields: dict[str, Any]) -> None:
    recipe, values, batch = Recipe(**fields), held(DIGITS, ASSIGNED), batch_of(DIGITS)
    _, _, found = filled(recipe, values, batch, STUDENTS)
    own, students = separately(recipe, values, batch, STUDENTS)
    scale = recipe.student_weight / (2 if recipe.combine == "mean" else 1)
    assert_equal(found, {n: own[n] + scale * sum(s[n] for s in students) for n in own})


def test_a_later_step_starts_from_the_values_of_then_and_remembers_no_gradient() -> None:
    recipe, values, batch = Recipe(), held(DIGITS, ASSIGNED), batch_of(DIGITS)
    local, _, _ = filled(recipe, values, batch, STUDENTS)
    with torch.no_grad():
        for leaf in local.leaves.values():
            leaf.mul_(1.1)
            leaf.grad = None
    local.fill(batch, STUDENTS)
    moved = {name: leaf.detach() for name, leaf in local.leaves.items()}
    _, _, expected = filled(recipe, moved, batch, STUDENTS)
    found = {n: leaf.grad for n, leaf in local.leaves.items() if leaf.grad is not None}
    assert_equal(found, expected)


def test_the_loss_that_is_told_is_that_on_labels() -> None:
    values, batch = held(DIGITS, ASSIGNED), batch_of(DIGITS)

    def of(arch: Arch) -> float:
        logits = alone(DIGITS, arch, ASSIGNED, values)(batch.inputs((1, 8, 8)))
        return cross_entropy(logits, batch.labels_b, 0.0).item()

    _, loss, _ = filled(Recipe(), values, batch, STUDENTS)
    assert loss == pytest.approx(of(ASSIGNED))
    recipe = Recipe(train_assigned=False, students="random", learn="labels", student_weight=0.5)
    _, loss, _ = filled(recipe, values, batch, STUDENTS)
    assert loss == pytest.approx((of(STUDENTS[0]) + of(STUDENTS[1])) / 2)


def dot(first: Weights, second: Weights) -> float:
    return sum(float((first[name] * second[name]).sum()) for name in first)


def test_with_surgery_no_step_goes_against_the_target() -> None:
    """Labels that both see turned round, so that teacher and target often disagree."""
    recipe, target = Recipe(combine="project", students="listed", lr=0.5), STUDENTS[:1]
    values, conflicts = held(DIGITS, ASSIGNED), 0
    for seed in range(12):
        x, y = examples(DIGITS, 12, seed)
        batch = Batch(torch.from_numpy(x).double(), torch.from_numpy(y))
        own, (weak,) = separately(recipe, values, batch, target)
        _, _, found = filled(recipe, values, batch, target)
        before, square = dot(own, weak), dot(weak, weak)
        conflicts += before < 0
        assert dot(found, weak) >= square * (1 - 1e-6)
        if before >= 0:
            assert_equal(found, {n: own[n] + weak[n] for n in own})
        for name in values:  # away from where both agree
            values[name] -= recipe.lr * (own[name] + weak[name])
    assert 0 < conflicts < 12


def test_fedprox_pulls_every_value_back_to_what_was_received() -> None:
    recipe, values = Recipe(students="none", proximal=0.7), held(DIGITS, ASSIGNED)
    batch = batch_of(DIGITS)
    local = LocalStep(DIGITS, ASSIGNED, recipe, values, batch.labels_b)
    with torch.no_grad():
        for leaf in local.leaves.values():
            leaf += 0.1
    moved = {n: leaf.detach().clone() for n, leaf in local.leaves.items()}
    local.fill(batch, [])
    own, _ = separately(recipe, moved, batch, [])
    assert_equal(
        {n: leaf.grad for n, leaf in local.leaves.items() if leaf.grad is not None},
        {n: own[n] + 0.7 * (moved[n] - values[n]) for n in own},
    )


def test_gradients_are_bounded_by_value_and_then_by_norm() -> None:
    values, batch = held(DIGITS, ASSIGNED), batch_of(DIGITS)
    _, _, free = filled(Recipe(), values, batch, STUDENTS)
    most = 0.1 * max(float(g.abs().max()) for g in free.values())
    _, _, cut = filled(Recipe(clip_value=most), values, batch, STUDENTS)
    assert_equal(cut, {n: g.clamp(-most, most) for n, g in free.items()})
    _, _, both = filled(Recipe(clip_value=most, clip_norm=most), values, batch, STUDENTS)
    assert dot(both, both) == pytest.approx(most**2, rel=1e-4)
    assert dot(both, cut) == pytest.approx(np.sqrt(dot(both, both) * dot(cut, cut)), rel=1e-6)


def test_students_in_one_pass_learn_each_from_its_rows() -> None:
    recipe = Recipe(one_pass=True, combine="mean", label_weight=0.5)
    values, batch = held(DIGITS, ASSIGNED), batch_of(DIGITS, 9)
    local, _, found = filled(recipe, values, batch, STUDENTS)
    own, _ = separately(recipe, values, batch, [])
    logits = alone(DIGITS, ASSIGNED, ASSIGNED, values)(batch.inputs((1, 8, 8))).detach()
    begin, expected = 0, own
    for arch, size in zip(STUDENTS, group_sizes(9, 2), strict=True):
        rows = slice(begin, begin + size)
        module = alone(DIGITS, arch, ASSIGNED, values)
        student = module(batch.inputs((1, 8, 8))[rows])
        loss = distillation(student, logits[rows])
        loss = loss + 0.5 * cross_entropy(student, batch.labels_b[rows], 0.0)
        (loss / 2).backward()  # type: ignore[no-untyped-call]
        part = at_places(module, DIGITS, arch, ASSIGNED, values)
        expected = {n: expected[n] + part[n] for n in expected}
        begin = rows.stop
    assert_equal(found, expected)
    hull = cost(DIGITS, DIGITS.hull(*STUDENTS)).macs
    check = 9 * hull + 5 * cost(DIGITS, STUDENTS[0]).macs + 4 * cost(DIGITS, STUDENTS[1]).macs
    assert local.macs == 3 * 9 * (cost(DIGITS, ASSIGNED).macs + hull) + check
    before = local.macs
    local.fill(batch, STUDENTS)
    assert local.macs - before == 3 * 9 * (cost(DIGITS, ASSIGNED).macs + hull)


def test_one_pass_serves_resolutions_apart_and_leaves_out_whom_the_batch_is_too_small_for() -> None:
    recipe = Recipe(
        train_assigned=False, students="random", random_subnets=5, learn="labels", one_pass=True
    )
    rng = random.Random(1)
    archs = [SMALL.sample(rng) for _ in range(5)]
    assert len({SMALL.input_shape(arch) for arch in archs}) > 1
    values = held(SMALL, SMALL.largest(), torch.float32)
    x, y = (torch.from_numpy(part) for part in examples(SMALL, 7))
    local = LocalStep(SMALL, SMALL.largest(), recipe, values, y)
    local.fill(Batch(x, y), archs)
    again = LocalStep(SMALL, SMALL.largest(), recipe, values, y)
    again.fill(Batch(x, y), archs[:3])  # 7 examples are enough for three
    for name, leaf in local.leaves.items():
        theirs = again.leaves[name].grad
        assert (leaf.grad is None) == (theirs is None)
        assert leaf.grad is None or theirs is None or torch.equal(leaf.grad, theirs)


def test_a_resolution_is_made_once_for_all_subnets_that_have_it() -> None:
    x, y = examples(SMALL, 4)
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y))
    small = batch.inputs((1, 20, 20))
    assert batch.inputs((1, 20, 20)) is small
    expected = interpolate(torch.from_numpy(x), (20, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(small, expected)
    with pytest.raises(UsageError, match=r"examples have shape \(1, 28, 28\)"):
        batch.inputs((3, 28, 28))


def trained(
    recipe: Recipe, arch: Arch = ASSIGNED, count: int = 40, space: Space = DIGITS
) -> tuple[Trained, Weights, Weights]:
    """What training did, the values before and after."""
    before = held(space, arch, torch.float32)
    after = {name: value.clone() for name, value in before.items()}
    done = train(LocalTask(space, arch, recipe, recipe.lr, KEY), after, *examples(space, count))
    return done, before, after


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_training_does_not_give_memory_back_that_the_next_step_needs() -> None:
    code = """
import resource
from fedofa.client.allocator import keep_freed_memory
assert keep_freed_memory()
def work():
    parts = [bytearray(2**22) for _ in range(8)]
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 1000  # of 80,000 pages that were written


def rows_of(recipe: Recipe, count: int) -> list[int]:
    return [len(step.batch) for step in steps(*examples(DIGITS, count), recipe, KEY)]


def test_everything_that_a_device_computes_is_counted() -> None:
    """40 examples in batches of 12, 12, 12 and 4; students are drawn in the first of an epoch."""
    base, macs = {"batch_size": 12, "students": "random"}, cost(DIGITS, ASSIGNED).macs
    assert rows_of(Recipe(batch_size=12), 40) == [12, 12, 12, 4]
    assert trained(Recipe(batch_size=12, students="none"))[0].train_macs == 3 * 40 * macs
    listed = (dict(STUDENTS[1]),)
    student = cost(DIGITS, STUDENTS[1]).macs
    both = trained(Recipe(batch_size=12, students="listed", listed=listed))[0]
    assert both.train_macs == 3 * 40 * (macs + student)
    off = trained(Recipe(batch_size=12, students="listed", listed=listed, student_weight=0))[0]
    assert off.train_macs == 3 * 40 * macs
    lone = {"train_assigned": False, "learn": "labels", "listed": listed}
    assert trained(Recipe(**base, **lone))[0].train_macs == 3 * 40 * student
    recipe = Recipe(**base, attentive="best", attentive_candidates=2)
    rated: list[Arch] = []

    def rate(arch: Arch) -> float:
        rated.append(arch)
        return 0.0

    Students(DIGITS, ASSIGNED, recipe, KEY).of(Step(0, 0, batch_of(DIGITS, 2)), rate)
    assert len(rated) == 2
    looks = 12 * sum(cost(DIGITS, arch).macs for arch in rated)
    spent = trained(recipe)[0].train_macs - 3 * 40 * macs - looks
    assert spent in {3 * 40 * cost(DIGITS, arch).macs for arch in rated}


RECIPES: list[dict[str, Any]] = [
    {},
    {"students": "none", "proximal": 0.1},
    {"students": "smallest", "combine": "project"},
    {"students": "random", "train_assigned": False, "learn": "labels", "redraw": "step"},
    {"random_subnets": 2, "learn": "alpha", "clip_value": 1.0},
    {"random_subnets": 2, "attentive": "worst", "temperature": 2.0, "redraw": "step"},
    {"random_subnets": 2, "combine": "mean", "learn": "labels", "one_pass": True},
    {"random_subnets": 3, "one_pass": True, "train_assigned": False, "learn": "labels"},
    {"student_weight": 0.0},
]


@pytest.mark.parametrize("fields", RECIPES, ids=str)
def test_every_recipe_learns_repeats_itself_and_costs_no_more_than_it_announces(
    fields: dict[str, Any],
) -> None:
    recipe = Recipe(batch_size=16, epochs=2, lr=0.1, clip_norm=1.0, **fields)
    x, y = examples(DIGITS, 48)
    x += y.reshape(-1, 1, 1, 1) / 3  # something to learn
    finals, spent = [], cost(DIGITS, MEDIUM).macs
    for _ in range(2):
        values, losses = held(DIGITS, MEDIUM, torch.float32), []
        for number in range(2):
            done = train(LocalTask(DIGITS, MEDIUM, recipe, 0.1, (0, number, "d")), values, x, y)
            losses.append(done.loss)
            check = 2 * 16 * spent if recipe.one_pass else 0
            assert 0 < done.train_macs <= recipe.passes() * 2 * 48 * spent + check
            assert done.steps == 6
        assert losses[-1] < losses[0]
        assert all(bool(value.isfinite().all()) for value in values.values())
        finals.append(values)
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_a_path_alone_changes_nothing_outside_of_it() -> None:
    path = STUDENTS[0]
    recipe = Recipe(
        students="random", train_assigned=False, learn="labels", listed=(dict(path),),
        weight_decay=0.0,
    )  # fmt: skip
    _, before, after = trained(recipe)
    inside, changed = regions_within(DIGITS, path, ASSIGNED), 0
    for name, value in after.items():
        moved = value != before[name]
        if name in inside:
            changed += int(moved[inside[name]].sum())
            moved[inside[name]] = False
        assert not bool(moved.any()), name
    assert changed > 0.5 * cost(DIGITS, path).params
