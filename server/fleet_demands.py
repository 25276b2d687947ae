"""From a fleet's file to what is planned for: bounds on columns, and the columns of its runtimes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from ..protos.manifest import FileKind
from ..protos.probes import ProbeSet
from ..specialize.fleet.columns import VALUE_BYTES, Columns, Figure, file_bytes, operator, operators
from ..specialize.fleet.demand import Bound, Demand
from ..specialize.fleet.shares import Hosted
from ..supernet.errors import UsageError
from ..supernet.space import Space
from .fleet_file import DeviceFields, FleetFile, Rejected, Unusable
from .fleet_runtimes import Runtime, Terms, usable_runtime

OPERATORS = (
    "conv", "depthwise", "gelu", "hsigmoid", "hswish", "linear", "matmul", "norm", "pool", "relu",
    "relu6", "silu", "softmax", "table",
)  # fmt: skip
"""What a runtime may lack, besides whatever else a user's own space is made of."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fleet's file asks for: devices of their own, the models of each gateway, the rest.

    `columns` knows every column that is bounded. `trust`: runtime → what is known of its latencies.
    """

    alone: Sequence[Demand]
    gateways: Mapping[str, tuple[Mapping[str, float], Sequence[Hosted]]]
    rejected: Sequence[Rejected]
    columns: Columns
    trust: Mapping[str, Mapping[str, object]]


def wanted(
    file: FleetFile,
    folder: Path,
    space: Space,
    probes: Callable[[], ProbeSet],
    sizes: Mapping[FileKind, float] = MappingProxyType({}),
) -> Wanted:
    """Read the measurements that runtimes name (beside the file, in `folder`) and make demands.

    `probes` reads the run's probes, where a runtime was measured. `sizes`: the most that a file of a
    kind was over its prediction, where any was exported (`measured_sizes.py`).
    """
    unusable = dict(file.unusable)
    figures: dict[str, Figure] = {
        f"file_bytes:{kind}": file_bytes(kind, sizes.get(kind, 0.0)) for kind in VALUE_BYTES
    }
    figures |= {f"operator:{name}": operator(name) for name in _operators(space)}
    runtimes: dict[str, Runtime] = {}
    trust: dict[str, Mapping[str, object]] = {}
    for name, fields in file.runtimes.items():
        try:
            _check_operators(fields.lacks, space)
            runtimes[name] = usable_runtime(name, fields, (folder, space, probes), figures, trust)
        except Unusable as error:
            unusable[f"runtimes.{name}"] = error
    rejected = list(file.rejected)
    alone: list[Demand] = []
    hosted: dict[str, list[Hosted]] = {}
    for device in file.devices:
        try:
            demand, terms = _demand(device, runtimes, unusable, space)
            if device.gateway is None:
                alone.append(demand)
            else:
                shared = _shared(device, runtimes[device.runtime], terms, file, unusable)
                hosted.setdefault(device.gateway, []).append(Hosted(demand, shared))
        except Unusable as error:
            rejected.append(Rejected(device.name, error.field, error.reason))
    gateways = {
        name: (file.gateways[name].budget.bounds(), models) for name, models in hosted.items()
    }
    return Wanted(alone, gateways, rejected, Columns(space, figures), trust)


def _demand(
    device: DeviceFields,
    runtimes: Mapping[str, Runtime],
    unusable: Mapping[str, Unusable],
    space: Space,
) -> tuple[Demand, Terms]:
    runtime = _named(device, "runtime", device.runtime, runtimes, unusable)
    terms = runtime.terms(device)
    bounds = device.budget.bounds()
    for name in bounds:
        if name not in terms:
            raise runtime.missing(name)
    _check_operators(device.lacks, space)
    lacks = frozenset(f"operator:{name}" for name in (*runtime.fields.lacks, *device.lacks))
    demand = Demand(
        device.name,
        runtime.fields.kind,
        tuple(_bound(name, limit, terms[name]) for name, limit in bounds.items()),
        lacks,
        device.weight,
    )
    return demand, terms


def _bound(name: str, limit: float, term: tuple[str, float]) -> Bound:
    """Unusable where limit and factor are too far apart for their quotient to mean anything."""
    try:
        return Bound(name, limit, *term)
    except UsageError as error:
        raise Unusable(f"budget.{name}", f"{error}; correct what it is estimated from") from None


def _named(
    device: DeviceFields,
    field: str,
    name: str,
    known: Mapping[str, Runtime],
    unusable: Mapping[str, Unusable],
) -> Runtime:
    if name in known:
        return known[name]
    if (why := unusable.get(f"{field}s.{name}")) is not None:
        raise Unusable(f"{field}s.{name}.{why.field}", why.reason)
    raise Unusable(field, f"{name!r} is not in {field}s; there are {', '.join(known) or 'none'}")


def _shared(
    device: DeviceFields,
    runtime: Runtime,
    terms: Terms,
    file: FleetFile,
    unusable: Mapping[str, Unusable],
) -> Terms:
    """What the device's gateway bounds, as this device spends it."""
    name = str(device.gateway)
    if name not in file.gateways:
        if (why := unusable.get(f"gateways.{name}")) is not None:
            raise Unusable(f"gateways.{name}.{why.field}", why.reason)
        there = ", ".join(file.gateways) or "none"
        raise Unusable("gateway", f"{name!r} is not in gateways; there are {there}")
    bounds = file.gateways[name].budget.bounds()
    for bound, limit in bounds.items():
        if bound not in terms:
            raise runtime.missing(bound)
        _bound(bound, limit, terms[bound])
    return {bound: terms[bound] for bound in bounds}


@lru_cache(maxsize=4)
def _operators(space: Space) -> tuple[str, ...]:
    return tuple(sorted({*OPERATORS, *operators(space)}))


def _check_operators(names: Sequence[str], space: Space) -> None:
    known = _operators(space)
    for name in names:
        if name not in known:
            raise Unusable("lacks", f"{name!r} is no operator; known: {', '.join(known)}")
