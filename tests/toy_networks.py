"""Small networks and their exported files, for tests of export and inference."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from fedofa.protos.inference import Floats, Ranges
from fedofa.protos.manifest import FILE_NAMES, FLOATS, INTS, FileEntry, FileKind
from fedofa.protos.observing import observe_ranges
from fedofa.specialize import onnx_export, onnx_quantize, tflite
from fedofa.specialize.export import Subnet
from fedofa.specialize.quantizing import file_entry
from fedofa.supernet.folding import folded
from fedofa.supernet.space import Arch, Space, plain
from fedofa.supernet.subnet import batch_norms
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

FORMATS = ("tflite", "onnx")
TEST_EXAMPLES = 400
Hidden = Literal["usual", "inactive", "weightless", "wide"]


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-and-excitation, project, skip."""

    def __init__(self, inside: int, outside: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        mid = 2 * inside
        self.skip = stride == 1 and inside == outside
        self.body = nn.Sequential(
            nn.Conv2d(inside, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            act(),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
            act(),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(mid, 8, 1), nn.ReLU(), nn.Conv2d(8, mid, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = nn.Sequential(
            nn.Conv2d(mid, outside, 1, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        y = self.project(y * self.gate(y))
        return x + y if self.skip else y


def conv_net() -> nn.Module:
    """3,600 parameters; (n, 1, 8, 8) to 10 logits; hard-swish, ReLU6, a stride, a skip."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        InvertedResidual(8, 16, 2, nn.ReLU6),
        InvertedResidual(16, 16, 1, nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def mlp(hidden: Hidden = "usual") -> nn.Module:
    """(n, 6) to 3 outputs; hidden units never active, some with a bias and no weights, or many."""
    torch.manual_seed(0)
    if hidden == "wide":
        return nn.Sequential(
            nn.Linear(6, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 3)
        )
    first = nn.Linear(6, 12)
    if hidden == "inactive":
        first.bias.data.fill_(-100.0)
    if hidden == "weightless":
        first.weight.data[2:6] = torch.tensor([[0.0], [1e-30], [1e-12], [1e-8]])
        first.bias.data[2:6] = 0.7
    return nn.Sequential(first, nn.ReLU(), nn.Linear(12, 3))


@dataclass(frozen=True)
class Digits:
    x: Floats
    y: NDArray[np.int64]
    test_x: Floats
    test_y: NDArray[np.int64]


@cache
def digits() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x = ((pixels[order] - 5.0) / 6.0).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels[order].astype(np.int64)
    at = TEST_EXAMPLES
    return Digits(x[at:], y[at:], x[:at], y[:at])


def trained_conv_net(epochs: int = 8) -> nn.Module:
    torch.manual_seed(0)
    net, data = conv_net(), digits()
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


@dataclass(frozen=True)
class Files:
    """A network's files. `ranges` are those that quantized them, by format."""

    net: nn.Module
    contents: dict[FileKind, bytes]
    entries: dict[FileKind, FileEntry]
    observable: dict[str, bytes]
    ranges: dict[str, Ranges]

    def write(self, folder: Path, *kinds: FileKind) -> list[FileEntry]:
        """Put the files (all, or these) into a folder."""
        for kind in kinds or self.contents:
            (folder / FILE_NAMES[kind]).write_bytes(self.contents[kind])
        return [self.entries[kind] for kind in kinds or self.contents]

    def reference(self, x: Floats) -> Floats:
        with torch.no_grad():
            found: Floats = self.net(torch.from_numpy(x)).numpy()
        return found


def export(net: nn.Module, example: Tensor, calibration: Floats) -> Files:
    """Both formats, float and int8, with the ranges of these inputs."""
    files = Files(net.eval(), {}, {}, {}, {})
    with tempfile.TemporaryDirectory() as name:
        for form in FORMATS:
            tool = tflite if form == "tflite" else onnx_export
            source, target = (Path(name) / FILE_NAMES[k] for k in (FLOATS[form], INTS[form]))
            if form == "tflite":
                tflite.export_tflite(folded(net), example, source)
                files.observable[form] = source.read_bytes()
            else:
                onnx_export.export_onnx(folded(net), example, source)
                files.observable[form] = onnx_export.observable(source)
            seen = observe_ranges(files.observable[form], FLOATS[form], calibration)
            files.ranges[form] = seen
            quantize(form, source, seen, target)
            for kind, path in ((FLOATS[form], source), (INTS[form], target)):
                files.contents[kind] = path.read_bytes()
                files.entries[kind] = file_entry(kind, path, tool.specs(path))
    return files


def quantize(form: str, source: Path, ranges: Ranges, target: Path) -> bytes:
    if form == "tflite":
        tflite.quantize_tflite(source, ranges, target)
    else:
        onnx_quantize.quantize_onnx(source, ranges, target)
    return target.read_bytes()


@cache
def digits_files() -> Files:
    """The trained conv net's."""
    return export(trained_conv_net(), torch.zeros(1, 1, 8, 8), digits().x[:256])


def mlp_inputs(n: int = 64, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


@cache
def mlp_files(hidden: Hidden = "usual") -> Files:
    return export(mlp(hidden), torch.zeros(1, 6), mlp_inputs())


def fresh_subnet(space: Space, arch: Arch, seed: int) -> Subnet:
    """Random weights and norm statistics: equal ones would be written once."""
    torch.manual_seed(seed)
    module = space.build(arch)
    parts = [p.detach().numpy().ravel() for p in module.parameters()]
    rng = np.random.default_rng(seed)
    for layer in batch_norms(module).values():
        parts += [rng.normal(size=layer.num_features), rng.uniform(1, 2, layer.num_features)]
    return Subnet(plain(space.to_dict()), dict(arch), np.concatenate(parts).astype(np.float32))
