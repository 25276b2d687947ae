"""The loop that drives a search method: hard bounds, the number of evaluations, the record."""

from collections.abc import Callable, Sequence
from random import Random

from ...supernet.space import Arch
from .contract import Evaluate, Evaluated, Found, Method, Proposals, Scored, Task

# A method that only repeats itself has nothing left to ask.
STALLS = 16


class Run:
    """A search under way: `ask` what to evaluate next, `tell` what came of it.

    For one search there is `search`; this is for those who drive several side by side.
    """

    def __init__(self, method: Method, task: Task, rng: Random) -> None:
        self._task = task
        self._known: dict[Arch, Evaluated] = {}
        self._proposals: Proposals = method(task, self._known, rng)
        self._proposed: Sequence[Arch] = ()
        self._asked: list[Arch] = []
        self._begun = self._ended = False

    @property
    def found(self) -> Found:
        """What was evaluated up to now."""
        return Found(tuple(self._known.values()))

    def ask(self) -> list[Arch]:
        """Architectures to evaluate, each fits and is new; none: the search has ended.

        AssertionError where a method proposes one that does not fit.
        """
        if self._asked:
            raise AssertionError("the former architectures were not told about")
        for _ in range(STALLS):
            if self._ended or not self._advance():
                break
            new = [a for a in dict.fromkeys(self._proposed) if a not in self._known]
            for arch in new:
                if not self._task.fits(arch):
                    raise AssertionError(f"a search method proposed {arch}, which does not fit")
            self._asked = new[: self._task.evaluations - len(self._known)]
            if self._asked:
                return list(self._asked)
        self._end()
        return []

    def tell(self, scores: Sequence[Scored]) -> None:
        """What the evaluation said of each architecture that was asked for, in that order."""
        for arch, said in zip(self._asked, scores, strict=True):
            self._known[arch] = Evaluated(arch, said.score, said.error)
        self._asked = []
        if len(self._known) >= self._task.evaluations:
            self._end()

    def _advance(self) -> bool:
        """The method's next proposal; False when it has none."""
        try:
            if self._begun:
                answer = [self._known[arch] for arch in self._proposed]
                self._proposed = self._proposals.send(answer)
            else:
                self._begun = True
                self._proposed = next(self._proposals)
        except StopIteration:
            return False
        return True

    def _end(self) -> None:
        self._ended = True
        self._proposals.close()


def search(method: Method, task: Task, evaluate: Evaluate, rng: Random) -> Found:
    """Run a method to its end; the result depends on the arguments only."""
    run = Run(method, task, rng)
    while asked := run.ask():
        run.tell(evaluate(asked))
    return run.found


def one_by_one(score: Callable[[Arch], float]) -> Evaluate:
    """An evaluation of exact scores, one architecture after the other."""
    return lambda archs: [Scored(score(arch)) for arch in archs]
