"""From what a person types to a device that takes part: description, data, join."""

import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..protos.device import NODE_KEY, DataSource, Device
from ..supernet.errors import UsageError
from .data import ClientData, Examples, load
from .device import class_name, data, declared
from .join import JoinOptions, check, join

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the server is and how it is trusted."""

    server: str
    root_certificates: Path | None = None
    insecure: bool = False


def source(
    function: str, root: Path | None, client: int, clients: int, arguments: Sequence[str]
) -> DataSource:
    """A data source from command-line values; UsageError for an argument without `=`."""
    found: dict[str, str | int | float] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--data-arg {argument!r}: write it as name=value")
        found[key] = _value(value)
    return DataSource(function, str(root) if root else None, client, clients, found)


def describe(
    name: str | None,
    device_class: str | None,
    profile: Path | None,
    where: DataSource,
    threads: int,
    memory: Path,
) -> Device:
    """A device's description, checked: name, class, profile file; what it remembers lies in `memory`."""
    name = name or socket.gethostname()
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: letters, digits, '.', '_' and '-', at most 64")
    path = str(profile.resolve()) if profile else None
    place = str((memory.expanduser() / name).resolve())
    device = Device(name, where, device_class, path, threads, memory=place)
    if not NAME.fullmatch(class_name(device)):
        raise UsageError(f"--device-class {class_name(device)!r}: letters, digits, '.', '_', '-'")
    declared(device)
    return device


def trusting(device: Device, trust: Path | None) -> Device:
    """The device with its trust file, which is read and checked here; UsageError names what is wrong."""
    if trust is None:
        return device
    from .privacy.trust_file import read_trust  # needs cryptography, which comes with flwr

    read_trust(trust.resolve(), device.name)  # kept: processes that are forked later do not read it
    return replace(device, trust=str(trust.resolve()))


def take_part(device: Device, reach: Reach, on_joined: Callable[[int], None]) -> int:
    """Load the data, then join the server until a signal; the exit code.

    Everything wrong with options, profile or data is a UsageError before anything is started.
    """
    options = JoinOptions(
        server=reach.server,
        node_config={NODE_KEY: device.to_json()},
        root_certificates=reach.root_certificates,
        insecure=reach.insecure,
        on_joined=on_joined,
    )
    check(options)
    os.environ["OMP_NUM_THREADS"] = str(device.threads)
    data(device)  # kept in memory: the processes that are forked later share it
    return join(options)


def write_parts(where: DataSource, folder: Path) -> dict[str, int]:
    """Write what a data function gives as .npy files (x and y per part); part → examples."""
    found = load(where)
    if isinstance(found, ClientData):
        parts = {"train_": found.train, "validation_": found.validation}
    elif isinstance(found, Examples):
        parts = {"": found}
    else:
        raise UsageError(
            f"data function {where.function} returned {type(found).__name__}; "
            "ClientData or Examples expected"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, part in parts.items():
        np.save(folder / f"{prefix}x.npy", part.x)
        np.save(folder / f"{prefix}y.npy", part.y)
    return {prefix.rstrip("_") or "examples": len(part) for prefix, part in parts.items()}


def summary(where: DataSource) -> dict[str, object]:
    """What a data function gives, in numbers: a check before a device joins."""
    found = load(where)
    if isinstance(found, Examples):
        return {"examples": len(found), "shape": list(found.x.shape[1:])}
    if not isinstance(found, ClientData):
        raise UsageError(
            f"data function {where.function} returned {type(found).__name__}; "
            "it must return fedofa.client.data.ClientData"
        )
    counts = np.bincount(found.train.y, minlength=len(found.classes))
    return {
        "train": len(found.train),
        "validation": len(found.validation),
        "shape": list(found.train.x.shape[1:]),
        "per class": {name: int(n) for name, n in zip(found.classes, counts, strict=True)},
    }


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
