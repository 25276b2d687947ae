"""The Flower strategy: translates between Flower's messages and `Training`, with its own loop.

Flower's own loop sends one model to all, waits in steps of 3 s, holds all replies at once and
cannot resume; this one sends each client its own subnet, ends a round at a deadline, takes one
reply at a time, and goes on from a checkpoint.
"""

from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from functools import partial
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log as flower_log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from ..protos.messages import TrainReply
from ..supernet.errors import RunError
from .branches.training import BranchedTraining
from .events import EventLog
from .exchange import Exchange, to_answer, to_message
from .fleet import Fleet, Roll
from .open_round import Assignments
from .privacy.config import SecureConfig
from .secure_round import secure_round
from .training import RoundReport, Training
from .versions import Versions

MAX_ABANDONED = 3


class SupernetStrategy(Strategy):
    """Federated supernet training as a Flower strategy.

    `start` is the loop that this project runs. The four hooks do the same work for one round, for
    code that drives a strategy by Flower's contract.
    """

    def __init__(
        self,
        training: Training | BranchedTraining,
        roll: Roll,
        exchange: Exchange,
        log: EventLog,
    ) -> None:
        self._training, self._roll, self._exchange, self._log = training, roll, exchange, log
        self._assignments: Assignments = {}
        self._fleet: Fleet | None = None

    def summary(self) -> None:
        """Log what will be trained."""
        space, config = self._training.space, self._training.config
        flower_log(INFO, "supernet %s, %d rounds", space.family, config.round.rounds)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Gather the fleet and run the rounds that are left.

        The arguments after `grid` are Flower's; rounds and deadline come from the configuration,
        the weights from the training state.

        Raises RunError when a round was abandoned three times for too few good updates; the last
        checkpoint stays.
        """
        self.summary()
        self._roll.gather()
        training = self._training
        if isinstance(training, BranchedTraining):
            return self._rounds(self._round)
        if training.config.round.mode == "sync":
            secure = training.config.secure
            one = self._round if secure is None else partial(self._secure, training, secure)
            with training.groups or nullcontext():
                return self._rounds(one)
        with closing(Versions(training, self._roll, self._exchange)) as versions:
            return self._rounds(versions.next)

    def _round(self) -> RoundReport | None:
        """Ask, and wait for the answers."""
        training, limits = self._training, self._training.config.round
        fleet, assignments = self._assigned(limits.min_replies)
        requests, group = training.requests(assignments), str(training.round + 1)
        asking = self._exchange.ask(requests, TrainReply, limits.deadline_s, group)
        with closing(asking) as answers:  # those that are not waited for owe their replies
            return training.finish_round(assignments, fleet, answers)

    def _secure(self, training: Training, secure: SecureConfig) -> RoundReport | None:
        """Ask for a sum of updates."""
        least = max(training.config.round.min_replies, secure.least_devices)
        _, assignments = self._assigned(least)
        return secure_round(training, secure, self._exchange, assignments)

    def _assigned(self, least: int) -> tuple[Fleet, Assignments]:
        """Who is there and what each of them does, once at least so many are free."""
        self._roll.refresh()
        away = self._roll.away(least, self._training.config.round.deadline_s)
        fleet = self._roll.fleet()
        return fleet, self._training.assignments(fleet, away)

    def _rounds(self, one: Callable[[], RoundReport | None]) -> Result:
        """All rounds that are left."""
        result, config, training = Result(), self._training.config, self._training
        secured = "" if config.secure is None else ", or than secure.threshold devices left"
        abandoned = 0
        while not training.over:
            report = one()
            abandoned = 0 if report else abandoned + 1
            if abandoned == MAX_ABANDONED:
                raise RunError(
                    f"round {training.round + 1} was abandoned {abandoned} times: fewer than "
                    f"min_replies = {config.round.min_replies} good updates{secured}; see the event "
                    "log. "
                    "The checkpoint before it is whole: resume when devices are back"
                )
            if report:
                result.train_metrics_clientapp[report.round] = _metrics(report)
        if training.round < config.round.rounds:
            self._log("budget_spent", round=training.round, rounds=config.round.rounds)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per client, each with its own subnet. RunError where a round takes four."""
        if self._training.config.secure is not None:
            raise RunError("a round with [secure] sums takes four messages a device: use start")
        self._fleet = self._roll.fleet()
        self._assignments = self._training.assignments(self._fleet)
        deadline_s = self._training.config.round.deadline_s
        requests = self._training.requests(self._assignments)
        return [to_message(request, deadline_s, str(server_round)) for request in requests]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies; the weights stay in the training state, not in Flower's records."""
        if self._fleet is None:
            raise RunError("aggregate_train was called before configure_train")
        answers = (to_answer(m.metadata.src_node_id, m, TrainReply) for m in replies)
        report = self._training.finish_round(self._assignments, self._fleet, answers)
        return None, _metrics(report) if report else None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: subnets are evaluated after training, each with its own norm statistics."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None


def _metrics(report: RoundReport) -> MetricRecord:
    return MetricRecord({name: getattr(report, name) for name in RoundReport.__match_args__})
