"""The tasks of the accuracy benchmark: data, space, budgets, and the training that all rows share."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedofa.client.data import Examples
from fedofa.client.datasets import mnist_test
from fedofa.client.sensor_data import har_test
from fedofa.protos.device import DataSource
from fedofa.supernet.cost import cost
from fedofa.supernet.families.resnet import ResNetSpace
from fedofa.supernet.families.resnet_options import Stage, Stem
from fedofa.supernet.families.tdnn_options import BlockOptions
from fedofa.supernet.families.tdnn_presets import HAR as TDNN_HAR
from fedofa.supernet.space import Space

from .cifar import cifar10_test

SHARES = (1 / 16, 1 / 6, 2 / 5, 1.0)
"""Budgets of the four device classes, in MACs of the largest subnet."""
DATA_VARIABLE = "FEDOFA_DATA"


def data_folder() -> Path:
    """Where real data are read from: FEDOFA_DATA, or ../shared/data beside the project."""
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get(DATA_VARIABLE, default))


@dataclass(frozen=True, slots=True)
class Task:
    """One data set: `budget_macs` is what each recipe may spend on training.

    `fedavg_share` is that budget over the cost of all separately trained models together.
    """

    name: str
    folder: str
    function: str
    clients: int
    space: Space
    budget_macs: float
    test: Callable[[str], Examples]
    seeds: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    fedavg_share: float = 0.4
    statistics_each: int = 50
    validation_each: int = 75

    def source(self, seed: int) -> DataSource:
        """The data of a seed's split."""
        return DataSource(
            self.function,
            str(data_folder() / self.folder),
            clients=self.clients,
            arguments={**self.arguments, "seed": seed},
        )

    def budgets(self) -> dict[str, int]:
        """Device class → MACs."""
        largest = cost(self.space, self.space.largest()).macs
        return {f"c{place}": round(share * largest) for place, share in enumerate(SHARES)}


FASHION = ResNetSpace(
    classes=10,
    in_channels=1,
    resolutions=(28,),
    stem=Stem(widths=(4, 8, 24), stride=2),
    stages=(
        Stage((8, 12, 20, 32), (1,), (0.5, 1), stride=2, block="basic"),
        Stage((16, 24, 40, 64), (1, 2), (0.5, 1), stride=2, block="basic"),
    ),
    divisor=4,
)
CIFAR = replace(
    FASHION,
    in_channels=3,
    resolutions=(32,),
    stem=Stem(widths=(4, 8, 32), stride=2),
    stages=(
        Stage((12, 16, 28, 48), (1,), (0.5, 1), stride=2, block="basic"),
        Stage((24, 36, 60, 96), (1, 2), (0.5, 1), stride=2, block="basic"),
    ),
)
HAR = replace(
    TDNN_HAR,
    stem_widths=(12, 20, 28, 48),
    blocks=tuple(
        BlockOptions(widths=(12, 20, 28, 48), dilation=dilation) for dilation in (1, 2, 3)
    ),
    aggregate_widths=(16, 28, 48, 96),
)
SHARED: Mapping[str, Any] = MappingProxyType(
    {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 32, "clip_norm": 5.0}
)
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "fashion": Task(
            name="Fashion-MNIST",
            folder="FashionMNIST/raw",
            function="fedofa.client.datasets:mnist",
            clients=20,
            space=FASHION,
            budget_macs=1.2e12,
            test=mnist_test,
            seeds=3,
            arguments={"alpha": 0.3},
            recipe={**SHARED, "steps": 15},
        ),
        "cifar10": Task(
            name="CIFAR-10",
            folder="CIFAR10",
            function="fedofa.benchmarks.cifar:cifar10",
            clients=20,
            space=CIFAR,
            budget_macs=2.4e12,
            test=cifar10_test,
            seeds=2,
            arguments={"alpha": 0.3},
            recipe={**SHARED, "steps": 20},
        ),
        "har": Task(
            name="GeoTec HAR",
            folder="HAR",
            function="fedofa.client.sensor_data:har",
            clients=18,
            space=HAR,
            budget_macs=4e11,
            test=har_test,
            seeds=3,
            recipe={**SHARED, "steps": 8},
        ),
    }
)
