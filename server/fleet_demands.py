"""From a fleet's file to what is planned for: bounds on columns, and the columns of its runtimes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..protos.probes import KindMeasured, ProbeSet, absurd, read_measurements
from ..specialize.fleet.columns import (
    EXACT,
    VALUE_BYTES,
    Columns,
    Figure,
    energy,
    file_bytes,
    latency,
    operator,
    operators,
)
from ..specialize.fleet.demand import Bound, Demand
from ..specialize.fleet.shares import Hosted
from ..supernet.errors import FedofaError
from ..supernet.space import Space
from .fleet_file import DeviceFields, FleetFile, Rejected, RuntimeFields, Unusable, check_speed
from .latencies import device_latency

OPERATORS = (
    "conv", "depthwise", "gelu", "hsigmoid", "hswish", "linear", "matmul", "norm", "pool", "relu",
    "relu6", "silu", "softmax", "table",
)  # fmt: skip
"""What a runtime may lack, besides whatever else a user's own space is made of."""
Terms = dict[str, tuple[str, float]]
"""Name of a bound → the column and the factor that estimate it."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that can be used. `measured`: its fastest probe's multiply-accumulates a second,
    and on how many threads, where it was measured."""

    name: str
    fields: RuntimeFields
    measured: tuple[float, int] | None = None

    def terms(self, device: DeviceFields) -> Terms:
        """What estimates each bound on this device, where something does. Unusable: absurd speed."""
        kind = self.fields.kind
        found: Terms = {name: (name, 1.0) for name in EXACT}
        found["file_bytes"] = (f"file_bytes:{kind}", 1.0)
        if (speed := self._latency(device)) is not None:
            found["latency_ms"] = speed
            if self.fields.power_w is not None:  # watts times milliseconds are millijoules
                found["energy_mj"] = (speed[0], speed[1] * self.fields.power_w)
        if self.fields.pj_per_mac is not None:
            found["energy_mj"] = (f"energy_mj:{self.name}", 1.0)
        return found

    def _latency(self, device: DeviceFields) -> tuple[str, float] | None:
        if self.measured is not None:
            if device.macs_per_s is not None:
                raise Unusable(
                    "macs_per_s",
                    f"runtime {self.name} has measurements, and they may contradict; give the "
                    "device a slowdown instead",
                )
            check_speed("slowdown", self.measured[0] / device.slowdown, self.measured[1])
            return f"latency_ms:{self.name}", device.slowdown
        own = device.macs_per_s or self.fields.macs_per_s
        if own is None:
            return None
        check_speed("macs_per_s", own / device.slowdown, self.fields.threads)
        return "macs", 1e3 * device.slowdown / own

    def missing(self, bound: str) -> Unusable:
        """That a bound cannot be estimated, and what to do."""
        measure = (
            f"measure it (`fedofa-device profile --probes DIR --kind {self.fields.kind} --out FILE`) "
            f"and name FILE in runtimes.{self.name}.measurements, or give macs_per_s"
        )
        ways = {
            "latency_ms": f"runtime {self.name} has no measurements and no macs_per_s: {measure}",
            "energy_mj": f"runtime {self.name} has neither power_w with a latency nor pj_per_mac and "
            "pj_per_byte: give one of them",
        }
        return Unusable(f"budget.{bound}", f"{ways[bound]}; or remove the bound")


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


def wanted(file: FleetFile, folder: Path, space: Space, probes: Callable[[], ProbeSet]) -> Wanted:
    """Read the measurements that runtimes name (beside the file, in `folder`) and make demands.

    `probes` reads the run's probes, where a runtime was measured.
    """
    unusable = dict(file.unusable)
    figures: dict[str, Figure] = {f"file_bytes:{kind}": file_bytes(kind) for kind in VALUE_BYTES}
    figures |= {f"operator:{name}": operator(name) for name in _operators(space)}
    runtimes: dict[str, Runtime] = {}
    trust: dict[str, Mapping[str, object]] = {}
    for name, fields in file.runtimes.items():
        try:
            _check_operators(fields.lacks, space)
            runtimes[name] = _runtime(name, fields, (folder, space, probes), figures, trust)
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
        tuple(Bound(name, limit, *terms[name]) for name, limit in bounds.items()),
        lacks,
        device.weight,
    )
    return demand, terms


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
    for bound in bounds:
        if bound not in terms:
            raise runtime.missing(bound)
    return {bound: terms[bound] for bound in bounds}


def _runtime(
    name: str,
    fields: RuntimeFields,
    measured: tuple[Path, Space, Callable[[], ProbeSet]],
    figures: dict[str, Figure],
    trust: dict[str, Mapping[str, object]],
) -> Runtime:
    if fields.pj_per_mac is not None and fields.pj_per_byte is not None:
        figures[f"energy_mj:{name}"] = energy(fields.kind, fields.pj_per_mac, fields.pj_per_byte)
    if fields.measurements is None:
        return Runtime(name, fields)
    folder, space, read_probes = measured
    try:
        found = read_measurements(folder / fields.measurements)
        probes = read_probes()
    except FedofaError as error:
        raise Unusable("measurements", str(error)) from None
    mine = found.of(fields.kind)
    if mine is None:
        raise Unusable(
            "measurements", f"{fields.measurements} has no timings of {fields.kind} files"
        )
    if found.probe_set != probes.digest:
        raise Unusable(
            "measurements",
            f"{fields.measurements} is of other probes than the run's; measure those",
        )
    if why := absurd(mine, probes):
        raise Unusable("measurements", f"{fields.measurements}: {why}. Measure it again")
    try:
        predictor = device_latency(name, mine, probes, space)
    except ValueError as error:
        raise Unusable("measurements", f"{fields.measurements}: {error}") from None
    figures[f"latency_ms:{name}"] = latency(predictor.predict)
    trust[name] = {"method": predictor.method, **predictor.errors.to_dict()}
    return Runtime(name, fields, (_fastest(mine, probes), mine.threads))


def _fastest(measured: KindMeasured, probes: ProbeSet) -> float:
    """Multiply-accumulates a second of the probe that reached most."""
    macs = {probe.name: probe.macs for probe in probes.probes}
    return max(macs[name] / seconds for name, seconds in measured.seconds.items())


@lru_cache(maxsize=4)
def _operators(space: Space) -> tuple[str, ...]:
    return tuple(sorted({*OPERATORS, *operators(space)}))


def _check_operators(names: Sequence[str], space: Space) -> None:
    known = _operators(space)
    for name in names:
        if name not in known:
            raise Unusable("lacks", f"{name!r} is no operator; known: {', '.join(known)}")
