"""Built-in data functions: scikit-learn's digits, and files in the IDX format of MNIST."""

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..protos.manifest import Normalization
from ..supernet.errors import UsageError
from .data import ClientData, Examples
from .partition import Rows, dirichlet, held_out, long_tail

TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.2
DIGITS = tuple(str(digit) for digit in range(10))
# Grey levels run from 0 to 16; fixed numbers, so that no device's data decide them.
DIGITS_SCALE = Normalization(mean=(8.0,), std=(8.0,))
GREY_SCALE = Normalization(mean=(127.5,), std=(127.5,))


def digits(
    root: str | None = None,
    *,
    client: int,
    clients: int,
    alpha: float = 0.5,
    seed: int = 0,
    reserved: int = 0,
) -> ClientData:
    """One client's part of scikit-learn's 8×8 digits (1,797 images, 10 classes).

    A quarter of the images, the same for every client, is held out and never given to any; so are
    `reserved` others, which are the server's.
    """
    everything = _digits()
    known, _ = _known_digits(everything, seed, reserved)
    mine = dirichlet(everything.y[known], clients, alpha, seed)[client]
    return _client(everything.take(known[mine]), DIGITS, DIGITS_SCALE, seed + client)


def digits_reserved(root: str | None = None, *, reserved: int, seed: int = 0) -> ClientData:
    """The digits that clients of the same seed and `reserved` leave to the server."""
    everything = _digits()
    _, kept_back = _known_digits(everything, seed, reserved)
    return _server(everything.take(kept_back), DIGITS, DIGITS_SCALE)


def digits_test(root: str | None = None, *, seed: int = 0) -> Examples:
    """The held-out quarter of the digits that no client of the same seed is given."""
    everything = _digits()
    return everything.take(held_out(len(everything), TEST_FRACTION, seed)[1])


def mnist(  # noqa: PLR0913 - one parameter an option
    root: str | None,
    *,
    client: int,
    clients: int,
    alpha: float = 0.5,
    seed: int = 0,
    tail: float = 1.0,
    reserved: int = 0,
) -> ClientData:
    """One client's part of MNIST or Fashion-MNIST: 28×28 images from IDX files in a folder.

    The folder holds train-images-idx3-ubyte and train-labels-idx1-ubyte, gzipped or not. With `tail`
    the classes are made long-tailed first: the last has so many times fewer images than the first.
    No client is given the `reserved` images of the server, which have no tail.
    """
    images, labels = _idx(_folder(root), "train")
    kept, _ = _reserving(len(labels), reserved, seed)
    if tail != 1:
        kept = kept[long_tail(labels[kept], tail, seed)]
    mine = kept[dirichlet(labels[kept], clients, alpha, seed)[client]]
    return _client(_grey(images[mine], labels[mine]), DIGITS, GREY_SCALE, seed + client)


def mnist_reserved(root: str | None, *, reserved: int, seed: int = 0) -> ClientData:
    """The images of the same folder that clients of the same seed and `reserved` leave to the server."""
    images, labels = _idx(_folder(root), "train")
    _, kept_back = _reserving(len(labels), reserved, seed)
    return _server(_grey(images[kept_back], labels[kept_back]), DIGITS, GREY_SCALE)


def mnist_test(root: str | None) -> Examples:
    """The 10,000 test images of the same folder (t10k files)."""
    return _grey(*_idx(_folder(root), "t10k"))


def _client(
    mine: Examples, classes: tuple[str, ...], scale: Normalization, seed: int
) -> ClientData:
    train, validation = held_out(len(mine), VALIDATION_FRACTION, seed)
    return ClientData(mine.take(train), mine.take(validation), classes, scale)


def _server(mine: Examples, classes: tuple[str, ...], scale: Normalization) -> ClientData:
    """All of it to learn from; what the server makes is measured on devices."""
    return ClientData(mine, mine.take(np.empty(0, np.int64)), classes, scale)


def _reserving(count: int, reserved: int, seed: int) -> tuple[Rows, Rows]:
    """(the clients', the server's) rows of `count`."""
    if not 0 <= reserved < count:
        raise UsageError(f"reserved = {reserved}; allowed: 0 to {count - 1}, of {count} examples")
    return held_out(count, reserved / count, seed)


def _known_digits(everything: Examples, seed: int, reserved: int) -> tuple[Rows, Rows]:
    """(the clients', the server's) rows of those digits that are not held out for the test."""
    known, _ = held_out(len(everything), TEST_FRACTION, seed)
    kept, kept_back = _reserving(len(known), reserved, seed)
    return known[kept], known[kept_back]


def _digits() -> Examples:
    # Only the file: importing the library costs every device 1.2 CPU seconds and 60 MB.
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise UsageError("the digits come with scikit-learn: pip install scikit-learn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return Examples(rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].astype(np.int64))


def _folder(root: str | None) -> Path:
    if root is None:
        raise UsageError("this data set is read from a folder: give it with --data-root")
    return Path(root)


@lru_cache(maxsize=2)
def _idx(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, H, W) and labels; kept, for a process that stands for many clients."""
    images = _idx_array(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels = _idx_array(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    return images, labels.astype(np.int64)


def _grey(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Examples:
    return Examples(images[:, None].astype(np.float32), labels)


def _idx_array(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            header = np.frombuffer(data, ">u4", count=1 + dimensions)
            if header[0] != 0x0800 + dimensions:
                raise UsageError(f"{path}: not an IDX file of {dimensions}-dimensional bytes")
            return np.frombuffer(data, np.uint8, offset=header.nbytes).reshape(header[1:])
    raise UsageError(f"{folder}: no {name} or {name}.gz there")
