"""Files of every scheme against networks rounded in PyTorch, and refusals that name the way out."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.protos.inference import Floats, open_model
from fedofa.protos.manifest import FILE_NAMES, FLOATS, INTS
from fedofa.specialize import onnx_export, onnx_quantize, tflite, tflite_file, tflite_recipe
from fedofa.specialize.onnx_weights import rounded
from fedofa.specialize.quantizing import file_entry
from fedofa.specialize.scheme import INT8, QuantScheme, require
from fedofa.supernet.called_layers import called_layers
from fedofa.supernet.errors import ExportError, UsageError
from fedofa.supernet.fake_quant import quantized
from fedofa.supernet.folding import folded
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from toy_networks import FORMATS, digits, digits_files

TESTED = 200
DEPTHWISE = (0, 2, 7)
"""Of the digits network's twelve layers, in TFLite: a convolution over one channel is one, too."""


def made(form: str, scheme: QuantScheme, folder: Path) -> Path:
    files = digits_files()
    (entry,) = files.write(folder, FLOATS[form])  # type: ignore[arg-type]
    target = folder / FILE_NAMES[INTS[form]]
    quantize: Any = tflite.quantize_tflite if form == "tflite" else onnx_quantize.quantize_onnx
    quantize(folder / entry.name, files.ranges[form], target, scheme)
    return target


def run(form: str, path: Path, x: Floats) -> Floats:
    specs: Any = tflite.specs if form == "tflite" else onnx_export.specs
    return open_model(path, file_entry(INTS[form], path, specs(path))).run(x)


@cache
def layers_in_order() -> tuple[str, ...]:
    return tuple(called_layers(folded(digits_files().net), torch.from_numpy(digits().x[:1])))


def rounded_in_torch(widths: dict[int, int], x: Floats) -> Floats:
    net = folded(digits_files().net)
    for place, bits in widths.items():
        layer = net.get_submodule(layers_in_order()[place])
        layer.weight.data = quantized({"w": layer.weight.data}, bits)["w"]
    with torch.no_grad():
        found: Floats = net(torch.from_numpy(x)).numpy()
    return found


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("turn", [0, 1])
def test_layers_are_found_at_their_places_and_rounded_as_in_pytorch(
    form: str, turn: int, tmp_path: Path
) -> None:
    """Widths that change from layer to layer: only the right places and grids give these outputs."""
    x = digits().test_x[:20]
    widths = {place: (4, 32, 8)[(place + turn) % 3] for place in range(len(layers_in_order()))}
    scheme = QuantScheme(activation_bits=32, layers=widths)
    output = run(form, made(form, scheme, tmp_path), x)
    held = {
        place: 8 if form == "tflite" and place in DEPTHWISE and bits == 4 else bits
        for place, bits in widths.items()
    }
    np.testing.assert_allclose(output, rounded_in_torch(held, x), atol=2e-3)
    shifted = {place: held[(place + 1) % len(held)] for place in held}
    assert np.abs(rounded_in_torch(shifted, x) - output).max() > 0.1


def held_types(form: str, path: Path) -> list[int]:
    """The widths of the kernels in a file, in order."""
    if form == "tflite":
        model = tflite_file.read(path.read_bytes())
        bits = {0: 32, 9: 8, 17: 4}
        tensors = model.subgraphs[0].tensors
        made_by = {o.outputs[0]: o for o in model.subgraphs[0].operators}
        kernels = []
        for operator in model.subgraphs[0].operators:
            if tflite_file.code_of(model, operator) in tflite_file.CHANNEL_AXIS:
                at = operator.inputs[1]
                at = made_by[at].inputs[0] if at in made_by else at  # behind a DEQUANTIZE
                kernels.append(bits[tensors[at].type])
        return kernels
    import onnx

    graph = onnx.load(str(path)).graph
    types = {t.name: t.data_type for t in graph.initializer}
    before = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    bits = {1: 32, 3: 8, 2: 8, 21: 4, 22: 4}
    kernels = [n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    return [bits[types[before.get(kernel, kernel)]] for kernel in kernels]


ASYMMETRIC = {"weight_symmetric": False}
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {},
    "per tensor": {"per_channel": False},
    "symmetric activations": {"activation_symmetric": True},
    "4 bits": {"weight_bits": 4},
    "4 bits per tensor": {"weight_bits": 4, "per_channel": False},
    "16-bit activations": {"activation_bits": 16, "activation_symmetric": True},
    "4 and 16": {"weight_bits": 4, "activation_bits": 16, "activation_symmetric": True},
    "weights only": {"activation_bits": 32},
    "4-bit weights only": {"weight_bits": 4, "activation_bits": 32},
    "asymmetric weights only": {"activation_bits": 32, **ASYMMETRIC},
    "mixed": {"layers": {0: 32, 4: 4, 11: 4}},
    "mixed the other way": {"weight_bits": 4, "layers": {0: 8, 11: 32}},
}
ONNX_ONLY = {"asymmetric weights": ASYMMETRIC, "16 asymmetric": {"activation_bits": 16}}


