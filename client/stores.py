"""Which of the stores below a folder a command is about: of a class, or of a device by its own name."""

from pathlib import Path

from ..protos.depot import is_device_name, is_name
from ..supernet.errors import UsageError
from .store import OWN, DeviceStore


def open_store(root: Path, device_class: str | None, device: str | None) -> DeviceStore:
    """The store of a class, or of a device by its own name; UsageError unless one of them is given."""
    if bool(device_class) == bool(device):
        raise UsageError(
            "whose model: give --device-class NAME, or --device NAME for what was pulled by the "
            "device's own name"
        )
    return DeviceStore(root, device_class or "", device=device or "")


def open_stores(
    root: Path, device_class: str | None = None, device: str | None = None
) -> list[DeviceStore]:
    """All stores below `root`, in order; or that of one class, or of one device by its own name."""
    if device_class is not None or device is not None:
        return [open_store(root, device_class, device)]
    found = sorted(path.parent.name for path in root.glob("*/state.json"))
    classes = [DeviceStore(root, name) for name in found if is_name(name)]
    own = [name.removeprefix(OWN) for name in found if name.startswith(OWN)]
    return classes + [DeviceStore(root, device=name) for name in own if is_device_name(name)]
