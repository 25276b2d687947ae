"""CIFAR-10 for the accuracy benchmark, from a pack of JPEG files (benchmarks alone read it)."""

import io
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from fedofa.client.data import ClientData, Examples
from fedofa.client.partition import dirichlet, held_out
from fedofa.protos.manifest import Normalization
from fedofa.supernet.errors import UsageError
from numpy.typing import NDArray

TRAIN = 50_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SCALE = Normalization(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
VALIDATION_FRACTION = 0.2


def cifar10(
    root: str | None, *, client: int, clients: int, alpha: float = 0.5, seed: int = 0
) -> ClientData:
    """One client's part of the 50,000 training images; the folder holds cifar10_jpeg_pack.npz."""
    x, y = _decoded(root)
    mine = dirichlet(y[:TRAIN], clients, alpha, seed)[client]
    train, validation = held_out(len(mine), VALIDATION_FRACTION, seed + client)
    return ClientData(_take(x, y, mine[train]), _take(x, y, mine[validation]), CLASSES, SCALE)


def cifar10_test(root: str | None) -> Examples:
    """The 10,000 test images."""
    x, y = _decoded(root)
    return _take(x, y, np.arange(TRAIN, len(y)))


def _take(x: NDArray[np.uint8], y: NDArray[np.int64], rows: NDArray[np.int64]) -> Examples:
    return Examples(x[rows].astype(np.float32), y[rows])


@lru_cache(maxsize=1)
def _decoded(root: str | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    path = Path(root or os.devnull) / "cifar10_jpeg_pack.npz"
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give the folder that holds cifar10_jpeg_pack.npz")
    from PIL import Image

    with np.load(path, allow_pickle=False) as pack:
        data, offsets = pack["jpeg"].tobytes(), pack["offsets"]
        labels = pack["labels"].astype(np.int64)
    x = np.empty((len(labels), 3, 32, 32), np.uint8)
    for place in range(len(labels)):
        image = Image.open(io.BytesIO(data[offsets[place] : offsets[place + 1]])).convert("RGB")
        x[place] = np.asarray(image).transpose(2, 0, 1)
    return x, labels
