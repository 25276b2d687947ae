"""Running files as a device does: the right runtime, the right numbers, clear refusals."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifacts import draft, swapping_onnx
from fedofa.protos.inference import (
    available_kinds,
    available_runtimes,
    dequantized,
    first_available_kind,
    open_model,
    quantized,
)
from fedofa.protos.manifest import FILE_NAMES, FileKind, TensorSpec
from fedofa.protos.observing import observe_ranges
from fedofa.supernet.errors import ArtifactError, UsageError
from hypothesis import given
from hypothesis import strategies as st
from toy_networks import mlp_files, mlp_inputs

KINDS: tuple[FileKind, ...] = ("tflite_int8", "onnx_int8", "tflite_fp32", "onnx_fp32")
INT4S: tuple[FileKind, ...] = ("tflite_int4", "onnx_int4")
OPENS = """
import sys
from pathlib import Path
import numpy as np
from fedofa.protos.inference import open_model
from fedofa.protos.observing import observe_ranges
from fedofa.protos.manifest import FileEntry
folder = Path(sys.argv[1])
for line in sys.argv[2:]:
    entry = FileEntry.model_validate_json(line)
    open_model(folder / entry.name, entry).run(np.zeros((2, 6), np.float32))
    if entry.kind.endswith("fp32"):
        content = (folder / entry.name).read_bytes()
        observe_ranges(content, entry.kind, np.zeros((2, 6), np.float32))
