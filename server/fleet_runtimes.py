"""The runtimes of a fleet: what estimates each bound on a device of theirs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..protos.probes import KindMeasured, ProbeSet, absurd, read_measurements
from ..specialize.fleet.columns import EXACT, Figure, energy, latency
from ..supernet.errors import FedofaError
from ..supernet.space import Arch, Space
from .fleet_file import DeviceFields, RuntimeFields, Unusable, check_speed
from .latencies import device_latency

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


def usable_runtime(
    name: str,
    fields: RuntimeFields,
    measured: tuple[Path, Space, Callable[[], ProbeSet]],
    figures: dict[str, Figure],
    trust: dict[str, Mapping[str, object]],
) -> Runtime:
    """A runtime with its columns put into `figures`, and what is known of its latencies into `trust`.

    `measured`: the folder that measurements lie in, the space, and what reads the run's probes.
    Unusable: measurements that cannot be read, are of something else, or cannot be true.
    """
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
    except ValueError as error:  # a zero byte, half of a surrogate pair
        raise Unusable("measurements", f"{fields.measurements!r} is no path: {error}") from None
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
        _check_latency(predictor.predict, space)
    except (ValueError, FedofaError) as error:
        raise Unusable("measurements", f"{fields.measurements}: {error}") from None
    figures[f"latency_ms:{name}"] = latency(predictor.predict)
    trust[name] = {"method": predictor.method, **predictor.errors.to_dict()}
    return Runtime(name, fields, (_fastest(mine, probes), mine.threads))


def _check_latency(predict_s: Callable[[Arch], float], space: Space) -> None:
    """ValueError where a latency is no number of 0 or more at one end of the space."""
    for size, arch in (("smallest", space.smallest()), ("largest", space.largest())):
        if not 0 <= (seconds := predict_s(arch)) < math.inf:
            raise ValueError(
                f"the {size} subnet is predicted to take {seconds:g} seconds; measure it again"
            )


def _fastest(measured: KindMeasured, probes: ProbeSet) -> float:
    """Multiply-accumulates a second of the probe that reached most."""
    macs = {probe.name: probe.macs for probe in probes.probes}
    return max(macs[name] / seconds for name, seconds in measured.seconds.items())
