"""What the device's commands say, as JSON-ready dictionaries."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .store import DeviceStore, Installed

if TYPE_CHECKING:  # `status` loads neither a runtime nor grpc
    from ..protos.probes import Measurements
    from .device_model import Measured
    from .personal.personalize import Personalized
    from .pull import PullResult


def of_model(model: Installed) -> dict[str, Any]:
    """One installed model."""
    manifest = model.manifest
    return {
        "model": manifest.model,
        "version": manifest.version,
        "device_class": manifest.device_class,
        "kind": model.kind,
        "path": str(model.model_path),
        "size_bytes": manifest.file(model.kind).size_bytes,
        "manifest_sha256": model.manifest_sha256,
        "personal": manifest.personal.method if manifest.personal else None,
    }


def of_pull(result: "PullResult") -> dict[str, Any]:
    """What a pull did."""
    return {
        **of_model(result.model),
        "activated": result.activated,
        "downloaded_bytes": result.downloaded_bytes,
        "resumed_bytes": result.resumed_bytes,
        **({"personalize_again": True} if result.left_own else {}),
    }


def of_personalized(result: "Personalized") -> dict[str, Any]:
    """What personalization did."""
    return {
        **of_model(result.model),
        "activated": result.activated,
        "changed_layers": list(result.layers),
        "layers": result.all_layers,
        "adapter": str(result.adapter),
        "adapter_bytes": result.adapter.stat().st_size,
        "examples": result.examples,
        "base_accuracy": result.base_accuracy,
        "before_accuracy": result.before_accuracy,
        "accuracy": result.accuracy,
    }


def of_run(model: Installed, measured: "Measured") -> dict[str, Any]:
    """What a batch gave; predictions only where there were no labels to compare them with."""
    latency = measured.latency
    classes = model.manifest.classes
    return {
        **of_model(model),
        "examples": len(measured.predictions),
        "accuracy": measured.accuracy,
        "predictions": (
            [classes[index] for index in measured.predictions]
            if measured.accuracy is None
            else None
        ),
        "latency_ms": {"median": latency.median_ms, "p95": latency.p95_ms, "runs": latency.runs},
        "runtime": measured.runtime,
        "threads": 1,
    }


def of_store(store: DeviceStore) -> dict[str, Any]:
    """What lies in a device's store for one class, or under the device's own name."""
    state, current = store.state(), store.current()
    whose = {"device": store.device} if store.device else {"device_class": store.device_class}
    return {
        **whose,
        "current": of_model(current) if current else None,
        "previous": state.previous.version if state.previous else None,
        "failed": {key: strikes.model_dump() for key, strikes in state.strikes.items()},
    }


def of_measurements(found: "Measurements", path: Path) -> dict[str, Any]:
    """`fedofa-device profile --probes`."""
    return {
        "written": str(path),
        **{
            one.kind: {
                "runtime": one.runtime,
                "threads": one.threads,
                "probes": len(one.seconds),
                "fastest_ms": 1e3 * min(one.seconds.values()),
                "slowest_ms": 1e3 * max(one.seconds.values()),
                "noise": one.noise,
            }
            for one in found.kinds
        },
    }
