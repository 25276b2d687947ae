"""One-edit mutation of the incumbent ("Mutation is all you need", Schneider et al. 2021).

From the best of a few random architectures, propose architectures that differ from the incumbent in
one gene; one that is at least as good takes its place. An edit that was tried since it last could
have mattered is tried again only when no other is left: where genes add up, the optimum is found
within as many evaluations as there are options.

Deviation: when no edit of the incumbent is new, the next best architecture is edited, and in the end
random ones are drawn, so that the evaluations are spent as asked.
"""

from dataclasses import dataclass
from random import Random

from ...supernet.space import Arch, Value
from .contract import Known, Proposals, Task
from .feasible import Edit, edits, random_that_fits
from .random_search import drawn_at_random, opening


@dataclass(frozen=True, slots=True)
class Mutation:
    """`starts` random architectures are evaluated first, fewer where some are given."""

    starts: int = 4

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Climb until the budget is spent."""
        yield opening(
            task, max(1, self.starts), lambda: random_that_fits(task.space, task.fits, rng)
        )
        incumbent = max(known.values(), key=lambda one: one.score)
        tried = set(incumbent.arch.items())
        while True:
            chosen = self._edits(task, known, incumbent.arch, tried, rng)
            if not chosen:
                if not (elsewhere := self._elsewhere(task, known, rng)):
                    return
                for one in (yield elsewhere):
                    incumbent = max(incumbent, one, key=lambda each: each.score)
                continue
            tried |= {(edit.gene, edit.option) for edit in chosen}
            for one in (yield [edit.arch for edit in chosen]):
                # Equal ones take its place: accuracies are counts, and plateaus are wide.
                if one.score >= incumbent.score:
                    incumbent = one

    def _edits(
        self,
        task: Task,
        known: Known,
        arch: Arch,
        tried: set[tuple[str, Value]],
        rng: Random,
    ) -> list[Edit]:
        """New ones that fit, those not tried first, otherwise in random order."""
        new = [edit for edit in edits(task.space, arch) if edit.arch not in known]
        rng.shuffle(new)
        new.sort(key=lambda edit: (edit.gene, edit.option) in tried)
        return [edit for edit in new if task.fits(edit.arch)][: task.at_once]

    def _elsewhere(self, task: Task, known: Known, rng: Random) -> list[Arch]:
        """Edits of the next best architecture that has new ones, or else random ones."""
        for other in sorted(known.values(), key=lambda one: one.score, reverse=True):
            if found := self._edits(task, known, other.arch, set(), rng):
                return [edit.arch for edit in found]
        return drawn_at_random(task, known, task.at_once, rng)
