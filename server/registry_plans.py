"""Settled plans of fleets in the registry: which version a device gets by its own name, or why none.

A channel holds the newest settled plan of each fleet of a run, whole: `settle` replaces it in one
transaction. Where several plans name a device, the one that was settled last counts; where that one's
fleet no longer names it, the one before counts again.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from ..protos.depot import STABLE, is_device_name, is_name
from ..supernet.errors import DepotError
from . import registry_schema as schema
from .registry import Registry, check

_PLANS, _DEVICES = schema.PLANS, schema.DEVICES
_OF_PLAN = (
    (_DEVICES.c.channel == _PLANS.c.channel)
    & (_DEVICES.c.run == _PLANS.c.run)
    & (_DEVICES.c.fleet == _PLANS.c.fleet)
)


@dataclass(frozen=True, slots=True)
class Settled:
    """A plan that was carried out. `served`: device → model and version; `not_served`: device → why."""

    run: str
    fleet: str
    served: Mapping[str, tuple[str, int]]
    not_served: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a device gets: the manifest's bytes, their sha256, and the class whose model it is."""

    manifest: bytes
    sha256: str
    device_class: str


def settle(registry: Registry, plan: Settled, channel: str = STABLE) -> dict[str, int]:
    """Let the channel give devices what this plan says, in place of its fleet's former plan.

    Returns, by `RUN/FLEET`, how many of its devices had another fleet's plan until now. DepotError for
    a name that is not allowed; ArtifactError where a version is not published. Nothing changes then.
    """
    check("channel", channel, is_name(channel))
    for device in (*plan.served, *plan.not_served):
        check("device", device, is_device_name(device))
    key = {"channel": channel, "run": plan.run, "fleet": plan.fleet}
    rows = [
        {**key, "device": device, "model": model, "version": version, "reason": None}
        for device, (model, version) in plan.served.items()
    ]
    rows += [
        {**key, "device": device, "model": None, "version": None, "reason": reason}
        for device, reason in plan.not_served.items()
    ]
    with registry.changing() as database:
        schema.lock(database)
        before = _naming(database, channel)
        newest = database.execute(sa.select(sa.func.max(_PLANS.c.place))).scalar_one()
        for table in (_DEVICES, _PLANS):
            database.execute(table.delete().where(*(table.c[name] == key[name] for name in key)))
        told = {"place": 1 + (newest or 0), "settled_unix_s": time.time()}
        database.execute(_PLANS.insert().values(**key, **told))
        if rows:
            database.execute(_DEVICES.insert(), rows)
    named = [before[row["device"]] for row in rows if row["device"] in before]
    return dict(Counter(f"{run}/{fleet}" for run, fleet in named if (run, fleet) != _key(plan)))


def resolve(registry: Registry, device: str, channel: str = STABLE) -> Resolved:
    """What the newest plan that names the device gives it.

    DepotError `unknown_device` where none names it, `not_served` with the plan's reason where that
    plan has nothing for it.
    """
    check("device", device, is_device_name(device))
    check("channel", channel, is_name(channel))
    with registry.reading() as database:
        row = database.execute(
            sa.select(_DEVICES, _PLANS.c.place)
            .join(_PLANS, _OF_PLAN)
            .where(_DEVICES.c.channel == channel, _DEVICES.c.device == device)
            .order_by(_PLANS.c.place.desc())
            .limit(1)
        ).one_or_none()
        if row is None:
            raise DepotError("unknown_device", _unknown(database, device, channel))
        if row.model is None:
            raise DepotError(
                "not_served",
                f"device {device!r} has no model in the plan of fleet {row.fleet} (run {row.run}): "
                f"{row.reason}",
            )
        found = schema.version_row(database, row.model, row.version)
    return Resolved(*found)


def devices_of(
    registry: Registry, run: str, fleet: str, channel: str = STABLE
) -> dict[str, tuple[str, int]]:
    """Device → model and version, of those that a fleet's settled plan serves."""
    query = sa.select(_DEVICES.c.device, _DEVICES.c.model, _DEVICES.c.version).where(
        _DEVICES.c.channel == channel,
        _DEVICES.c.run == run,
        _DEVICES.c.fleet == fleet,
        _DEVICES.c.model.is_not(None),
    )
    with registry.reading() as database:
        return {device: (model, version) for device, model, version in database.execute(query)}


def naming(registry: Registry, channel: str = STABLE) -> dict[str, tuple[str, str]]:
    """Device → run and fleet of the plan that counts for it in a channel."""
    with registry.reading() as database:
        return _naming(database, channel)


def _key(plan: Settled) -> tuple[str, str]:
    return plan.run, plan.fleet


def _naming(database: sa.Connection, channel: str) -> dict[str, tuple[str, str]]:
    """Device → run and fleet of the plan that counts for it."""
    query = (
        sa.select(_DEVICES.c.device, _DEVICES.c.run, _DEVICES.c.fleet)
        .join(_PLANS, _OF_PLAN)
        .where(_DEVICES.c.channel == channel)
        .order_by(_PLANS.c.place)
    )
    return {device: (run, fleet) for device, run, fleet in database.execute(query)}


def _unknown(database: sa.Connection, device: str, channel: str) -> str:
    # By channel: rows are found by channel and device, and a depot is asked by whoever reaches it.
    channels = list(database.scalars(sa.select(_PLANS.c.channel).distinct()))
    named = sa.select(_DEVICES.c.channel).where(
        _DEVICES.c.channel.in_(channels), _DEVICES.c.device == device
    )
    if elsewhere := sorted(set(database.scalars(named))):
        way_out = f"it is named in channel {', '.join(elsewhere)}: pull with --channel"
    else:
        way_out = (
            "give the name that the fleet's file has, plan again with it "
            "(fedofa specialize --fleet FILE), or pull a class's model with --device-class"
        )
    return f"no settled plan of a fleet names device {device!r} in channel {channel!r}; {way_out}"
