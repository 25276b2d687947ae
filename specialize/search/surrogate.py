"""A predictor fitted to what a search knows, as a cheap score for the methods that look ahead."""

from collections.abc import Sequence

from ...supernet.space import Arch
from ..predictors.contract import Fit, Predictor, Sample
from .contract import Known, Scored, Task

OWN = "this search"


def learned(fit: Fit, task: Task, known: Known) -> Predictor:
    """Fitted to the search's own evaluations and to related ones, each group for itself."""
    own = [Sample(one.arch, OWN, one.score, one.error) for one in known.values()]
    return fit(task.space, [*own, *task.related()])


def optimistic(predictor: Predictor, archs: Sequence[Arch], optimism: float) -> list[Scored]:
    """Predicted score plus `optimism` times its spread."""
    found = predictor.predict(archs)
    return [Scored(float(value)) for value in found.score + optimism * found.spread]
