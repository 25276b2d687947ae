"""A fleet's devices as its owner writes them down in JSON (docs/fleet.md); checked one by one.

What is wrong with the file as a whole is a UsageError. What is wrong with a device, or with the runtime
or the gateway that it names, rejects that device with a reason, and the others go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..protos.depot import DEVICE_NAME
from ..protos.manifest import FileKind
from ..protos.probes import MOST_MACS_PER_S_AND_THREAD
from ..supernet.errors import UsageError
from .fleet_json import field_twice, load, names_twice

Name = Annotated[str, Field(pattern=f"^{DEVICE_NAME}$")]
Whole = Annotated[int, Field(gt=0, le=2**62)]
Positive = Annotated[float, Field(ge=1e-9, le=1e15)]
"""Below a picosecond, a picojoule or a multiply-accumulate in thirty years nothing is meant."""
MOST_DEVICES = 1_000_000


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class BudgetFields(_Fields):
    """Upper bounds; what is left out is not bounded. Memory is of float activations, batch 1."""

    macs: Whole | None = None
    params: Whole | None = None
    peak_activation_bytes: Whole | None = None
    file_bytes: Whole | None = None
    latency_ms: Positive | None = None
    energy_mj: Positive | None = None

    def bounds(self) -> dict[str, float]:
        """The bounds that are set."""
        return {name: float(v) for name, v in self.model_dump().items() if v is not None}


class RuntimeFields(_Fields):
    """What runs the files: their kind, and how latency and energy are estimated from a subnet.

    `measurements` is a file of `fedofa-device profile --probes`, `macs_per_s` a throughput instead;
    `power_w` what a device draws while it runs a model, or picojoules for each operation and byte.
    `lacks` are operators that it has not.
    """

    kind: FileKind
    measurements: str | None = None
    macs_per_s: Positive | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    power_w: Annotated[float, Field(gt=0, le=1e5)] | None = None
    pj_per_mac: Annotated[float, Field(gt=0, le=1e9)] | None = None
    pj_per_byte: Annotated[float, Field(gt=0, le=1e9)] | None = None
    lacks: list[str] = Field(default_factory=list)


class DeviceFields(_Fields):
    """One device, or one model of a gateway.

    `slowdown`: its latency over that of the runtime's measurements. `macs_per_s`: its own throughput.
    `weight`: what its accuracy counts.
    """

    name: Name
    runtime: str
    budget: BudgetFields = BudgetFields()
    slowdown: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    macs_per_s: Positive | None = None
    weight: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    gateway: str | None = None
    lacks: list[str] = Field(default_factory=list)


class GatewayFields(_Fields):
    """A device that hosts several models, which share its budget."""

    budget: BudgetFields


@dataclass(frozen=True, slots=True)
class Rejected:
    """A device that cannot be planned for: which field, what is wrong with it, and the way out.

    All of it can be printed and written as UTF-8: what else is in the file's names stands escaped.
    """

    device: str
    field: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("device", "field", "reason"):
            object.__setattr__(self, name, _printable(getattr(self, name)))


class Unusable(Exception):
    """What is wrong with a field of one device; becomes a `Rejected`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What could be read. `unusable`: name of a runtime or a gateway → why it cannot be used."""

    runtimes: Mapping[str, RuntimeFields]
    gateways: Mapping[str, GatewayFields]
    unusable: Mapping[str, Unusable]
    devices: Sequence[DeviceFields]
    rejected: Sequence[Rejected]


HINTS: Mapping[str, str] = {
    "budget": "give the bound a number above 0, or leave it out",
    "measurements": "measure it again, or leave it out",
    "macs_per_s": "measure it again, or leave it out",
    "slowdown": "its latency over the measured device's: give a number such as 1.2, or leave it out",
    "kind": "name the kind of file that the runtime loads",
    "runtime": "name one of [runtimes]",
}
T = TypeVar("T", bound=_Fields)


def read_fleet(path: Path) -> FleetFile:
    """Read the file; UsageError where it is missing, no JSON, or not of this form."""
    try:
        found = load(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"fleet {path}: {error.strerror}; docs/fleet.md says what it holds"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"fleet {path} is no JSON: {error}") from None
    try:
        return parse_fleet(found)
    except UsageError as error:
        raise UsageError(f"fleet {path}: {error}") from None


def parse_fleet(found: object) -> FleetFile:
    """Check what was read; UsageError for what is wrong with all of it."""
    top = _table(found, "the file")
    if twice := names_twice(top):
        raise UsageError(f"{twice[0]!r} is given twice; keep one")
    if unknown := sorted(top.keys() - {"runtimes", "devices", "gateways"}):
        raise UsageError(f"unknown key {unknown[0]!r}; allowed: runtimes, devices, gateways")
    rows = top.get("devices")
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_DEVICES:
        raise UsageError(f"devices: a list of 1 to {MOST_DEVICES:,} devices expected")
    runtimes, gateways = dict[str, RuntimeFields](), dict[str, GatewayFields]()
    unusable: dict[str, Unusable] = {}
    _take(runtimes, unusable, RuntimeFields, "runtimes", top.get("runtimes"))
    _take(gateways, unusable, GatewayFields, "gateways", top.get("gateways", {}))
    devices, rejected = _devices(rows)
    for name, one in list(runtimes.items()):
        try:
            check_runtime(one)
        except Unusable as error:
            unusable[f"runtimes.{name}"] = error
            del runtimes[name]
    return FleetFile(runtimes, gateways, unusable, devices, rejected)


def check_runtime(one: RuntimeFields) -> None:
    """Unusable where two ways to estimate contradict each other, or nothing is so fast."""
    if one.measurements is not None and one.macs_per_s is not None:
        raise Unusable(
            "measurements", "macs_per_s is given too, and they may contradict; leave one out"
        )
    pj = (one.pj_per_mac, one.pj_per_byte)
    if one.power_w is not None and any(each is not None for each in pj):
        raise Unusable("power_w", "pj_per_mac or pj_per_byte is given too; leave one way out")
    if (pj[0] is None) != (pj[1] is None):
        raise Unusable(
            "pj_per_mac", "pj_per_mac and pj_per_byte go together; give both, or power_w"
        )
    if one.macs_per_s is not None:
        check_speed("macs_per_s", one.macs_per_s, one.threads)


def check_speed(field: str, macs_per_s: float, threads: int) -> None:
    """Unusable where no processor with so many threads does so many multiply-accumulates."""
    if macs_per_s > threads * MOST_MACS_PER_S_AND_THREAD:
        raise Unusable(
            field,
            f"{macs_per_s:g} multiply-accumulates a second on {threads} threads; no processor does "
            f"more than {MOST_MACS_PER_S_AND_THREAD:g} a second and thread. Measure it again",
        )


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _devices(rows: Sequence[object]) -> tuple[list[DeviceFields], list[Rejected]]:
    devices, rejected, places = list[DeviceFields](), list[Rejected](), dict[str, int]()
    for place, row in enumerate(rows):
        stated = row.get("name") if isinstance(row, Mapping) else None
        name = stated if isinstance(stated, str) else f"devices[{place}]"
        try:
            one = _parsed(DeviceFields, row)
            if name in places:
                raise Unusable(
                    "name", f"devices[{places[name]}] has this name too; give each its own"
                )
        except Unusable as error:
            rejected.append(Rejected(name, error.field, error.reason))
            continue
        places[name] = place
        devices.append(one)
    return devices, rejected


def _take(
    into: dict[str, T], unusable: dict[str, Unusable], kind: type[T], what: str, found: object
) -> None:
    table = _table(found, what)
    for name, fields in table.items():
        try:
            if name in names_twice(table):
                raise Unusable("fields", "given twice under this name; keep one, or rename one")
            into[name] = _parsed(kind, fields)
        except Unusable as error:
            unusable[f"{what}.{name}"] = error


def _parsed(kind: type[T], fields: object) -> T:
    if (twice := field_twice(fields)) is not None:
        raise Unusable(twice, "given twice; keep one")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        # A misspelt key explains a missing one.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        field = ".".join(str(part) for part in first["loc"]) or "fields"
        if first["type"] == "extra_forbidden":
            known = BudgetFields if field.startswith("budget.") else kind
            raise Unusable(
                field, f"unknown; allowed here: {', '.join(known.model_fields)}"
            ) from None
        given = "" if first["type"] == "missing" else f"{first['input']!r}: "
        hint = HINTS.get(field.partition(".")[0], "see docs/fleet.md")
        raise Unusable(field, f"{given[:80]}{first['msg']}; {hint}") from None


def _table(found: object, what: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise UsageError(f"{what}: a JSON object expected, with names as keys")
    return found