@pytest.mark.parametrize(
    ("form", "name"),
    [*((form, name) for form in FORMATS for name in SCHEMES), *(("onnx", n) for n in ONNX_ONLY)],
)
def test_a_supported_scheme_runs_and_its_file_holds_what_it_says(
    form: str, name: str, tmp_path: Path
) -> None:
    scheme = QuantScheme(**{**SCHEMES, **ONNX_ONLY}[name])
    path = made(form, scheme, tmp_path)
    places = range(len(layers_in_order()))
    widths = [scheme.bits(place) for place in places]
    if form == "tflite":
        widths = [max(bits, 8) if at in DEPTHWISE else bits for at, bits in enumerate(widths)]
    assert held_types(form, path) == widths
    files, data = digits_files(), digits()
    x, labels = data.test_x[:TESTED], data.test_y[:TESTED]
    reference = (files.reference(x).argmax(1) == labels).mean()
    output = run(form, path, x)
    assert np.isfinite(output).all()
    lost = reference - (output.argmax(1) == labels).mean()
    assert lost <= (0.01 if min(widths) >= 8 else 0.06)
    if scheme == INT8:
        assert path.read_bytes() == files.contents[INTS[form]]  # type: ignore[index]
    else:
        assert path.read_bytes() != files.contents[INTS[form]]  # type: ignore[index]


@pytest.mark.parametrize(
    ("form", "fields", "message"),
    [
        ("tflite", ASYMMETRIC, "LiteRT: weight_symmetric = False.*weight_symmetric = true, or"),
        ("tflite", {"activation_bits": 16}, "LiteRT: activation_symmetric = False.*16-bit"),
        ("onnx", {**ASYMMETRIC, "activation_symmetric": True}, "ONNX Runtime: activation_symm"),
        ("tflite", {"weight_bits": 32}, "LiteRT: weight_bits = 32 beside activation_bits = 8"),
        ("onnx", {"weight_bits": 32}, "ONNX Runtime: weight_bits = 32 beside"),
        ("tflite", {"layers": {12: 4}}, "layers: 12; the network has the layers 0 to 11"),
        ("onnx", {"layers": {99: 4}}, "layers: 99; the network has the layers 0 to 11"),
    ],
)
def test_a_scheme_that_a_runtime_lacks_is_refused_with_the_way_out(
    form: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        made(form, QuantScheme(**fields), tmp_path)
    assert not (tmp_path / FILE_NAMES[INTS[form]]).exists()  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_bits": 2}, "weight_bits = 2; allowed: 32, 8, 4"),
        ({"weight_bits": 8.0}, "weight_bits = 8.0"),
        ({"activation_bits": 4}, "activation_bits = 4; allowed: 32, 16, 8"),
        ({"per_channel": 1}, "per_channel = 1; allowed: False, True"),
        ({"layers": {-1: 8}}, "layers: -1"),
        ({"layers": {0: 3}}, "layers: 0 = 3; allowed: 32, 8, 4"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantScheme(**fields)


def test_the_default_scheme_is_the_quantizers_own_recipe_for_int8() -> None:
    with tflite.quiet():
        from ai_edge_quantizer import recipe

    model = tflite_file.read(digits_files().contents["tflite_fp32"])
    assert tflite_recipe.recipe(model, INT8) == recipe.static_wi8_ai8()
    for form in FORMATS:
        require(INT8, form)  # type: ignore[arg-type]


kernels = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-100, 100, width=32),
)  # fmt: skip


@given(kernels, st.sampled_from([4, 8]), st.booleans(), st.sampled_from([0, 1, None]))
def test_integers_times_their_scale_are_within_half_a_step_of_the_weights(
    kernel: Floats, bits: int, symmetric: bool, axis: int | None
) -> None:
    steps, scale, zero = rounded(kernel, bits, axis, symmetric=symmetric)
    held = (steps - (0 if zero is None else zero)) * scale
    # A zero point is a whole step: it may move the ends by half a step more.
    slack = 0.5 if symmetric else 1.0
    assert (np.abs(held - kernel) <= slack * scale * (1 + 1e-5) + 1e-30).all()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert low <= steps.min()
    assert steps.max() <= high
    assert (held[kernel == 0] == 0).all()
    if symmetric and axis == 0:
        want = quantized({"w": torch.from_numpy(kernel)}, bits)["w"].numpy()
        np.testing.assert_allclose(held, want, rtol=1e-5, atol=1e-30)
