"""A device's training step: against a loop written by hand, the sum of its parts, and masked."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from fedofa.client.allocator import keep_freed_memory
from fedofa.client.local_step import LocalStep
from fedofa.client.optimizers import local_optimizer
from fedofa.protos.recipe import Recipe
from fedofa.supernet.axes import regions, take
from fedofa.supernet.batch import Batch
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.losses.distillation import distillation
from fedofa.supernet.masked import group_sizes
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import static
from fedofa.supernet.weights import initial
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.profiler import ProfilerActivity, profile

from .subnets import by_hand, subnets
from .timing import Paired, paired

BATCH, MASKED_BATCH = 32, 64
SPACES = ("digits", "small", "small-resnet")
PROFILED = 20
OPERATORS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "convolution": ("conv",),
        "normalization": ("norm",),
        "activation": ("relu", "hardswish", "silu"),
    }
)
"""Words in the names of torch's operators, of their gradients too."""
Step = Callable[[], None]


class Work(NamedTuple):
    """Some students, and the examples that they are trained on."""

    students: Sequence[Arch]
    x: Tensor
    y: Tensor


def bench_step() -> list[dict[str, Any]]:
    """A training step without students against a loop over the same network (goal: at most 1.02)."""
    rows = []
    for name, arch, space in subnets():
        x, y = _examples(space, BATCH)
        values = take(initial(space, 0), regions(space, arch))
        hand = by_hand(space, arch).train()
        with torch.no_grad():
            for mine, theirs in zip(values.values(), hand.parameters(), strict=True):
                theirs.copy_(mine)
        ours = _ours(space, arch, [Work((), x, y)], Recipe(students="none"))
        timed = paired(ours, _loop([hand], x, y, [space.input_shape(arch)]))
        rows.append({"subnet": name, "goal": 1.02, **asdict(timed)})
    return rows


def bench_sandwich() -> list[dict[str, Any]]:
    """A sandwich step against the steps of its subnets as static networks (goal: at most 1.05)."""
    rows = []
    for name in SPACES:
        space = preset(name)
        largest = space.largest()
        students = [space.smallest(), space.sample(random.Random(1))]
        shared, (x, y) = initial(space, 0), _examples(space, BATCH)
        archs = [largest, *students]
        parts = [static(space, a, take(shared, regions(space, a))).train() for a in archs]
        ours = _ours(space, largest, [Work(students, x, y)], Recipe())
        timed = paired(ours, _loop(parts, x, y, [space.input_shape(a) for a in archs]))
        rows.append({"space": name, "goal": 1.05, **asdict(timed)})
    return rows


def bench_profile() -> list[dict[str, Any]]:
    """Where the time of a device's training step goes, in percent of its processor time."""
    rows = []
    for name, arch, space in subnets():
        x, y = _examples(space, BATCH)
        step = _ours(space, arch, [Work((), x, y)], Recipe(students="none"))
        rows.append({"subnet": name, **_shares(step, PROFILED)})
    return rows


def _shares(step: Step, steps: int) -> dict[str, float]:
    """Shares of operators' own time; what no operator took is Python, the profiler included."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        begin = time.process_time()
        for _ in range(steps):
            step()
        whole_us = 1e6 * (time.process_time() - begin)
    spent = dict.fromkeys((*OPERATORS, "other operators"), 0.0)
    for event in found.key_averages():
        group = next(
            (g for g, words in OPERATORS.items() if any(word in event.key for word in words)),
            "other operators",
        )
        spent[group] += event.self_cpu_time_total
    spent["outside operators"] = max(0.0, whole_us - sum(spent.values()))
    return {group: 100 * us / whole_us for group, us in spent.items()}


def bench_masked() -> list[dict[str, Any]]:
    """Four subnets in one masked pass against the same in turn, each on its quarter of the batch."""
    rows = []
    for name in SPACES:
        space = preset(name)
        for width in ("any", "narrow"):
            archs = _alike(space, 4, narrow=width == "narrow")
            rows.append(
                {"space": name, "subnets": width, **asdict(_masked_against_turns(space, archs))}
            )
    return rows


def _masked_against_turns(space: Space, archs: Sequence[Arch]) -> Paired:
    x, y = _examples(space, MASKED_BATCH)
    recipe = Recipe(train_assigned=False, students="random", random_subnets=4, learn="labels")
    together = recipe.model_copy(update={"one_pass": True})
    sizes, largest = group_sizes(MASKED_BATCH, len(archs)), space.largest()
    turns = [
        Work([arch], *part)
        for arch, *part in zip(archs, x.split(sizes), y.split(sizes), strict=True)  # type: ignore[no-untyped-call]
    ]
    return paired(
        _ours(space, largest, [Work(archs, x, y)], together), _ours(space, largest, turns, recipe)
    )


def _alike(space: Space, count: int, *, narrow: bool) -> list[Arch]:
    """Random subnets of one input shape: of the whole space, or within twice the smallest."""
    rng, shape = random.Random(0), space.input_shape(space.smallest())
    outer = space.largest()
    if narrow:
        outer = space.grow_while(space.smallest(), lambda a: rng.random() < 0.5, rng)
    found: dict[Arch, None] = {}
    while len(found) < count:
        arch = space.sample_within(outer, rng)
        if space.input_shape(arch) == shape:
            found[arch] = None
    return list(found)


def _examples(space: Space, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *space.input_shape(space.largest()), generator=generator)
    return x, torch.randint(0, 10, (count,), generator=generator)


def _ours(space: Space, arch: Arch, works: Sequence[Work], recipe: Recipe) -> Step:
    """What a device does for one batch, or several before it updates its weights."""
    keep_freed_memory()
    values = take(initial(space, 0), regions(space, arch))
    local = LocalStep(space, arch, recipe, values, works[0].y)
    optimizer = local_optimizer(recipe, local.leaves.values(), 1e-4)

    def step() -> None:
        for work in works:
            local.fill(Batch(work.x, work.y), work.students)
        optimizer.step()

    return step


def _loop(
    modules: Sequence[nn.Module], x: Tensor, y: Tensor, shapes: Sequence[tuple[int, ...]]
) -> Step:
    """Plain training of the first module on labels, and of the others on its predictions."""
    first, *others = modules
    optimizer = torch.optim.SGD(first.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def resized(shape: tuple[int, ...]) -> Tensor:
        inputs = x.contiguous(memory_format=torch.channels_last)
        if inputs.shape[1:] == shape:
            return inputs
        return interpolate(inputs, size=shape[1:], mode="bilinear", align_corners=False)

    def step() -> None:
        for module in modules:
            for parameter in module.parameters():
                parameter.grad = None
        logits = first(resized(shapes[0]))
        loss = cross_entropy(logits, y)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()
        for module, shape in zip(others, shapes[1:], strict=True):
            loss = distillation(module(resized(shape)), logits)
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()
        optimizer.step()

    return step
