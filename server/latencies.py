"""How long a subnet will run on a class's devices, from what they measured of probes.

Each device has its predictor: costs per operator fitted to the subnets that it timed, or the table of
single layers where that predicts held-out subnets better. A class goes by its slowest device, since one
model is to run on all of them.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..protos.manifest import INT4S, FileKind
from ..protos.probes import KindMeasured, ProbeSet, absurd, read_measurements, read_set
from ..specialize.latency.errors import LatencyErrors, Predict, cross_validated
from ..specialize.latency.regression import LEAST_SAMPLES, Timed, fit_regression
from ..specialize.latency.table import Key, fit_table
from ..supernet.errors import UsageError
from ..supernet.families.catalogue import space_from_dict
from ..supernet.space import Arch, Space, plain
from .fleet import Fleet


@dataclass(frozen=True, slots=True)
class DeviceLatency:
    """One device's predictor: seconds of a subnet. `method` is `regression` or `table`."""

    device: str
    method: str
    predict: Predict
    errors: LatencyErrors
    timed: Mapping[Arch, float]


@dataclass(frozen=True, slots=True)
class ClassLatency:
    """The predictors of a class's devices that measured files of `kind`."""

    kind: FileKind
    devices: tuple[DeviceLatency, ...]
    without: tuple[str, ...]

    def __call__(self, arch: Arch) -> float:
        """Milliseconds on the slowest device: as timed, where it timed this very subnet."""
        return 1e3 * max(
            device.timed[arch] if arch in device.timed else device.predict(arch)
            for device in self.devices
        )

    def to_dict(self) -> dict[str, object]:
        """What is known of the predictions, for reports."""
        return {
            "kind": self.kind,
            "devices": {
                device.device: {"method": device.method, **device.errors.to_dict()}
                for device in self.devices
            },
            "devices_without_measurements": list(self.without),
        }


def read_probe_set(folder: str, space: Space) -> ProbeSet:
    """The run's probes; UsageError where they are another space's."""
    found = read_set(Path(folder))
    if found.space != plain(space.to_dict()):
        raise UsageError(
            f"search.probes = {folder}: probes of another search space; make them with "
            "`fedofa probes --config` of this run"
        )
    return found


def predicted(folder: Path, file: Path) -> list[dict[str, object]]:
    """How well each kind of files that a device timed is predicted: method, errors, whether trusted.

    UsageError for measurements of other probes, or too few; ArtifactError for damaged files.
    """
    probes, measured = read_set(folder), read_measurements(file)
    if measured.probe_set != probes.digest:
        raise UsageError(
            f"{file}: measurements of other probes than those in {folder}; give the folder that "
            "`fedofa-device profile --probes` was given"
        )
    space, found = space_from_dict(probes.space), []
    for one in measured.kinds:
        if reason := absurd(one, probes):
            raise UsageError(f"{file}: {one.kind}: {reason}; measure again")
        try:
            latency = device_latency(str(file), one, probes, space)
        except ValueError as error:
            raise UsageError(f"{file}: {one.kind}: {error}") from None
        found.append({"kind": one.kind, "method": latency.method, **latency.errors.to_dict()})
    return found


def class_latency(
    name: str,
    kind: FileKind,
    fleet: Fleet,
    space: Space,
    probes: ProbeSet,
    leave_out: Callable[[str, str], None],
) -> ClassLatency:
    """The predictors of a class; `leave_out` hears of a device whose measurements are not used.

    UsageError when no device of the class has any.
    """
    found, without, reasons = [], [], []
    for device, member in fleet.members.items():
        if member.profile.device_class != name:
            continue
        measured = member.profile.measurements
        mine = None if measured is None else measured.of(kind)
        if measured is None or mine is None:
            without.append(device)
            continue
        reason = (
            "measurements of other probes than the run's"
            if measured.probe_set != probes.digest
            else absurd(mine, probes)
        )
        if not reason:
            try:
                found.append(device_latency(device, mine, probes, space))
                continue
            except ValueError as error:
                reason = str(error)
        reasons.append(f"{device}: {reason}")
        leave_out(device, reason)
    if not found:
        why = "; ".join(reasons[:3]) or f"none of them sent timings of {kind} files"
        if kind in INT4S.values():
            why += "; probes have such files where they are made with export.int4 = true"
        raise UsageError(
            f"classes.{name}.latency_ms: no device of the class can be predicted ({why}). Run "
            f"`fedofa-device profile --probes DIR --kind {kind} --out FILE` on one and name FILE in "
            "its profile (measurements = ...), or remove the bound"
        )
    return ClassLatency(kind, tuple(found), tuple(without))


def device_latency(
    device: str, measured: KindMeasured, probes: ProbeSet, space: Space
) -> DeviceLatency:
    """The better of both predictors, by their errors on held-out subnets.

    ValueError where too few subnets were timed.
    """
    timed = [
        Timed(space.arch(probe.arch), measured.seconds[probe.name])
        for probe in probes.subnets
        if probe.arch is not None and probe.name in measured.seconds
    ]
    if len(timed) < 2 * LEAST_SAMPLES:
        raise ValueError(
            f"{len(timed)} subnets were timed; at least {2 * LEAST_SAMPLES} are needed"
        )
    layers = {
        probes.layers[probe.layer]: measured.seconds[probe.name]
        for probe in probes.probes
        if probe.layer is not None and probe.name in measured.seconds
    }
    by_cost: Callable[[Sequence[Timed]], Predict] = partial(fit_regression, space)
    method, fit, errors = "regression", by_cost, cross_validated(by_cost, timed, measured.noise)
    if layers:
        by_layer = partial(_by_layer, space, layers)
        with contextlib.suppress(ValueError):  # too few of the subnets' layers were timed
            other = cross_validated(by_layer, timed, measured.noise)
            if other.mape < errors.mape:
                method, fit, errors = "table", by_layer, other
    known = {one.arch: one.seconds for one in timed}
    return DeviceLatency(device, method, fit(timed), errors, known)


def _by_layer(space: Space, layers: Mapping[Key, float], timed: Sequence[Timed]) -> Predict:
    """The table, and for a subnet with a layer that nobody timed the costs per operator."""
    table, costs = fit_table(space, layers, timed), fit_regression(space, timed)
    return lambda arch: table(arch) if table.covers(arch) else costs(arch)
