"""A subnet's quantized files, of its float files in a folder and what devices saw in them."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..protos.inference import Ranges
from ..protos.manifest import FILE_NAMES, FLOATS, INT4S, INTS, FileEntry, FileKind, TensorSpec
from ..supernet.errors import ExportError
from ..supernet.fake_quant import least_bits
from .scheme import FLOAT_BITS, NARROW, WIDE, QuantScheme

ROUNDED = "rounded"
"""A folder beside the files, with the float files that those of few bits are made of."""


@dataclass(frozen=True, slots=True)
class FewBits:
    """What files of 4 bits are made with: per format the ranges of the activations.

    `widths`, where kernels are not all to have 4, are the number of weights and the bits of each, in the
    order in which the network runs them. Kernels over one channel keep 8 in any case.
    """

    ranges: Mapping[str, Ranges]
    widths: tuple[tuple[int, int], ...] = ()

    def layers(self, sizes: Sequence[int]) -> Mapping[int, int]:
        """The places of the kernels that have 8 bits in a file whose kernels have these sizes.

        ExportError where they are not the network's: then it is not known which is which.
        """
        if self.widths and list(sizes) != [count for count, _ in self.widths]:
            raise ExportError(
                "the file's layers are not in the network's order, so they cannot have bits of their "
                "own; leave out export.int4_bytes"
            )
        return {place: bits for place, (_, bits) in enumerate(self.widths) if bits != NARROW}


def quantize(folder: Path, ranges: Mapping[str, Ranges]) -> list[FileEntry]:
    """Write the int8 files beside the float files (format → ranges); entries of all files."""
    from . import onnx_export, onnx_quantize, tflite

    entries = []
    for form, found in ranges.items():
        source, target = folder / FILE_NAMES[FLOATS[form]], folder / FILE_NAMES[INTS[form]]
        tool = tflite if form == "tflite" else onnx_export
        if form == "tflite":
            tflite.quantize_tflite(source, found, target)
        else:
            onnx_quantize.quantize_onnx(source, found, target)
        for kind, path in ((INTS[form], target), (FLOATS[form], source)):
            entries.append(file_entry(kind, path, tool.specs(path)))
    return entries


def quantize_few(folder: Path, few: FewBits) -> list[FileEntry]:
    """Write the 4-bit files of the float files in `folder`/rounded; these are removed.

    TFLite files have 8-bit activations, ONNX files float ones, each as its runtime is able to.
    """
    from . import onnx_export, onnx_quantize, tflite

    entries = []
    for form, ranges in few.ranges.items():
        kind = INT4S[form]
        source, target = folder / ROUNDED / FILE_NAMES[FLOATS[form]], folder / FILE_NAMES[kind]
        if form == "tflite":
            scheme = QuantScheme(NARROW, layers=few.layers(tflite.kernel_sizes(source)))
            tflite.quantize_tflite(source, ranges, target, scheme)
            entries.append(file_entry(kind, target, tflite.specs(target)))
            continue
        shapes = onnx_quantize.kernel_shapes(source)
        wide = {at: WIDE for at, shape in enumerate(shapes) if least_bits(shape) == WIDE}
        layers = {**few.layers([math.prod(shape) for shape in shapes]), **wide}
        scheme = QuantScheme(NARROW, activation_bits=FLOAT_BITS, layers=layers)
        onnx_quantize.quantize_onnx(source, ranges, target, scheme)
        entries.append(file_entry(kind, target, onnx_export.specs(target)))
    shutil.rmtree(folder / ROUNDED)
    return entries


def input_range(folder: Path, found: Mapping[str, Ranges]) -> tuple[float, float]:
    """That of the network's input, of the first format; `folder` has the float files."""
    from . import onnx_export, tflite

    form, ranges = next(iter(found.items()))
    tool = tflite if form == "tflite" else onnx_export
    return ranges[tool.specs(folder / FILE_NAMES[FLOATS[form]])[0].name]


def file_entry(kind: FileKind, path: Path, specs: tuple[TensorSpec, TensorSpec]) -> FileEntry:
    """A file's entry for the manifest."""
    content = path.read_bytes()
    return FileEntry(
        kind=kind,
        name=path.name,
        size_bytes=len(content),
        sha256=sha256(content).hexdigest(),
        inputs=(specs[0],),
        outputs=(specs[1],),
    )
