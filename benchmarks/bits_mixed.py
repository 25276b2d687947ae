"""Mixed precision under a size budget against one width for all layers, in files that are run."""

import tempfile
from collections.abc import Mapping
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedofa.protos.calibration import Calibration
from fedofa.protos.observing import observe_histograms
from fedofa.specialize import tflite
from fedofa.specialize.estimators import estimated
from fedofa.specialize.mixed import cheapest, measured_options
from fedofa.specialize.quantizing import file_entry
from fedofa.specialize.scheme import QuantScheme
from fedofa.specialize.verify import outputs_in_fresh_process
from fedofa.supernet.called_layers import called_layers
from fedofa.supernet.fake_quant import quantized
from fedofa.supernet.folding import folded
from fedofa.supernet.space import Arch
from torch import Tensor

from .bits_subnets import Measurable

Record = dict[str, Any]
WIDTHS = (8, 4)
SHARES = (1.0, 0.85, 0.7, 0.55, 0.5)
"""Of the bytes of the weights in 8 bits; the last leaves no choice."""


def mixed_rows(on: Measurable, arch: Arch) -> list[Record]:
    """Per share of the bytes: the plan of least measured likelihood, exported, run and compared."""
    example = torch.zeros(1, *on.space.input_shape(arch))
    layers = called_layers(on.module(arch), example)
    names = [f"{name}.weight" for name in layers]
    options = measured_options(
        [layer.weight.numel() for layer in layers.values()],
        WIDTHS,
        lambda widths: _nll(on, arch, {names[place]: bits for place, bits in widths.items()}),
    )
    most = sum(layer.weight.numel() for layer in layers.values())
    rows = []
    for share in SHARES:
        plan = cheapest(options, int(share * most) + len(names))
        widths = {names[place]: bits for place, bits in enumerate(plan.bits)}
        made = _file(on, arch, widths, plan.layers(8))
        rows.append({"method": f"mixed, {share:g} of the bytes", "widths": plan.bits, **made})
    return rows


def _rounded(widths: Mapping[str, int], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    held = {name: quantized({name: weights[name]}, bits)[name] for name, bits in widths.items()}
    return {**weights, **held}


def _nll(on: Measurable, arch: Arch, widths: Mapping[str, int]) -> float:
    """On the examples that norm statistics are measured with, these being of the rounded weights."""
    module = on.module(arch, lambda weights: _rounded(widths, weights))
    with torch.no_grad():
        logits = module(torch.from_numpy(on.inputs(arch, on.statistics.x))).numpy()
    return Calibration.of(logits, on.statistics.y).nll


def _file(
    on: Measurable, arch: Arch, widths: Mapping[str, int], layers: Mapping[int, int]
) -> Record:
    module = folded(on.module(arch, lambda weights: _rounded(widths, weights)))
    example = torch.zeros(1, *on.space.input_shape(arch))
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "float", Path(name) / "model.int8.tflite"
        tflite.export_tflite(module, example, source)
        content = source.read_bytes()
        parts = [
            observe_histograms(content, "tflite_fp32", on.inputs(arch, part), 64)
            for part in on.parts
        ]
        seen = {tensor: reduce(add, (part[tensor] for part in parts)) for tensor in parts[0]}
        scheme = QuantScheme(layers=layers)
        tflite.quantize_tflite(source, estimated(seen, "minmax"), target, scheme)
        entry = file_entry("tflite_int8", target, tflite.specs(target))
        x = on.inputs(arch, on.test.x)
        output = outputs_in_fresh_process(Path(name), [entry], x)["tflite_int8"]
        size_bytes = target.stat().st_size
    return {
        "size_bytes": size_bytes,
        "accuracy": float(np.mean(output.argmax(1) == on.test.y)),
    }
