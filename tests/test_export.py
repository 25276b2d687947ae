"""Exported files against the networks they come from: floats, int8, refusals, bytes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fedofa.protos.inference import open_model
from fedofa.protos.manifest import FILE_NAMES, FLOATS, INTS, FileKind
from fedofa.protos.observing import observe_ranges
from fedofa.specialize import onnx_export, tflite, verify
from fedofa.specialize.export import export_floats, float_calls, module_of, together
from fedofa.specialize.ranges import merge
from fedofa.supernet.errors import ExportError
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.folding import folded
from torch import nn
from toy_networks import (
    FORMATS,
    Hidden,
    conv_net,
    digits,
    digits_files,
    export,
    fresh_subnet,
    mlp_files,
    mlp_inputs,
    quantize,
)

FLOAT_KINDS: tuple[FileKind, ...] = ("tflite_fp32", "onnx_fp32")
INT_KINDS: tuple[FileKind, ...] = ("tflite_int8", "onnx_int8")


def broken_norm_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.BatchNorm2d(2))


@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_a_float_file_gives_the_outputs_of_its_network(kind: FileKind, tmp_path: Path) -> None:
    for files, x in ((digits_files(), digits().test_x), (mlp_files(), mlp_inputs(50, seed=1))):
        (entry,) = files.write(tmp_path, kind)
        output = open_model(tmp_path / entry.name, entry).run(x)
        np.testing.assert_allclose(output, files.reference(x), atol=1e-4)


@pytest.mark.parametrize("kind", INT_KINDS)
def test_int8_keeps_the_accuracy_within_one_point(kind: FileKind, tmp_path: Path) -> None:
    files, data = digits_files(), digits()
    (entry,) = files.write(tmp_path, kind)
    reference = (files.reference(data.test_x).argmax(1) == data.test_y).mean()
    output = open_model(tmp_path / entry.name, entry).run(data.test_x)
    assert reference > 0.9
    assert (output.argmax(1) == data.test_y).mean() >= reference - 0.01


@pytest.mark.parametrize("form", FORMATS)
def test_ranges_merged_from_devices_give_the_same_int8_file_as_pooled_ones(
    form: str, tmp_path: Path
) -> None:
    files, x = digits_files(), digits().x[:256]
    kind = FLOATS[form]
    parts = [
        observe_ranges(files.observable[form], kind, x[begin:end])
        for begin, end in ((0, 1), (1, 90), (90, 91), (91, 256))
    ]
    assert merge(parts) == files.ranges[form] != parts[1]
    (entry,) = files.write(tmp_path, kind)
    merged = quantize(form, tmp_path / entry.name, merge(parts), tmp_path / "merged")
    assert merged == files.contents[INTS[form]]
    narrower = quantize(form, tmp_path / entry.name, parts[1], tmp_path / "narrower")
    assert narrower != merged


@pytest.mark.parametrize("form", FORMATS)
def test_every_activation_of_an_int8_file_is_observed_and_a_missing_one_named(
    form: str, tmp_path: Path
) -> None:
    files = mlp_files()
    (entry,) = files.write(tmp_path, FLOATS[form])
    for name in files.ranges[form]:
        rest = {other: found for other, found in files.ranges[form].items() if other != name}
        with pytest.raises(ExportError, match=f"no range for tensor {name}"):
            quantize(form, tmp_path / entry.name, rest, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("hidden", ["inactive", "weightless"])
def test_layers_that_are_never_active_and_channels_without_weights_do_not_spoil_int8(
    hidden: Hidden, form: str, tmp_path: Path
) -> None:
    files, x = mlp_files(hidden), mlp_inputs()
    assert ((0.0, 0.0) in files.ranges[form].values()) == (hidden == "inactive")
    (entry,) = files.write(tmp_path, INTS[form])
    output = open_model(tmp_path / entry.name, entry).run(x)
    assert np.abs(output - files.reference(x)).max() < 0.01


@pytest.mark.parametrize("kind", INT_KINDS)
def test_weights_of_more_than_256_kib_are_in_the_int8_file(kind: FileKind, tmp_path: Path) -> None:
    """From there on the TFLite quantizer keeps data outside of the FlatBuffer."""
    files, x = mlp_files("wide"), mlp_inputs()
    (entry,) = files.write(tmp_path, kind)
    assert entry.size_bytes > 600 * 600
    output = open_model(tmp_path / entry.name, entry).run(x)
    assert np.abs(output - files.reference(x)).max() < 0.02


@pytest.mark.parametrize("form", FORMATS)
def test_a_layer_that_was_hardly_active_when_observed_still_loads(
    form: str, tmp_path: Path
) -> None:
    """XNNPACK refuses a file whose sums are rescaled by 2^8 or more."""
    files = mlp_files()
    (entry,) = files.write(tmp_path, FLOATS[form])
    hidden = {name: (0.0, 1e-5) if low == 0 else (low, high)
              for name, (low, high) in files.ranges[form].items()}  # fmt: skip
    assert hidden != files.ranges[form]
    (tmp_path / FILE_NAMES[INTS[form]]).write_bytes(
        quantize(form, tmp_path / entry.name, hidden, tmp_path / "int8")
    )
    int8 = files.entries[INTS[form]]
    assert np.isfinite(open_model(tmp_path / int8.name, int8).run(mlp_inputs())).all()


def test_exporting_again_gives_the_same_bytes_and_says_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = mlp_files()
    capfd.readouterr()
    again = export(before.net, torch.zeros(1, 6), mlp_inputs())
    assert capfd.readouterr() == ("", "")
    assert again.contents == before.contents
    assert again.observable == before.observable


def test_tflite_files_hold_int8_between_input_and_output_and_aligned_data() -> None:
    from ai_edge_litert import schema_py_generated as schema

    for kind, activations in (("tflite_fp32", 0), ("tflite_int8", 9)):
        content = digits_files().contents[kind]  # type: ignore[index]
        graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
        held = {tensor.type for tensor in graph.tensors if tensor.name.startswith(b"a")}
        assert held == {activations}  # the schema's numbers of float32 and int8
        model = schema.Model.GetRootAs(content, 0)
        buffers = [model.Buffers(at) for at in range(model.BuffersLength())]
        data = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
        assert len(data) > 20
        assert not [at for at in data if at % 16]


@pytest.mark.parametrize("hidden", ["usual", "weightless"])
def test_onnx_weights_have_all_8_bits_about_one_zero_point(hidden: Hidden) -> None:
    import onnx

    for files in (digits_files(), mlp_files(hidden)):
        graph = onnx.load_from_string(files.contents["onnx_int8"]).graph
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        makers = {node.output[0]: node for node in graph.node}
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
        assert layers
        for layer in layers:
            kernel, _, zero = (constants[name] for name in makers[layer.input[1]].input)
            assert kernel.dtype == zero.dtype == np.uint8
            assert (zero == 128).all()
            assert np.abs(kernel.astype(int) - 128).max() == 127


def test_onnx_files_carry_no_texts_and_no_constant_twice() -> None:
    import onnx

    for kind in ("onnx_fp32", "onnx_int8"):
        model = onnx.load_from_string(digits_files().contents[kind])
        onnx.checker.check_model(model, full_check=True)
        texts = (model.doc_string, model.producer_name, model.graph.doc_string)
        assert set(texts) == {""}
        nodes = [
            (node.name, node.doc_string, len(node.metadata_props)) for node in model.graph.node
        ]
        assert set(nodes) == {("", "", 0)}
        constants = set()
        for tensor in model.graph.initializer:
            tensor.name = ""
            constants.add(tensor.SerializeToString())
        assert len(constants) == len(model.graph.initializer)


@pytest.mark.parametrize("kind", [*FLOAT_KINDS, *INT_KINDS])
def test_scale_and_zero_point_are_recorded_where_a_file_needs_them(kind: FileKind) -> None:
    entry, ranges = digits_files().entries[kind], digits_files().ranges
    for spec, shape in zip((*entry.inputs, *entry.outputs), ((1, 1, 8, 8), (1, 10)), strict=True):
        assert spec.shape == shape
        assert spec.dtype == ("int8" if kind == "tflite_int8" else "float32")
        assert (spec.scale is not None) == (spec.zero_point is not None) == (spec.dtype == "int8")
    if kind == "tflite_int8":
        low, high = ranges["tflite"][digits_files().entries["tflite_fp32"].inputs[0].name]
        assert entry.inputs[0].scale == pytest.approx((high - low) / 255, rel=0.01)


def test_folding_removes_normalization_and_keeps_the_function() -> None:
    torch.manual_seed(3)
    net = conv_net().train()
    with torch.no_grad():
        net(torch.randn(64, 1, 8, 8) * 2 + 1)
    net.eval()
    x = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        before, after = net(x), folded(net)(x)
    assert torch.allclose(before, after, atol=1e-5)
    assert not [m for m in folded(net).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_norm_layer_that_cannot_be_folded_is_named() -> None:
    with pytest.raises(ExportError, match=r"^2: .*follows no convolution"):
        folded(broken_norm_net())


class Unexportable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        real: torch.Tensor = torch.linalg.eigvals(x @ x.T).real
        return real


@pytest.mark.parametrize("export_one", [tflite.export_tflite, onnx_export.export_onnx])
def test_a_network_that_a_converter_refuses_is_an_export_error(
    export_one: object, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"^(TFLite|ONNX) export: "):
        export_one(Unexportable(), torch.zeros(1, 6), tmp_path / "file")  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_all_files_give_the_networks_answers_in_a_fresh_process(tmp_path: Path) -> None:
    files, x = digits_files(), digits().test_x[:100]
    entries, reference = files.write(tmp_path), digits_files().reference(digits().test_x[:100])
    outputs = verify.outputs_in_fresh_process(tmp_path, entries, x)
    assert list(outputs) == [entry.kind for entry in entries]
    for kind, output in outputs.items():
        assert (output.argmax(1) == reference.argmax(1)).mean() > 0.97
        assert np.abs(output - reference).max() < (1e-4 if kind.endswith("fp32") else 2.5)


@pytest.mark.parametrize("place", [0, 2])
def test_a_damaged_file_is_named_by_the_process_that_opens_it(place: int, tmp_path: Path) -> None:
    entries = mlp_files().write(tmp_path)
    path = tmp_path / entries[place].name
    path.write_bytes(b"damaged" * 9)
    with pytest.raises(ExportError, match=f"{path.name}: .* does not load"):
        verify.outputs_in_fresh_process(tmp_path, entries, mlp_inputs(2))


@pytest.mark.parametrize(
    ("does", "message"),
    [("kill -SEGV $$", "crashed.*signal 11"), ("exec sleep 60", "no result within 1 s")],
)
def test_a_runtime_that_crashes_or_hangs_is_an_export_error(
    does: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for the runtime: a process that answers for one file and then goes wrong."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '[[0.5]]'\n{does}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    entries = mlp_files().write(tmp_path)
    with pytest.raises(ExportError, match=f"{entries[1].name}: {message}"):
        verify.outputs_in_fresh_process(tmp_path, entries, mlp_inputs(1), timeout_s=1)


def test_an_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    (entry,) = mlp_files().write(tmp_path, "onnx_fp32")
    x = mlp_inputs(2)
    x[1] = np.inf
    with pytest.raises(ExportError, match=f"{FILE_NAMES['onnx_fp32']}: its output is not finite"):
        verify.outputs_in_fresh_process(tmp_path, [entry], x)


def test_formats_exported_side_by_side_are_those_exported_together(tmp_path: Path) -> None:
    space = preset("small")
    subnet = fresh_subnet(space, space.smallest(), seed=0)
    whole = export_floats(subnet, FORMATS, tmp_path / "whole")
    calls = float_calls(subnet, FORMATS, tmp_path / "parts")
    assert len(calls) == len(FORMATS)
    assert together([call.function(*call.arguments) for call in calls]) == whole
    for kind in FLOATS.values():
        made, expected = (tmp_path / at / FILE_NAMES[kind] for at in ("parts", "whole"))
        assert made.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    "name",
    ["digits", *(pytest.param(name, marks=pytest.mark.slow) for name in ("small", "small-resnet"))],
)
def test_activations_that_overwrite_their_input_give_the_same_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do in a space's networks; what is exported writes elsewhere, which is faster."""
    space, given = preset(name), list[bool]()
    arch, export_onnx = space.largest(), onnx_export.export_onnx
    subnet, example = fresh_subnet(space, arch, seed=0), torch.zeros(1, *space.input_shape(arch))
    as_built = folded(module_of(subnet))
    assert any(getattr(layer, "inplace", False) for layer in as_built.modules())

    def noting(module: nn.Module, x: torch.Tensor, path: Path) -> None:
        given.extend(getattr(layer, "inplace", False) for layer in module.modules())
        export_onnx(module, x, path)

    monkeypatch.setattr(onnx_export, "export_onnx", noting)
    exported = export_floats(subnet, FORMATS, tmp_path)
    assert given
    assert not any(given)
    tflite.export_tflite(as_built, example, tmp_path / "tflite")
    export_onnx(as_built, example, tmp_path / "onnx")
    assert exported.observable["tflite"] == (tmp_path / "tflite").read_bytes()
    assert (tmp_path / FILE_NAMES["onnx_fp32"]).read_bytes() == (tmp_path / "onnx").read_bytes()
