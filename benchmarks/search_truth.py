"""Exhaustive truth for search methods: every subnet of a small space of a trained supernet, measured.

A supernet is trained by a federation on scikit-learn's digits, as the demo does; then each subnet
gets its norm statistics and is measured on the clients' validation examples, which methods may see,
and on the test part, which they may not.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedofa.client.data import ClientData, Examples
from fedofa.client.datasets import digits, digits_test
from fedofa.client.device import data as data_of
from fedofa.client.partition import held_out
from fedofa.protos.device import DataSource
from fedofa.server.config import parse_config
from fedofa.server.samplers.assigned import Assigned
from fedofa.supernet.axes import take
from fedofa.supernet.batchnorm import collect, load
from fedofa.supernet.cost import cost
from fedofa.supernet.families.mobilenet import MobileNetSpace, Stage
from fedofa.supernet.space import Arch, Gene, Space, Value, plain
from fedofa.supernet.subnet import static
from torch import Tensor

from .federation import Federation, fleet_of
from .subnet_accuracy import Pooled, pooled

SPACE = MobileNetSpace(
    classes=10,
    in_channels=1,
    resolutions=(8,),
    stem_widths=(4, 8),
    stages=(
        Stage(widths=(4, 8, 12), depths=(1,), expands=(1, 3), kernels=(3,), stride=2),
        Stage(widths=(8, 16, 24), depths=(1, 2), expands=(1, 3), kernels=(3,), stride=2),
    ),
    head_widths=(16, 32),
)
CLIENTS, ROUNDS = 6, 8
SHARES = (0.2, 0.5, 1.0)
"""Budgets of the device classes in training, in MACs of the largest subnet."""
VALIDATION_SHARE = 0.4
EVERYTHING = 10**6


@dataclass(frozen=True, slots=True)
class Truth:
    """Accuracies of one supernet's subnets, as fractions of right answers."""

    seed: int
    validation: dict[Arch, float]
    test: dict[Arch, float]
    examples: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Right answers per subnet, in the order of `every(SPACE)`."""
        return {
            "seed": self.seed,
            "examples": self.examples,
            "validation": [round(v * self.examples[0]) for v in self.validation.values()],
            "test": [round(v * self.examples[1]) for v in self.test.values()],
        }


def every(space: Space) -> Iterator[Arch]:
    """All architectures of a space, once each."""
    seen = set()
    names = [gene.name for gene in space.genes]
    for chosen in itertools.product(*(gene.options for gene in space.genes)):
        values = dict(zip(names, chosen, strict=True))
        arch = space.arch_of(_option_of(values))
        if arch not in seen:
            seen.add(arch)
            yield arch


def _option_of(values: Mapping[str, Value]) -> Callable[[Gene], Value]:
    return lambda gene: values[gene.name]


def digits_much_validation(
    root: str | None = None, *, client: int, clients: int, alpha: float = 0.5, seed: int = 0
) -> ClientData:
    """The digits with 40 % of each client's examples for validation: finer accuracies."""
    found = digits(root, client=client, clients=clients, alpha=alpha, seed=seed)
    x, y = (
        np.concatenate([getattr(part, name) for part in (found.train, found.validation)])
        for name in ("x", "y")
    )
    mine = Examples(x, y)
    train, validation = held_out(len(mine), VALIDATION_SHARE, seed + client)
    return replace(found, train=mine.take(train), validation=mine.take(validation))


def truth_of(seed: int) -> Truth:
    """Train a supernet with this seed's split and measure all of its subnets."""
    torch.set_num_threads(1)
    largest = cost(SPACE, SPACE.largest()).macs
    config = parse_config(_configuration(seed, largest))
    source = DataSource(
        "fedofa.benchmarks.search_truth:digits_much_validation",
        clients=CLIENTS,
        arguments={"seed": seed, "alpha": 1.0},
    )
    devices = fleet_of(source, list(config.classes))
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(config, devices, Path(folder))
        federation.train()
        weights = federation.training.weights
    clients = [data_of(device) for device in devices.values()]
    train, validation = (
        pooled([(c.normalized(part.x), part.y) for c, part in parts], EVERYTHING, seed)
        for parts in (
            [(c, c.train) for c in clients],
            [(c, c.validation) for c in clients],
        )
    )
    held = digits_test(seed=seed)
    test = Pooled(clients[0].normalized(held.x), held.y)
    seen, unseen = {}, {}
    for arch in every(SPACE):
        seen[arch], unseen[arch] = _measured(arch, weights, train, (validation, test))
    return Truth(seed, seen, unseen, (len(validation.y), len(test.y)))


def _measured(
    arch: Arch, weights: Mapping[str, Tensor], train: Pooled, parts: Sequence[Pooled]
) -> list[float]:
    """Shares of right answers; each part in one batch, the images are small."""
    module = static(SPACE, arch, take(weights, Assigned(arch).regions(SPACE)))
    load(module, collect(module, [torch.from_numpy(train.x)]))
    module.eval()
    with torch.inference_mode():
        return [
            float((module(torch.from_numpy(part.x)).argmax(1).numpy() == part.y).mean())
            for part in parts
        ]


def _configuration(seed: int, largest: int) -> dict[str, Any]:
    return {
        "name": "truth",
        "seed": seed,
        "space": plain(SPACE.to_dict()),
        "round": {"rounds": ROUNDS, "deadline_s": 1e7, "max_update_ratio": 1e6},
        "recipe": {
            "lr": 0.3,
            "epochs": 4,
            "batch_size": 32,
            "clip_norm": 1.0,
            "students": "sandwich",
        },
        "sampler": {"kind": "cover"},
        "server": {"optimizer": "none"},
        "classes": {f"c{at}": {"macs": round(s * largest)} for at, s in enumerate(SHARES)},
    }
