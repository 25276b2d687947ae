"""The built-in data functions: whose examples they are, and that nobody gets another's."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from fedofa.client.datasets import (
    digits,
    digits_reserved,
    digits_test,
    mnist,
    mnist_reserved,
    mnist_test,
)
from fedofa.client.partition import dirichlet
from fedofa.supernet.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(os.environ.get("FEDOFA_DATA", Path(__file__).parents[2] / "shared" / "data"))


def test_the_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    parts = [digits(client=c, clients=3) for c in range(3)]
    examples = [part for p in parts for part in (p.train, p.validation)] + [digits_test()]
    mine = sorted(
        (int(label), *image.ravel().tolist())
        for part in examples
        for image, label in zip(part.x, part.y, strict=True)
    )
    assert mine == sorted((int(label), *row.tolist()) for row, label in zip(x, y, strict=True))


def test_no_client_sees_a_held_out_example_whatever_the_split() -> None:
    held = {image.tobytes() for image in digits_test(seed=4).x}
    for client in range(5):
        mine = digits(client=client, clients=5, seed=4, alpha=0.1)
        seen = {image.tobytes() for part in (mine.train, mine.validation) for image in part.x}
        assert not seen & held


@given(st.integers(2, 1200), st.integers(0, 99))
@settings(max_examples=20)
def test_what_is_reserved_goes_to_the_server_and_to_nobody_else(reserved: int, seed: int) -> None:
    clients = [digits(client=c, clients=4, seed=seed, reserved=reserved) for c in range(4)]
    server = digits_reserved(reserved=reserved, seed=seed)
    assert (len(server.train), len(server.validation)) == (reserved, 0)
    parts = [part for data in (*clients, server) for part in (data.train, data.validation)]
    images = [image.tobytes() for part in (*parts, digits_test(seed=seed)) for image in part.x]
    assert sorted(images) == sorted(image.tobytes() for image in digits_all())


def digits_all() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)[0].astype(np.float32).reshape(-1, 1, 8, 8)


def test_no_more_can_be_reserved_than_there_is() -> None:
    with pytest.raises(UsageError, match="reserved = 1348; allowed: 0 to 1347"):
        digits(client=0, clients=2, reserved=1348)
    with pytest.raises(UsageError, match="reserved = -1"):
        digits_reserved(reserved=-1)


@given(st.integers(1, 12), st.floats(0.05, 50), st.integers(0, 2**32), st.integers(130, 300))
def test_a_dirichlet_split_gives_every_row_to_exactly_one_client(
    clients: int, alpha: float, seed: int, rows: int
) -> None:
    labels = np.arange(rows, dtype=np.int64) % 7
    parts = dirichlet(labels, clients, alpha, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert min(len(part) for part in parts) >= 10


def test_a_smaller_alpha_splits_more_unevenly() -> None:
    labels = np.arange(1000, dtype=np.int64) % 10

    def skew(alpha: float) -> float:
        parts = dirichlet(labels, 5, alpha, 0)
        counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
        return float(counts.std())

    assert skew(0.1) > skew(1.0) > skew(100.0)


def _write_idx(folder: Path, name: str, values: np.ndarray, *, zipped: bool) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
    content = header + values.tobytes()
    path = folder / (name + (".gz" if zipped else ""))
    path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read(tmp_path: Path, zipped: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        _write_idx(tmp_path, f"{part}-images-idx3-ubyte", images, zipped=zipped)
        _write_idx(tmp_path, f"{part}-labels-idx1-ubyte", labels, zipped=zipped)
    test = mnist_test(str(tmp_path))
    assert np.array_equal(test.x[:, 0], images.astype(np.float32))
    assert np.array_equal(test.y, labels)
    assert sum(len(p.train) + len(p.validation) for p in
               (mnist(str(tmp_path), client=c, clients=2) for c in range(2))) == 60  # fmt: skip
    server = mnist_reserved(str(tmp_path), reserved=15, seed=3).train
    mine = mnist(str(tmp_path), client=0, clients=1, reserved=15, seed=3)
    together = [server, mine.train, mine.validation]
    assert (len(server), sum(map(len, together))) == (15, 60)
    assert sorted(x.tobytes() for part in together for x in part.x) == sorted(
        image.astype(np.float32).tobytes() for image in images
    )


def test_a_folder_without_the_files_or_with_others_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no train-images-idx3-ubyte"):
        mnist(str(tmp_path), client=0, clients=1)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0" * 100)
    with pytest.raises(UsageError, match="not an IDX file"):
        mnist(str(tmp_path), client=0, clients=1)
    with pytest.raises(UsageError, match="--data-root"):
        mnist(None, client=0, clients=1)


@pytest.mark.skipif(
    not (DATA / "FashionMNIST").is_dir(), reason="no FashionMNIST in FEDOFA_DATA or ../shared/data"
)
def test_fashion_mnist_is_read_from_a_users_folder() -> None:
    test = mnist_test(str(DATA / "FashionMNIST" / "raw"))
    assert test.x.shape == (10_000, 1, 28, 28)
    assert np.bincount(test.y).tolist() == [1000] * 10
