"""The file-size model against exported files."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from fedofa.protos.manifest import FILE_NAMES, FLOATS, FileKind
from fedofa.protos.observing import observe_ranges
from fedofa.specialize.export import export_floats
from fedofa.specialize.filesize import OVERHEAD, predicted_size_bytes
from fedofa.specialize.quantizing import ROUNDED, FewBits, quantize, quantize_few
from fedofa.supernet.cost import LayerPlan
from fedofa.supernet.space import Arch, Space
from strategies import DIGITS, SMALL
from toy_networks import fresh_subnet


def check(space: Space, arch: Arch, folder: Path, seed: int = 0) -> None:
    exported = export_floats(fresh_subnet(space, arch, seed), ("tflite", "onnx"), folder)
    x = np.random.default_rng(seed).normal(size=(2, *exported.input_shape)).astype(np.float32)
    ranges = {f: observe_ranges(c, FLOATS[f], x) for f, c in exported.observable.items()}
    (folder / ROUNDED).mkdir()
    for kind in FLOATS.values():
        shutil.copy(folder / FILE_NAMES[kind], folder / ROUNDED)
    entries = [*quantize(folder, ranges), *quantize_few(folder, FewBits(ranges))]
    assert {entry.kind for entry in entries} == set(FILE_NAMES)
    for entry in entries:
        predicted = predicted_size_bytes(entry.kind, space.layers(arch))
        assert predicted == pytest.approx(entry.size_bytes, rel=0.05), entry.kind


@pytest.mark.parametrize(
    "space",
    [pytest.param(DIGITS, id="digits"), pytest.param(SMALL, id="small", marks=pytest.mark.slow)],
)
def test_the_predicted_size_is_within_5_percent_of_the_files(space: Space, tmp_path: Path) -> None:
    check(space, space.smallest(), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_predicted_size_is_within_5_percent_for_50_random_architectures(tmp_path: Path) -> None:
    rng = random.Random(2)
    for seed in range(50):
        space = (DIGITS, SMALL)[seed % 2]
        check(space, space.sample(rng), tmp_path, seed)


def plan(
    pixels: int, stride: int = 1, kernel: int = 3, out: int = 4, *, bias: bool = False
) -> LayerPlan:
    after = -(-pixels // stride)
    return LayerPlan(
        "x", "conv", out, 2, kernel**2, 2 * pixels**2, out * after**2, bias=bias, norm=not bias
    )


@pytest.mark.parametrize("kind", list(OVERHEAD))
def test_more_weights_channels_or_layers_never_make_a_file_smaller(kind: FileKind) -> None:
    few = predicted_size_bytes(kind, [plan(8)])
    for more in ([plan(8, kernel=5)], [plan(8, out=5)], [plan(8), plan(8)]):
        assert predicted_size_bytes(kind, more) > few


def test_a_stride_over_an_even_number_of_pixels_costs_tflite_a_padding() -> None:
    pad = OVERHEAD["tflite_int8"].pad
    sizes = [predicted_size_bytes("tflite_int8", [plan(n, s)]) for n, s in ((8, 1), (7, 2), (8, 2))]
    assert sizes == [sizes[0], sizes[0], sizes[0] + pad]
