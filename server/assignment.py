"""Which subnet each client trains this round: within its budget, covering what was left out."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..protos.messages import DeviceProfile
from ..supernet.axes import Layout, layout, put, regions, view
from ..supernet.cost import Budget, cost
from ..supernet.errors import UsageError
from ..supernet.randomness import stream
from ..supernet.space import Arch, Space
from .config import RunConfig

# A device that is expected to need more than this part of the deadline gets a smaller subnet.
DEADLINE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a client's training: its budget, and the batch that must fit in memory."""

    budget: Budget
    batch_size: int

    def fits(self, space: Space, arch: Arch) -> bool:
        """Whether the client can train this subnet."""
        return self.budget.fits(cost(space, arch), self.batch_size)


def training_limits(
    space: Space, profile: DeviceProfile, class_budget: Budget, config: RunConfig
) -> Limits:
    """A client's bounds: its class's, its own, its memory, and what it can train in time.

    A slow device is not left out: it may always train the smallest subnet.
    """
    recipe = config.recipe
    batches = max(1, profile.examples // recipe.batch_size)
    steps = recipe.steps or recipe.epochs * batches
    passes = 3 * (2 + recipe.random_subnets if recipe.distill else 1)
    affordable = profile.train_macs_per_s * config.round.deadline_s * DEADLINE_SHARE
    measured = Budget(
        macs=max(
            cost(space, space.smallest()).macs,
            int(affordable / (passes * steps * recipe.batch_size)),
        ),
        train_memory_bytes=profile.memory_bytes,
    )
    declared = Budget.from_dict(profile.budget)
    return Limits(class_budget.tightened(declared).tightened(measured), recipe.batch_size)


def require_fit(space: Space, budget: Budget, batch_size: int, where: str) -> None:
    """UsageError when even the smallest subnet breaks a bound."""
    excess = budget.excess(cost(space, space.smallest()), batch_size)
    if excess:
        raise UsageError(
            f"{where}: no subnet fits; the smallest has {', '.join(excess)}. "
            "Raise the bound or choose a smaller space"
        )


def maximal(space: Space, limits: Limits, rng: random.Random) -> Arch:
    """A random architecture that fits and of which no larger neighbour fits.

    Starts anywhere, shrinks random genes until it fits, grows random genes while one fits.
    UsageError when even the smallest does not fit.
    """
    arch = space.sample(rng)
    while not limits.fits(space, arch):
        smaller = space.shrunk(arch)
        if not smaller:
            require_fit(space, limits.budget, limits.batch_size, "budget")
        arch = rng.choice(smaller)
    return space.grow_while(arch, lambda larger: limits.fits(space, larger), rng)


class Coverage:
    """How long each shared weight has gone untrained, in rounds."""

    def __init__(self, shared: Layout, ages: Mapping[str, Tensor] | None = None) -> None:
        self.ages = (
            dict(ages)
            if ages is not None
            else {name: torch.zeros(t.shape, dtype=torch.int16) for name, t in shared.items()}
        )

    def update(self, trained: Mapping[str, Tensor | bool]) -> float:
        """Note a round's trained weights; returns the fraction of weights trained in it."""
        covered = 0
        for name, age in self.ages.items():
            mask = torch.as_tensor(trained[name]).expand(age.shape)
            covered += int(mask.sum())
            age.add_(1).clamp_(max=torch.iinfo(torch.int16).max - 1)
            age[mask] = 0
        return covered / sum(age.numel() for age in self.ages.values())

    def oldest(self) -> int:
        """Rounds since the longest-waiting weight was trained."""
        return max(int(age.max()) for age in self.ages.values())


def assign(
    space: Space,
    fleet: Sequence[tuple[str, Limits]],
    coverage: Coverage,
    candidates: int,
    key: tuple[int, int],
) -> dict[str, Arch]:
    """Device name → subnet, for (name, limits) of each client; `key` = (seed, round).

    Clients choose in order of name, each the one of its `candidates` maximal subnets that trains
    most of what no earlier client trains this round, a weight counting one and its age.
    """
    shared = layout(space)
    wanted = {name: coverage.ages[name].to(torch.int32) + 1 for name in shared}
    chosen = {}
    for name, limits in sorted(fleet, key=lambda member: member[0]):
        rng = stream(*key, "assign", name)
        options = {maximal(space, limits, rng): None for _ in range(candidates)}
        best = max(options, key=lambda arch: _gain(space, arch, wanted))
        for tensor, region in regions(space, best).items():
            put(wanted[tensor], region, 0)
        chosen[name] = best
    return chosen


def _gain(space: Space, arch: Arch, wanted: Mapping[str, Tensor]) -> tuple[int, int]:
    gain = sum(int(view(wanted[name], r).sum()) for name, r in regions(space, arch).items())
    return gain, cost(space, arch).macs