heavy = {"torch", "flwr", "onnx", "grpc"} & set(sys.modules)
assert not heavy, heavy
"""


def hide(patch: pytest.MonkeyPatch, *hidden: str) -> None:
    find = importlib.util.find_spec
    patch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find(name))


def test_every_kind_runs_here_and_int8_tflite_is_preferred() -> None:
    assert available_kinds() == (*KINDS[:2], *INT4S, *KINDS[2:])
    assert first_available_kind(draft(dict.fromkeys(KINDS, b"x"))) == "tflite_int8"
    assert first_available_kind(draft(dict.fromkeys(KINDS[2:], b"x"))) == "tflite_fp32"
    without_int8 = dict.fromkeys((*KINDS[2:], *INT4S), b"x")
    assert first_available_kind(draft(without_int8)) == "tflite_int4"
    assert first_available_kind(draft(dict.fromkeys(KINDS, b"x")), "onnx_fp32") == "onnx_fp32"


def test_a_device_without_the_runtime_takes_another_file_or_hears_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everything = draft(dict.fromkeys(KINDS, b"x"))
    (entry,) = mlp_files().write(tmp_path, "tflite_fp32")
    hide(monkeypatch, "ai_edge_litert", "tflite_runtime")
    assert available_runtimes() == ("onnxruntime",)
    assert first_available_kind(everything) == "onnx_int8"
    with pytest.raises(ArtifactError, match=r"tflite_int8.*onnxruntime.*pip install"):
        first_available_kind(everything, "tflite_int8")
    with pytest.raises(ArtifactError, match="pip install ai-edge-litert"):
        open_model(tmp_path / entry.name, entry)


def test_a_runtime_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (entry,) = mlp_files().write(tmp_path, "onnx_fp32")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ArtifactError, match="onnxruntime is installed but cannot be imported"):
        open_model(tmp_path / entry.name, entry)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_examples_give_alone(kind: FileKind, tmp_path: Path) -> None:
    (entry,) = mlp_files().write(tmp_path, kind)
    model = open_model(tmp_path / entry.name, entry)
    x = mlp_inputs(5)
    together = model.run(x)
    assert together.dtype == np.float32
    assert together.shape == (5, 3)
    alone = np.concatenate([model.run(x[at : at + 1]) for at in range(5)])
    # A batch's products may be summed in another order: half a step of int8, nothing for floats.
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert model.run(x[:0]).shape == (0, 3)
    assert model.runtime == ("onnxruntime" if kind.startswith("onnx") else "ai_edge_litert")


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_of_another_shape_is_a_usage_error(kind: FileKind, tmp_path: Path) -> None:
    (entry,) = mlp_files().write(tmp_path, kind)
    with pytest.raises(UsageError, match=r"\(2, 7\)"):
        open_model(tmp_path / entry.name, entry).run(np.zeros((2, 7), np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [{"shape": (1, 7)}, {"dtype": "uint8"}, {"name": "other"}])
def test_a_file_that_is_not_what_its_manifest_says_is_refused(
    kind: FileKind, change: dict[str, object], tmp_path: Path
) -> None:
    (entry,) = mlp_files().write(tmp_path, kind)
    wrong = entry.outputs[0].model_copy(update=change)
    for field, spec in (("inputs", entry.inputs[0].model_copy(update=change)), ("outputs", wrong)):
        with pytest.raises(ArtifactError, match=r"where the manifest says"):
            open_model(tmp_path / entry.name, entry.model_copy(update={field: (spec,)}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_file_that_does_not_load_is_an_artifact_error(
    kind: FileKind, content: bytes | None, tmp_path: Path
) -> None:
    entry = mlp_files().entries[kind]
    if content is not None:
        (tmp_path / entry.name).write_bytes(content)
    with pytest.raises(ArtifactError):
        open_model(tmp_path / entry.name, entry)


def test_opening_models_imports_nothing_heavy_and_keeps_the_terminal_clean(tmp_path: Path) -> None:
    entries = mlp_files().write(tmp_path)
    lines = [entry.model_dump_json() for entry in entries]
    command = [sys.executable, "-W", "error", "-P", "-c", OPENS, str(tmp_path), *lines]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


specs = st.builds(
    lambda scale, zero, dtype: TensorSpec(
        name="x", shape=(1, 1), dtype=dtype, scale=scale, zero_point=zero + 128 * (dtype != "int8")
    ),
    st.floats(2.0**-13, 10, width=32),
    st.integers(-128, 127),
    st.sampled_from(("int8", "uint8")),
)


@given(specs, st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9))
def test_a_number_within_the_range_comes_back_within_half_a_step(
    spec: TensorSpec, numbers: list[float]
) -> None:
    assert spec.scale is not None
    assert spec.zero_point is not None
    info = np.iinfo(spec.dtype)
    low, high = ((edge - spec.zero_point) * spec.scale for edge in (info.min, info.max))
    x = np.array(numbers, np.float32)
    held = quantized(x, spec)
    assert held.dtype == np.dtype(spec.dtype)
    near = np.clip(x, low, high)
    np.testing.assert_allclose(dequantized(held, spec), near, atol=spec.scale * 0.501, rtol=1e-5)


@pytest.mark.parametrize("form", ["tflite", "onnx"])
def test_observed_ranges_are_those_of_the_network_in_numpy(form: str) -> None:
    files, x = mlp_files(), mlp_inputs(70, seed=3)
    first, last = files.net[0], files.net[2]  # type: ignore[index]
    hidden = np.maximum(x @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    out = hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    kind: FileKind = "tflite_fp32" if form == "tflite" else "onnx_fp32"
    found = observe_ranges(files.observable[form], kind, x)
    entry = files.entries[kind]
    assert found[entry.inputs[0].name] == (float(x.min()), float(x.max()))
    assert found[entry.outputs[0].name] == pytest.approx((out.min(), out.max()), abs=1e-5)
    assert pytest.approx((0.0, hidden.max()), abs=1e-5) in list(found.values())


@pytest.mark.parametrize("form", ["tflite", "onnx"])
def test_ranges_need_an_example_and_finite_values(form: str) -> None:
    kind: FileKind = "tflite_fp32" if form == "tflite" else "onnx_fp32"
    content = mlp_files().observable[form]
    with pytest.raises(UsageError, match="example"):
        observe_ranges(content, kind, mlp_inputs(0))
    poisoned = mlp_inputs(3)
    poisoned[1, 2] = np.nan
    with pytest.raises(ArtifactError, match="not finite"):
        observe_ranges(content, kind, poisoned)


def test_a_foreign_onnx_file_runs_too(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAMES["onnx_fp32"]
    path.write_bytes(swapping_onnx())
    entry = draft({"onnx_fp32": path.read_bytes()}).files[0]
    x = mlp_inputs(4)[:, :2]
    assert (open_model(path, entry).run(x) == x[:, ::-1]).all()
