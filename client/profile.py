"""What this device is and can do: measured, with declared values taking precedence."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.nn import functional

from ..protos.inference import available_runtimes
from ..protos.messages import Declared, DeviceProfile
from ..protos.probes import read_measurements
from ..supernet.axes import regions
from ..supernet.cost import cost
from ..supernet.families.catalogue import preset
from ..supernet.space import Arch, Space
from ..supernet.subnet import on_views, static
from ..supernet.weights import shapes_of
from .data import ClientData

MEASURE_SECONDS = 0.3
BATCH = 32


def profile(
    device: str, device_class: str, declared: Declared, data: ClientData, space: Space
) -> DeviceProfile:
    """Measure what was not declared and describe the data's form (never the data)."""
    timed = space.smallest()
    train_speed = declared.train_macs_per_s or train_macs_per_s(space, timed)
    infer_speed = declared.infer_macs_per_s or infer_macs_per_s(space, timed)
    return DeviceProfile(
        device=device,
        device_class=device_class,
        cores=declared.cores or len(os.sched_getaffinity(0)),
        memory_bytes=declared.memory_bytes or psutil.virtual_memory().available,
        train_macs_per_s=train_speed,
        infer_macs_per_s=infer_speed,
        train_bits=declared.train_bits,
        infer_bits=declared.infer_bits,
        budget=declared.budget,
        measurements=(
            read_measurements(Path(declared.measurements)) if declared.measurements else None
        ),
        runtimes=available_runtimes(),
        examples=len(data.train),
        validation_examples=len(data.validation),
        input_shape=tuple(data.train.x.shape[1:]),
        classes=data.classes,
        normalization=data.normalization,
        labels=label_counts(data) if declared.share_labels else None,
    )


def label_counts(data: ClientData) -> tuple[int, ...]:
    """Training examples of each class."""
    return tuple(np.bincount(data.train.y, minlength=len(data.classes)).tolist())


def measured(preset_name: str) -> dict[str, int | float]:
    """What `fedofa-device profile` prints: the measurable values, for a preset's subnets."""
    space = preset(preset_name)
    arch = space.smallest()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().available,
        "train_macs_per_s": train_macs_per_s(space, arch),
        "infer_macs_per_s": infer_macs_per_s(space, arch),
    }


def train_macs_per_s(space: Space, arch: Arch) -> float:
    """Forward multiply-accumulates trained per second, three for each (forward and backward)."""
    values = {name: value.requires_grad_() for name, value in _values(space, arch).items()}
    forward = on_views(space, arch, values, arch)
    x = torch.zeros(BATCH, *space.input_shape(arch))
    labels = torch.zeros(BATCH, dtype=torch.int64)

    def step() -> None:
        functional.cross_entropy(forward(x), labels).backward()  # type: ignore[no-untyped-call]

    return 3 * BATCH * cost(space, arch).macs / _seconds_per_call(step)


def infer_macs_per_s(space: Space, arch: Arch) -> float:
    """Multiply-accumulates per second of single-example inference in PyTorch."""
    module = static(space, arch, _values(space, arch)).eval()
    x = torch.zeros(1, *space.input_shape(arch))

    def step() -> None:
        with torch.no_grad():
            module(x)

    return cost(space, arch).macs / _seconds_per_call(step)


def _values(space: Space, arch: Arch) -> dict[str, torch.Tensor]:
    """Any numbers of the right shapes: a small device never holds the whole supernet."""
    return {
        name: torch.full(shape, 0.01) for name, shape in shapes_of(regions(space, arch)).items()
    }


def _seconds_per_call(step: Callable[[], None]) -> float:
    """The fastest of many calls: what the device can do when nothing disturbs it."""
    step()
    fastest, end = math.inf, time.perf_counter() + MEASURE_SECONDS
    while (begin := time.perf_counter()) < end:
        step()
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest
