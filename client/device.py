"""One device as its ClientApp sees it: class, data, declared profile."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from ..protos.device import FLEET_KEY, NODE_KEY, PARTITION_KEY, Device
from ..protos.messages import Declared
from ..supernet.errors import UsageError
from .data import ClientData, client_data
from .declared import read_profile


def of_node(node: Mapping[str, object], run: Mapping[str, object]) -> Device:
    """The device a Flower node stands for.

    A real node describes itself. Only a simulated node, which has nothing but its number, takes
    its description from the run: a server cannot tell a real device which data to read.
    """
    if NODE_KEY in node:
        return Device.from_json(str(node[NODE_KEY]))
    if PARTITION_KEY in node and FLEET_KEY in run:
        return Device.from_json(json.loads(str(run[FLEET_KEY]))[int(str(node[PARTITION_KEY]))])
    raise UsageError(f"this node has no {NODE_KEY} in its config; start it with fedofa-device join")


def declared(device: Device) -> Declared:
    """The profile file's values, and bits that the device itself gives in their place.

    UsageError when the file is wrong.
    """
    found = read_profile(Path(device.profile)) if device.profile else Declared()
    given = {"train_bits": device.train_bits, "infer_bits": device.infer_bits}
    return found.model_copy(update={name: bits for name, bits in given.items() if bits})


def class_name(device: Device) -> str:
    """The class given on the command line, or else by the profile file."""
    name = device.device_class or declared(device).device_class
    if name is None:
        raise UsageError(
            f"device {device.name}: no class; give --device-class NAME, or device_class in the "
            "profile file"
        )
    return name


def data(device: Device) -> ClientData:
    """The device's data, loaded once per process."""
    return _loaded(device.to_json())


@lru_cache(maxsize=64)
def _loaded(text: str) -> ClientData:
    return client_data(Device.from_json(text).source)
