"""TFLite export (litert-torch) and int8 quantization (ai-edge-quantizer) with given ranges."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..protos.inference import ACTIVATION, Ranges
from ..protos.manifest import TensorSpec
from ..protos.runtimes import silent_stderr
from ..supernet.errors import ExportError

DATA_ALIGNMENT = 16


def export_tflite(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write a float32 file for a batch of one, input in the layout of `example` (1, …).

    Tensors get short names (activations a0, a1, …), as names make up much of a small file. The
    same module always gives the same bytes. ExportError when the converter refuses.
    """
    with quiet():
        import litert_torch

        try:
            converted = litert_torch.convert(module.eval(), (example,))
            converted.export(str(path))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise ExportError(f"TFLite export: {error}") from error
    model = _read(path.read_bytes())
    _shorten(model)
    path.write_bytes(_packed(model))


def quantize_tflite(source: Path, ranges: Ranges, target: Path) -> None:
    """Write the int8 file of a float file: weights per channel, activations per tensor, int8 I/O.

    `ranges` are those of the file's activations; ExportError names a missing one.
    """
    missing = sorted(_activations(_read(source.read_bytes())) - ranges.keys())
    if missing:
        raise ExportError(f"TFLite int8: no range for tensor {missing[0]}")
    with quiet():
        from ai_edge_quantizer import quantizer, recipe

        statistics = {
            name: {"min": _scalar(low), "max": _scalar(high)}
            for name, (low, high) in ranges.items()
        }
        try:
            done = quantizer.Quantizer(str(source), recipe.static_wi8_ai8()).quantize(statistics)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ExportError(f"TFLite int8: {error}") from error
        if done.quantized_model is None:
            raise ExportError("TFLite int8: the quantizer returned no model")
        model = _read(bytes(done.quantized_model))
    _shorten(model)
    target.write_bytes(_packed(model))


def specs(path: Path) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of a file, as it states them."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    return _spec(interpreter.get_input_details()[0]), _spec(interpreter.get_output_details()[0])


def _spec(detail: dict[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    dtype = np.dtype(detail["dtype"]).name
    quantized = dtype != "float32"
    return TensorSpec(
        name=detail["name"],
        shape=tuple(int(size) for size in detail["shape"]),
        dtype=dtype,
        scale=float(scale) if quantized else None,
        zero_point=int(zero_point) if quantized else None,
    )


def _scalar(value: float) -> Any:
    return np.full((1, 1, 1, 1), value, dtype=np.float32)


def _read(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(content, 0)


def _packed(model: Any) -> bytes:
    builder = _sharing_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _sharing_builder() -> Any:
    """A FlatBuffers builder that writes equal vectors once and aligns tensor data.

    Zero points alone would be a sixth of an int8 file: 8 bytes per channel, all 0, written twice
    per layer. The format asks for tensor data at multiples of 16 bytes (`force_align`), which
    flatbuffers' Python writer does not do by itself; processors without unaligned loads need it.
    """
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1024)
            self._written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802
            key = x.dtype.str, x.tobytes()
            if key not in self._written:
                if x.dtype == np.uint8:
                    self.Prep(DATA_ALIGNMENT, x.nbytes)
                self._written[key] = super().CreateNumpyVector(x)
            return self._written[key]

    return SharingBuilder()


def _shorten(model: Any) -> None:
    """Name activations a<i> and constants c<i>; drop what no runtime needs."""
    graph = model.subgraphs[0]
    for place, tensor in enumerate(graph.tensors):
        constant = model.buffers[tensor.buffer].data is not None
        tensor.name = f"{'c' if constant else ACTIVATION}{place}".encode()
    graph.name = model.description = b""
    model.metadata, model.metadataBuffer = None, None
    _share_empty_buffer(graph, model)


def _share_empty_buffer(graph: Any, model: Any) -> None:
    """Give every tensor without data buffer 0, which the format keeps empty for that."""
    kept = model.buffers[:1]
    for tensor in graph.tensors:
        buffer = model.buffers[tensor.buffer]
        tensor.buffer = 0 if buffer.data is None else len(kept)
        if buffer.data is not None:
            kept.append(buffer)
    model.buffers = kept


def _activations(model: Any) -> set[str]:
    floats = (
        tensor
        for tensor in model.subgraphs[0].tensors
        if model.buffers[tensor.buffer].data is None and tensor.type == 0
    )
    return {tensor.name.decode() for tensor in floats}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' progress, notices and deprecation warnings off the terminal.

    Their errors are exceptions; what they print tells our user nothing he could act on.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(io.StringIO()), silent_stderr():
                yield
    finally:
        logging.disable(before)
