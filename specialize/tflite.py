"""TFLite export (litert-torch) and int8 quantization (ai-edge-quantizer) with given ranges."""

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..protos.inference import Ranges
from ..protos.manifest import TensorSpec
from ..protos.runtimes import silent_stderr
from ..supernet.errors import ExportError
from . import tflite_file, tflite_fit, tflite_recipe
from .ranges import with_width
from .scheme import FLOAT_BITS, INT8, QuantScheme, require, require_places


def export_tflite(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write a float32 file for a batch of one, input in the layout of `example` (1, …).

    The same module always gives the same bytes. ExportError when the converter refuses.
    """
    with quiet():
        import litert_torch

        try:
            converted = litert_torch.convert(module.eval(), (example,))
            converted.export(str(path))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise ExportError(f"TFLite export: {error}") from error
    path.write_bytes(tflite_file.packed(tflite_file.read(path.read_bytes())))


def quantize_tflite(source: Path, ranges: Ranges, target: Path, scheme: QuantScheme = INT8) -> None:
    """Write the quantized file of a float file; activations, if integers, per tensor, and I/O too.

    `ranges` are those of the file's activations; ExportError names a missing one, and a scheme that
    the runtime lacks.
    """
    require(scheme, "tflite")
    model = tflite_file.read(source.read_bytes())
    require_places(scheme, len(tflite_file.weight_layers(model)))
    missing = sorted(tflite_file.activations(model) - ranges.keys())
    if missing:
        raise ExportError(f"TFLite int8: no range for tensor {missing[0]}")
    fitted, static = with_width(ranges), scheme.activation_bits != FLOAT_BITS
    if scheme.activation_bits == tflite_fit.ACTIVATION_BITS:
        widths = tflite_recipe.layer_bits(model, scheme)
        fitted = tflite_fit.fit(model, fitted, tflite_recipe.steps(widths))
    with quiet():
        from ai_edge_quantizer import quantizer

        ranks = tflite_file.ranks(model)
        statistics = {
            name: {"min": _scalar(low, ranks[name]), "max": _scalar(high, ranks[name])}
            for name, (low, high) in fitted.items()
        }
        content = bytearray(tflite_file.packed(model))
        try:
            recipe = tflite_recipe.recipe(model, scheme)
            done = quantizer.Quantizer(content, recipe).quantize(statistics if static else None)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ExportError(f"TFLite int8: {error}") from error
    if done.quantized_model is None:
        raise ExportError("TFLite int8: the quantizer returned no model")
    target.write_bytes(tflite_file.packed(tflite_file.read(bytes(done.quantized_model))))


def kernel_sizes(source: Path) -> list[int]:
    """How many weights each of a file's convolutions and linear layers has, in order."""
    model = tflite_file.read(source.read_bytes())
    tensors = model.subgraphs[0].tensors
    layers = tflite_file.weight_layers(model)
    return [math.prod(tensors[operator.inputs[1]].shape) for operator in layers]


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


def _scalar(value: float, rank: int) -> Any:
    """As the quantizer takes it: a constant beside the tensor is quantized in the same steps."""
    return np.full((1,) * rank, value, dtype=np.float32)


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
