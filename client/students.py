"""Which subnets a step trains beside the assigned one.

- The smallest and random ones inside the largest: the sandwich rule (Yu & Huang 2019; BigNAS, Yu et
  al. 2020), where the largest is what the device can afford.
- Random ones alone, on labels, anew every step: uniform paths (SPOS, Guo et al. 2020); drawn from a
  list of nested widths, FjORD's sampling on the device (Horváth et al. 2021).
- The best or worst of several of about equal cost (AttentiveNAS, Wang et al. 2021). The published
  method draws a target cost first, and takes one of another cost after 100 vain tries; here the
  first candidate is the target, and where no others are found in its tenth of the range of MACs,
  there are fewer candidates.
"""

import random
from collections.abc import Callable, Sequence

from ..protos.recipe import DRAWN, Recipe
from ..supernet.cost import cost
from ..supernet.errors import UsageError
from ..supernet.randomness import stream
from ..supernet.space import Arch, Space
from .batches import Step

BINS, TRIES = 10, 100
Loss = Callable[[Arch], float]


class Students:
    """Draws the students of each step; `key` = (seed, round, device)."""

    def __init__(self, space: Space, assigned: Arch, recipe: Recipe, key: tuple[object, ...]):
        self._space, self._assigned, self._recipe, self._key = space, assigned, recipe, key
        self._listed = _listed(space, assigned, recipe)
        self._place: tuple[object, ...] = ()
        self._drawn: list[Arch] = []

    def of(self, step: Step, loss: Loss) -> list[Arch]:
        """The students of this step; `loss` rates a candidate on the step's batch."""
        place = self._drawn_at(step)
        if place != self._place:
            self._place, self._drawn = place, self._draw(stream(*self._key, *place), loss)
        return self._drawn

    def _drawn_at(self, step: Step) -> tuple[object, ...]:
        # Anew each epoch and not each step by default: a shape that a CPU's convolution library
        # has not seen costs it twice the time of one that it has, and the module of a subnet that
        # was not seen must be built, for 5 to 20 ms.
        if self._recipe.redraw == "step":
            return ("subnets", "step", step.number)
        return ("subnets", step.epoch)

    def _draw(self, rng: random.Random, loss: Loss) -> list[Arch]:
        recipe = self._recipe
        if recipe.student_weight == 0:
            return []
        found = [self._space.smallest()] if recipe.students in ("smallest", "sandwich") else []
        if recipe.students == "listed":
            found = list(self._listed)
        if recipe.students in DRAWN and (self._listed or not recipe.listed):
            found += [self._random(rng, loss) for _ in range(recipe.random_subnets)]
        return [
            arch
            for arch in dict.fromkeys(found)
            if arch != self._assigned or not recipe.train_assigned
        ]

    def _random(self, rng: random.Random, loss: Loss) -> Arch:
        recipe, first = self._recipe, self._any(rng)
        if recipe.attentive == "off" or recipe.attentive_candidates == 1:
            return first
        found = self._alike(first, rng)
        if len(found) == 1:
            return first
        return (min if recipe.attentive == "best" else max)(found, key=loss)

    def _any(self, rng: random.Random) -> Arch:
        if self._listed:
            return rng.choice(self._listed)
        return self._space.sample_within(self._assigned, rng)

    def _alike(self, first: Arch, rng: random.Random) -> list[Arch]:
        """The first and others in its tenth of the range from the smallest to the assigned."""
        space = self._space
        least, most = (cost(space, a).macs for a in (space.smallest(), self._assigned))

        def place(arch: Arch) -> int:
            return BINS * (cost(space, arch).macs - least) // (most - least + 1)

        found = {first: None}
        for _ in range(TRIES):
            if len(found) == self._recipe.attentive_candidates:
                break
            arch = self._any(rng)
            if place(arch) == place(first):
                found[arch] = None
        return list(found)


def _listed(space: Space, assigned: Arch, recipe: Recipe) -> Sequence[Arch]:
    """The listed subnets that the assigned one contains."""
    inside = [arch for arch in map(space.arch, recipe.listed) if space.contains(assigned, arch)]
    if recipe.students == "listed" and not recipe.listed:
        raise UsageError("recipe.listed is empty; students = listed trains the subnets in it")
    if recipe.listed and not inside and not recipe.train_assigned:
        raise UsageError(
            "recipe.listed: none of the listed subnets lies within the assigned one, "
            f"{space.describe(assigned)}; list one that every device can hold"
        )
    return inside
