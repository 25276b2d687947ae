"""What [export] asks to fold into each model: a temperature from the devices, a prior from counts.

The temperature is the one of the least negative log-likelihood of the devices' validation examples,
among a hundred from 0.14 to 18.7; its sums travel, no logit does. The prior's shift comes from the label
counts of those devices whose owners let them be known. Temperature first, shift second: probabilities
fitted to the devices' shares are then those of other shares (Menon et al. 2021).
"""

from collections.abc import Mapping, Sequence

from ..protos.calibration import TEMPERATURES, best_temperature, prior_shift
from ..protos.subnets import Statistics
from ..specialize.adjust import Adjustment
from ..supernet.errors import RunError, UsageError
from .evaluation import FederatedEvaluator, Target
from .events import EventLog
from .fleet import Fleet
from .specialize_config import ExportConfig


class Adjustments:
    """The run's prior, then each subnet's adjustment.

    Made before anything is measured: RunError when a prior is asked for and no device shares its
    label counts, or it does not have the classes of the data.
    """

    def __init__(self, config: ExportConfig, fleet: Fleet, log: EventLog) -> None:
        self._config = config
        self._shift = _shift(config, fleet, log) if config.prior else ()

    def found(
        self,
        evaluator: FederatedEvaluator,
        targets: Sequence[Target],
        statistics: Mapping[int, Statistics],
    ) -> dict[int, Adjustment]:
        """By the place of the target; one whose likelihood no device told is absent."""
        if not self._config.temperature:
            return {place: Adjustment(shift=self._shift) for place in statistics}
        sums = evaluator.likelihoods(targets, statistics, TEMPERATURES)
        return {
            place: Adjustment(best_temperature(nll, TEMPERATURES), self._shift)
            for place, nll in sums.items()
        }


def _shift(config: ExportConfig, fleet: Fleet, log: EventLog) -> tuple[float, ...]:
    shared = [m.profile.labels for m in fleet.members.values() if m.profile.labels is not None]
    if not shared:
        raise RunError(
            "export.prior: no device shares its label counts; set share_labels = true in devices' "
            "profiles, or leave export.prior out"
        )
    if len(shared) < len(fleet.members):
        log("prior_from_some", devices=len(shared), of=len(fleet.members))
    counts = [sum(column) for column in zip(*shared, strict=True)]
    target = None if config.prior == "equal" else config.prior
    try:
        return prior_shift(counts, target)
    except UsageError as error:
        raise RunError(f"export.{error}") from None
