"""The devices that take part in a run: asked for their profile once, checked against the config."""

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median

from ..protos.messages import DeviceProfile, ProfileRequest
from ..supernet.cost import Budget
from ..supernet.errors import RunError, UsageError
from ..supernet.space import Space, plain
from .config import RunConfig
from .data_form import DataForm
from .events import EventLog
from .exchange import Answer, Exchange, Request
from .limits import Limits, require_fit, training_limits

# A device that came back is refused while its former node still counts as online (up to a minute).
PROFILE_TRIES, PROFILE_DEADLINE_S = 8, 30.0


@dataclass(frozen=True, slots=True)
class Member:
    """One device: the node it is reached at, its profile, and what bounds its training."""

    node: int
    profile: DeviceProfile
    limits: Limits
    class_budget: Budget

    @property
    def name(self) -> str:
        """The device's own name, stable over restarts."""
        return self.profile.device


@dataclass(frozen=True, slots=True)
class Fleet:
    """Members by name, in order of name; all hold data of the same form."""

    members: Mapping[str, Member]

    @property
    def typical_examples(self) -> float:
        """Median number of training examples."""
        return float(median(m.profile.examples for m in self.members.values()))

    def by_node(self) -> dict[int, Member]:
        """Node → member."""
        return {member.node: member for member in self.members.values()}

    def names_of_class(self, name: str) -> frozenset[str]:
        """The devices of a class."""
        return frozenset(d for d, m in self.members.items() if m.profile.device_class == name)

    @property
    def any_profile(self) -> DeviceProfile:
        """One member's profile, for what all share: shape, classes, normalization."""
        return next(iter(self.members.values())).profile


class Roll:
    """Calls the roll: asks nodes for their profile, admits those that fit the run."""

    def __init__(self, exchange: Exchange, space: Space, config: RunConfig, log: EventLog) -> None:
        self.exchange, self.space = exchange, space
        self._config, self._log = config, log
        self._asked: Counter[int] = Counter()
        self._known: dict[str, Member] = {}
        self._online: frozenset[int] = frozenset()

    def gather(self) -> Fleet:
        """Wait until enough devices are there for a round and every class has one.

        Raises RunError when too few come in time, UsageError when a class stays empty.
        """
        deadline = time.monotonic() + self._config.round.join_timeout_s
        while True:
            self.refresh()
            if self._complete():
                return self.fleet()
            if time.monotonic() > deadline:
                self._explain()
            time.sleep(0.2)

    def fleet(self) -> Fleet:
        """The devices admitted so far."""
        return Fleet(dict(sorted(self._known.items())))

    def refresh(self) -> None:
        """Ask nodes that were not asked before; a device that came back replaces itself."""
        for answer in self.exchange.ask(self.fresh(), DeviceProfile, self.deadline_s):
            self.take(answer)

    @property
    def deadline_s(self) -> float:
        """How long a device may take to tell its profile."""
        return min(self._config.round.deadline_s, PROFILE_DEADLINE_S)

    def fresh(self, asking: Collection[int] = ()) -> list[Request]:
        """What to ask nodes that are not known yet, nor being asked."""
        online = self.exchange.nodes()
        self._online = frozenset(online)
        settled = {member.node for member in self._known.values()} | set(asking)
        fresh = [n for n in online if n not in settled and self._asked[n] < PROFILE_TRIES]
        self._asked.update(fresh)
        run = None if self._config.downlink is None else self._config.name
        body = ProfileRequest(space=plain(self.space.to_dict()), run=run)
        return [Request(node, body) for node in fresh]

    def take(self, answer: Answer[DeviceProfile]) -> None:
        """Admit the device that answers, or leave it out with a reason."""
        if answer.body is None:
            self._leave_out(answer.node, answer.failure)
        elif self._taken(answer.body):
            self._leave_out(answer.node, f"device {answer.body.device}: the name is taken")
        else:
            try:
                self._admit(answer.node, answer.body)
            except UsageError as error:
                self._leave_out(answer.node, str(error))
                self._asked[answer.node] = PROFILE_TRIES  # it will say the same again

    def away(self, least: int, wait_s: float) -> frozenset[int]:
        """Nodes that cannot be asked now: those that owe a late reply, and those that have left.

        Waits up to `wait_s` seconds until at least `least` owe none: with every node late, the next
        rounds would be abandoned before one could answer. Those that have left are asked all the same
        where too few would remain.
        """
        nodes = frozenset(self.fleet().by_node())
        busy = self.exchange.busy(least, nodes, wait_s)
        # One that left would be counted on for weights that it will not train.
        gone = nodes - frozenset(self.exchange.nodes())
        return busy | gone if len(nodes - busy - gone) >= least else busy

    def _leave_out(self, node: int, reason: str) -> None:
        if self._asked[node] == 1:
            self._log("device_left_out", node=str(node), reason=reason)

    def _taken(self, profile: DeviceProfile) -> bool:
        """Whether another device that is online has this name; one that has gone gives it up."""
        known = self._known.get(profile.device)
        return known is not None and known.node in self._online

    def _admit(self, node: int, profile: DeviceProfile) -> None:
        if profile.device_class not in self._config.classes:
            raise UsageError(
                f"device {profile.device}: class {profile.device_class!r} is not in the config; "
                f"known: {', '.join(self._config.classes)}"
            )
        self._check_data(profile)
        budget = self._config.classes[profile.device_class].budget()
        limits = training_limits(
            self.space, profile, budget, self._config.recipe, self._config.round.deadline_s
        )
        require_fit(self.space, limits.budget, limits.batch_size, f"device {profile.device}")
        member = Member(node, profile, limits, budget)
        if not self._known:
            self._log("data_form", **DataForm.of(profile).to_dict())
        self._known[profile.device] = member
        self._log(
            "device_joined",
            device=profile.device,
            device_class=profile.device_class,
            examples=profile.examples,
            validation_examples=profile.validation_examples,
            # Only with the owner's consent.
            labels=None if profile.labels is None else list(profile.labels),
            budget=limits.budget.to_dict(),
        )

    def _check_data(self, profile: DeviceProfile) -> None:
        owner, mine = f"device {profile.device}", DataForm.of(profile)
        mine.check(owner, self.space)
        for member in self._known.values():
            mine.check_same(owner, DataForm.of(member.profile), member.name)

    def _complete(self) -> bool:
        limits = self._config.round
        return len(self._known) >= limits.least_clients and not self._empty()

    def _empty(self) -> list[str]:
        present = {member.profile.device_class for member in self._known.values()}
        return [name for name in self._config.classes if name not in present]

    def _explain(self) -> None:
        waited = f"after {self._config.round.join_timeout_s:g} s"
        joined = ", ".join(self._known) or "none"
        if self._empty() and self._known:
            raise UsageError(
                f"class {self._empty()[0]!r} has no client {waited} (joined: {joined}). "
                "Start one with fedofa-device join, or remove the class from the config"
            )
        raise RunError(
            f"{len(self._known)} of {self._config.round.least_clients} clients {waited} "
            f"(joined: {joined}); see the event log for devices that were left out"
        )
