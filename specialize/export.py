"""Exporting one subnet: float files, then quantized files, each step in a process of its own."""

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ..protos.inference import Ranges
from ..protos.manifest import FILE_NAMES, FLOATS, BareFile, FileEntry
from ..protos.subnets import set_statistics
from ..protos.trainable import TRAINABLE_NAME
from ..supernet.axes import regions
from ..supernet.families.catalogue import space_from_dict
from ..supernet.folding import folded
from ..supernet.space import Value
from ..supernet.subnet import static
from ..supernet.weights import Flat, shapes_of, size_of, split
from .adjust import AS_TRAINED, Adjustment, adjusted
from .equalize import equalized
from .fork_server import Call
from .placing import trainable_of
from .quantizing import ROUNDED, FewBits, input_range, quantize, quantize_few


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet as a worker gets it: plain values, no modules.

    `values` holds the weights, then mean and variance of each norm layer. The files are to give its
    logits with the adjustment; `equalize` scales channels on the way, which changes no output.
    """

    space: Mapping[str, object]
    arch: Mapping[str, Value]
    values: Flat
    adjustment: Adjustment = AS_TRAINED
    equalize: bool = False


@dataclass(frozen=True, slots=True)
class FloatExport:
    """What the first step gives: per format the float file, and the bytes to observe."""

    input_shape: tuple[int, ...]
    observable: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Completed:
    """What the second step gives: entries of all files to run, and of the one to train on.

    `input_range` is that of the network's input. `why_not` says why there is no file to train on, where
    one was asked for.
    """

    entries: list[FileEntry]
    input_range: tuple[float, float]
    trainable: BareFile | None = None
    why_not: str = ""


def preload_tflite() -> None:
    """Import what exports of TFLite files need, and start no thread: see `fork_server`.

    A missing package is reported by the export itself.
    """
    torch.set_num_threads(1)
    _import("litert_torch", "torch.export._trace", "sympy.tensor.tensor", "scipy.cluster.vq")


def preload_rest() -> None:
    """Import what all else needs; not onnxruntime, which would start a thread."""
    torch_ops = "onnxscript.function_libs.torch_lib.ops"
    _import("onnx", "onnxscript.optimizer", torch_ops, "ai_edge_quantizer")


PRELOADS = (preload_tflite, preload_rest)
"""For a fork server. In two parts, since the longest step, the export of a TFLite file, needs but the first.

Among them is what converters import when they are first called, hundreds of modules: each call would anew.
"""


def _import(*names: str) -> None:
    from .tflite import quiet

    with quiet():
        for name in names:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def module_of(subnet: Subnet) -> torch.nn.Module:
    """The subnet as a module in evaluation mode, its logits adjusted."""
    space = space_from_dict(subnet.space)
    arch = space.arch(subnet.arch)
    shapes = shapes_of(regions(space, arch))
    values = subnet.values.copy()
    module = static(space, arch, split(values[: size_of(shapes)], shapes)).eval()
    set_statistics(module, values, size_of(shapes))
    return adjusted(module, torch.zeros(1, *space.input_shape(arch)), subnet.adjustment)


def export_floats(subnet: Subnet, formats: Sequence[str], folder: Path) -> FloatExport:
    """Write the float files into a folder; ExportError when a converter refuses."""
    from . import onnx_export, tflite

    space = space_from_dict(subnet.space)
    shape = space.input_shape(space.arch(subnet.arch))
    module, example = _ready(subnet), torch.zeros(1, *shape)
    folder.mkdir(parents=True, exist_ok=True)
    observable = {}
    for form in formats:
        path = folder / FILE_NAMES[FLOATS[form]]
        if form == "tflite":
            tflite.export_tflite(module, example, path)
            observable[form] = path.read_bytes()
        else:
            onnx_export.export_onnx(module, example, path)
            observable[form] = onnx_export.observable(path)
    return FloatExport(shape, observable)


def float_calls(subnet: Subnet, formats: Sequence[str], folder: Path) -> list[Call]:
    """`export_floats` as one call a format, to run side by side; see `together`."""
    return [
        Call(export_floats, (subnet, (form,), folder), needs=1 if form == "tflite" else None)
        for form in formats
    ]


def together(parts: Sequence[FloatExport]) -> FloatExport:
    """What the calls of one subnet gave."""
    observable = {form: content for part in parts for form, content in part.observable.items()}
    return FloatExport(parts[0].input_shape, observable)


def complete(
    subnet: Subnet, folder: Path, ranges: Mapping[str, Ranges], *, trainable: bool = True
) -> Completed:
    """`quantize`, and write beside the files what a device needs to train the subnet further.

    A network for which that fails is a model all the same, without it.
    """
    span, entries = input_range(folder, ranges), quantize(folder, ranges)
    if not trainable:
        return Completed(entries, span)
    try:
        content = trainable_of(_ready(subnet), entries, folder).to_bytes()
    except Exception as error:  # noqa: BLE001 - told, and the files are as good without
        said = " ".join(str(error).split())
        told = f"{type(error).__name__}: {said[:300]}"
        return Completed(entries, span, why_not=told)
    (folder / TRAINABLE_NAME).write_bytes(content)
    bare = BareFile(
        name=TRAINABLE_NAME, size_bytes=len(content), sha256=sha256(content).hexdigest()
    )
    return Completed(entries, span, bare)


def complete_few(folder: Path, few: FewBits) -> Completed:
    """`quantize_few`; such files cannot be trained further."""
    span = input_range(folder / ROUNDED, few.ranges)
    return Completed(quantize_few(folder, few), span)


def _ready(subnet: Subnet) -> torch.nn.Module:
    """The subnet as its files hold it.

    Activations write into arrays of their own: torch's exporter replaces those that overwrite their
    input by their definitions, operation by operation, which takes as long as the rest of an export.
    """
    module = folded(module_of(subnet))
    layer: Any
    for layer in module.modules():
        if getattr(layer, "inplace", False) is True:
            layer.inplace = False
    return equalized(module).module if subnet.equalize else module
