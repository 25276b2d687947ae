"""What each class's model must keep to: the class's bounds, and those that its devices declared.

One model is published for a class and every device of the class is to run it. So the class's
budget is tightened by what the devices that joined declared for themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..protos.manifest import FileKind
from ..specialize.filesize import largest_bytes
from ..specialize.scheme import WIDE
from ..supernet.cost import Budget, cost
from ..supernet.errors import FedofaError, UsageError
from ..supernet.space import Arch, Space
from .config import RunConfig
from .events import EventLog
from .fleet import Fleet
from .latencies import ClassLatency, class_latency, read_probe_set


@dataclass(frozen=True, slots=True)
class ClassBudget:
    """A class's budget; `declared_by` says which bounds a device declared, and which device.

    `latency` predicts milliseconds where the class has a bound on them; `file_bits` is the width of the
    files that a bound on size is about.
    """

    budget: Budget
    declared_by: Mapping[str, str]
    space: Space
    formats: tuple[str, ...]
    latency: ClassLatency | None = None
    file_bits: int = WIDE

    def excess(self, arch: Arch) -> list[str]:
        """The bounds that a subnet breaks when it runs, as `name have > bound`."""
        # Memory for training does not bound what a device can run.
        running = replace(self.budget, train_memory_bytes=None)
        size_bytes = largest_bytes(self.formats, self.space.layers(arch), self.file_bits)
        predicted_ms = None if self.latency is None else self.latency(arch)
        return running.excess(cost(self.space, arch), 1, size_bytes, predicted_ms)

    def predicted_ms(self, arch: Arch) -> dict[FileKind, float]:
        """Milliseconds by the kind of file that the bound is about; none where there is no bound."""
        return {} if self.latency is None else {self.latency.kind: self.latency(arch)}

    def fits(self, arch: Arch) -> bool:
        """Whether a subnet breaks none of the bounds."""
        return not self.excess(arch)

    def check(self) -> None:
        """UsageError, with the bound and the device that declared it, when no subnet fits."""
        broken = self.excess(self.space.smallest())
        if not broken:
            return
        device = self.declared_by.get(broken[0].split()[0])
        whose = f"device {device} declares that bound" if device else "its class has that bound"
        raise UsageError(
            f"no subnet fits: the smallest has {broken[0]}, and {whose}. Raise it, or give the "
            "device another class"
        )


def class_budgets(
    config: RunConfig, space: Space, fleet: Fleet, log: EventLog
) -> dict[str, ClassBudget]:
    """Class → what its model must keep to; each tightening is told in the event log."""
    found = {}
    for name, bounds in config.classes.items():
        budget, declared_by = bounds.budget(), dict[str, str]()
        for device, member in fleet.members.items():
            if member.profile.device_class != name:
                continue
            declared = Budget.from_dict(member.profile.budget)
            tightened = budget.tightened(replace(declared, train_memory_bytes=None))
            if tightened != budget:
                changed = tightened.to_dict().items() - budget.to_dict().items()
                declared_by.update(dict.fromkeys(dict(changed), device))
                log("class_tightened", device_class=name, device=device, budget=dict(changed))
                budget = tightened
        found[name] = ClassBudget(
            budget, declared_by, space, config.export.formats, file_bits=bounds.file_bits
        )
    return found


def usable_classes(
    config: RunConfig,
    space: Space,
    fleet: Fleet,
    log: EventLog,
    fail: Callable[[str, FedofaError], None],
) -> dict[str, ClassBudget]:
    """The classes that some subnet fits, latency included; the others are told to `fail`."""
    found = {}
    for name, bounds in class_budgets(config, space, fleet, log).items():
        try:
            bounds = with_latency(name, bounds, config, fleet, log)
            bounds.check()
            found[name] = bounds
        except FedofaError as error:
            fail(name, error)
    return found


def with_latency(
    name: str, bounds: ClassBudget, config: RunConfig, fleet: Fleet, log: EventLog
) -> ClassBudget:
    """The same, with a predictor where latency is bounded.

    UsageError where the run has no probes, or no device of the class has measured them.
    """
    if bounds.budget.latency_ms is None:
        return bounds
    if config.search.probes is None:
        raise UsageError(
            f"classes.{name}: latency_ms = {bounds.budget.latency_ms:g}, but search.probes is not "
            "set: make probes (`fedofa probes`), measure them on a device of the class, and name "
            "their folder in [search]"
        )

    def leave_out(device: str, reason: str) -> None:
        log("measurements_ignored", device_class=name, device=device, reason=reason)

    probes = read_probe_set(config.search.probes, bounds.space)
    kind = config.classes[name].kind
    latency = class_latency(name, kind, fleet, bounds.space, probes, leave_out)
    log("latency_predictor", device_class=name, **latency.to_dict())
    return replace(bounds, latency=latency)
