"""A torchvision model becomes a supernet, starts from trained weights, and is trained by a fleet.

    FEDOFA_MODULES=torchvision.models python examples/torchvision_supernet.py [WEIGHTS]

WEIGHTS is a file of torchvision's own weights for MobileNetV2 (`torch.save` of a `state_dict()`; its
classifier for 1000 classes is left out). Without it the model is trained a little right here, on
scikit-learn's digits, made 32×32 pixels and three channels: no download.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedofa.client import datasets
from fedofa.client.data import ClientData, Examples
from fedofa.protos.manifest import Normalization
from fedofa.server.checkpoint import CheckpointStore
from fedofa.server.config import parse_config
from fedofa.server.events import EventLog, read_events
from fedofa.server.jobs import CHECKPOINTS, EVENTS, Job
from fedofa.server.simulate import simulate
from fedofa.server.training import Training
from fedofa.supernet.axes import Weights
from fedofa.supernet.cost import cost
from fedofa.supernet.reorder import reorder
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import extract, on_views
from fedofa.supernet.warm_start import warm_start
from fedofa.supernet.weights import initial
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

CONFIG: dict[str, Any] = {
    "name": "torchvision",
    "space": {
        "family": "declared",
        "module": "torchvision.models:mobilenet_v2",
        "input_size": [3, 32, 32],
        "arguments": {"num_classes": 10, "dropout": 0.0},
        "widths": {
            # The inner width of each inverted residual on its own; what runs between them together.
            "features.*.conv.0.0": [0.5, 0.75, 1.0],
            "*": {"options": [0.5, 1.0], "gene": "width"},
        },
        "depths": {
            "stage3": ["features.5", "features.6"],
            "stage4": ["features.8", "features.9", "features.10"],
            "stage5": ["features.12", "features.13"],
            "stage6": ["features.15", "features.16"],
        },
    },
    "round": {"rounds": 2, "deadline_s": 600.0},
    "recipe": {"steps": 8, "batch_size": 32, "lr": 0.02},
    "classes": {"phone": {}, "micro": {"macs": 2_000_000}},
    "simulation": {"data": "torchvision_supernet:load", "clients": {"phone": 1, "micro": 2}},
}


def load(root: str | None, *, client: int, clients: int) -> ClientData:
    """The digits of one client, in three channels; the space's resolution is made of them later."""
    part = datasets.digits(root, client=client, clients=clients, alpha=5.0)
    grey = Normalization(mean=(8.0,) * 3, std=(8.0,) * 3)
    return ClientData(_coloured(part.train), _coloured(part.validation), part.classes, grey)


def _coloured(examples: Examples) -> Examples:
    return Examples(np.repeat(examples.x, 3, axis=1), examples.y)


def _batch(examples: Examples) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy((_coloured(examples).x - 8.0) / 8.0)
    return interpolate(x, size=(32, 32), mode="bilinear"), torch.from_numpy(examples.y)


def trained_here(space: Space, steps: int = 60) -> Weights:
    """Weights of the largest network after a few steps, as if they came from elsewhere."""
    part = datasets.digits(client=0, clients=1)
    x, y = _batch(part.train)
    weights = {name: value.requires_grad_() for name, value in initial(space, 0).items()}
    forward = on_views(space, space.largest(), weights)
    optimizer = torch.optim.SGD(weights.values(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,), generator=order)
        optimizer.zero_grad()
        cross_entropy(forward(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value.detach() for name, value in weights.items()}


def accuracy(space: Space, arch: Arch, weights: Mapping[str, Tensor]) -> float:
    """Of one subnet on held-out digits, normalized by their own statistics."""
    x, y = _batch(datasets.digits_test())
    module = extract(space, arch, weights).train()
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def main(path: str | None) -> None:
    """Declare, start, sort, train."""
    config = parse_config(CONFIG)
    space = config.build_space()
    print(f"{len(space.genes)} genes; MACs of the smallest and largest subnet:")
    print([cost(space, arch).macs for arch in (space.smallest(), space.largest())])

    source = torch.load(path, weights_only=True) if path else trained_here(space)
    start = warm_start(space, source, fresh=["classifier.*"] if path else [])
    ordered = reorder(space, start.weights)
    half = space.arch({**space.largest(), "width": 0.5})
    for name, arch in (("largest", space.largest()), ("half as wide", half)):
        before, after = (accuracy(space, arch, w) for w in (start.weights, ordered.weights))
        print(f"{name}: accuracy {before:.3f}, with sorted channels {after:.3f}")

    folder = Path(tempfile.mkdtemp(prefix="torchvision-supernet-"))
    training = Training(
        config, space, CheckpointStore(folder / CHECKPOINTS), EventLog(folder / EVENTS)
    )
    training.weights = ordered.weights
    training.checkpoint()  # a run goes on from a checkpoint: here, of round 0
    simulate(Job("train", str(folder), CONFIG, resume=True))
    for event, _ in read_events(folder / EVENTS):
        if event["event"] == "round":
            print(f"round {event['round']}: loss {event['loss']:.3f}")
    print(f"checkpoints in {folder}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1] if len(sys.argv) > 1 else None)
