"""What bounds a client's training: its class, its own word, its memory, its time."""

from dataclasses import dataclass

from ..protos.messages import DeviceProfile
from ..protos.recipe import Recipe
from ..supernet.cost import Budget, cost
from ..supernet.errors import UsageError
from ..supernet.space import Arch, Space

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
    space: Space,
    profile: DeviceProfile,
    class_budget: Budget,
    recipe: Recipe,
    deadline_s: float,
) -> Limits:
    """A client's bounds: its class's, its own, its memory, and what it can train in time.

    A slow device is not left out: it may always train the smallest subnet.
    """
    batches = max(1, profile.examples // recipe.batch_size)
    steps = recipe.steps or recipe.epochs * batches
    affordable = profile.train_macs_per_s * deadline_s * DEADLINE_SHARE
    measured = Budget(
        macs=max(
            cost(space, space.smallest()).macs,
            int(affordable / (recipe.passes() * steps * recipe.batch_size)),
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
