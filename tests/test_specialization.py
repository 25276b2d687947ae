"""From weights to published models: each class for itself, and one that fails harms no other."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from broken_converter import export_or_crash
from fedofa.client.app import app as honest_app
from fedofa.client.device import of_node
from fedofa.protos.device import DataSource
from fedofa.protos.manifest import FILE_NAMES, Manifest
from fedofa.server import specialization
from fedofa.server.class_budgets import class_budgets
from fedofa.server.figures import FileMeasured, Measured
from fedofa.server.fleet import Fleet
from fedofa.server.model_folders import ModelFolders
from fedofa.server.publication import check_figures
from fedofa.server.specialization import Specialization
from fedofa.server.specialize_config import ExportConfig
from fedofa.specialize import export
from fedofa.supernet.errors import ExportError, RunError, UsageError
from fleets import SPEEDS, Run, grid_of, small_config, small_fleet
from flwr.app import Context, Message

CLASSES = ("crashing", "small", "small", "silent", "tiny")
SETTINGS: dict[str, Any] = {
    "classes": {
        "crashing": {"params": 4000},
        "small": {"params": 3000},
        "silent": {},
        "tiny": {"params": 3000},
    },
    "search": {
        "samples": 8,
        "population": 4,
        "generations": 1,
        "finalists": 1,
        "random_baseline": 1,
    },
    "export": {"formats": ["onnx"], "max_accuracy_drop": 1.0},
}
DECLARED = {"dev-1": "params = 2200", "dev-4": "file_bytes = 500"}


def partly_silent_app(message: Message, context: Context) -> Message:
    """The devices' app, but dev-3 only tells its profile."""
    name = of_node(context.node_config, context.run_config).name
    if name == "dev-3" and message.metadata.message_type != "query.profile":
        raise RuntimeError("the data folder is gone")
    return honest_app(message=message, context=context)


def run_with_declared_budgets(folder: Path) -> Run:
    devices = small_fleet(folder, CLASSES)
    for place, device in enumerate(devices):
        if device.name in DECLARED:
            path = folder / f"{device.name}.toml"
            path.write_text(f"{SPEEDS}[budget]\n{DECLARED[device.name]}\n")
            devices[place] = replace(device, profile=str(path))
    return Run(folder, small_config(**SETTINGS), grid_of(devices, partly_silent_app))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One specialization over what an earlier, killed one left."""
    run = run_with_declared_budgets(tmp_path_factory.mktemp("run"))
    models = run.folder / "models"
    for name in ("crashing", "small", ".draft-small", ".draft-gone"):
        (models / name).mkdir(parents=True)
        (models / name / "former").write_text(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_floats", export_or_crash)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        start(run)
    return run


def start(run: Run) -> None:
    training = run.training
    work = Specialization(
        run.config, training.space, training.weights, run.exchange, run.roll.gather(), run.log
    )
    work.run(run.folder, run.folder / "registry")


def reasons(run: Run) -> dict[str, str]:
    return {event["device_class"]: event["reason"] for event in run.events("class_failed")}


def test_a_class_that_fails_says_why_and_the_others_are_published(done: Run) -> None:
    assert [event["device_class"] for event in done.events("published")] == ["small"]
    assert reasons(done).keys() == {"crashing", "silent", "tiny"}
    assert reasons(done)["crashing"] == "the converter's process was ended by signal 6"
    assert "no device answered" in reasons(done)["silent"]
    assert "start a device" in reasons(done)["silent"]
    assert [event["what"] for event in done.events("step")] == list(specialization.STEPS)
    told = [(e["what"], e["done"], e["total"]) for e in done.events("converted")]
    assert told == [("exporting", 1, 2), ("exporting", 2, 2), ("quantizing", 1, 1)]


def test_a_class_keeps_to_what_its_devices_declared(done: Run) -> None:
    told = {event["device_class"]: event for event in done.events("class_tightened")}
    assert (told["small"]["device"], told["small"]["budget"]) == ("dev-1", {"params": 2200})
    manifest = Manifest.from_json((done.folder / "models/small/manifest.json").read_bytes())
    assert manifest.budget == {"params": 2200}
    assert manifest.cost["params"] <= 2200
    (row,) = json.loads((done.folder / "specialized.json").read_text())
    assert row["budget"] == {"params": 2200}


def test_what_the_class_s_own_devices_timed_stands_beside_what_was_predicted(done: Run) -> None:
    (row,) = json.loads((done.folder / "specialized.json").read_text())
    assert row["latency_ms"].keys() == row["files"].keys()
    for found in row["latency_ms"].values():
        # Two of the fleet's devices are of this class; without a bound nothing is predicted.
        assert (found["predicted"], found["devices"]) == (None, 2)
        assert 0 < found["median"] <= found["slowest"] < 1000


def test_a_declared_bound_that_fits_no_subnet_names_the_device(done: Run) -> None:
    assert "file_bytes" in reasons(done)["tiny"]
    assert "> 500, and device dev-4 declares that bound" in reasons(done)["tiny"]


def test_a_folder_is_replaced_as_a_whole_and_a_failed_class_keeps_its_former_one(done: Run) -> None:
    models = done.folder / "models"
    assert sorted(path.name for path in models.iterdir()) == ["crashing", "small"]
    assert [path.name for path in (models / "crashing").iterdir()] == ["former"]
    assert sorted(path.name for path in (models / "small").iterdir()) == [
        "manifest.json",
        "model.fp32.onnx",
        "model.int8.onnx",
        "trainable.safetensors",
    ]


TABLE = {
    "family": "mlp",
    "classes": 3,
    "features": 5,
    "widths": [8, 16],
    "hidden_widths": [8, 16],
    "depths": [1, 2],
}
SEQUENCE = {
    "family": "tdnn",
    "classes": 3,
    "in_channels": 3,
    "steps": 16,
    "stem_widths": [4, 8],
    "blocks": [{"widths": [4, 8], "kernels": [1, 3]}],
    "depths": [1],
    "aggregate_widths": [8],
    "divisor": 4,
}


@pytest.mark.parametrize(
    ("space", "layout", "shape"),
    [
        (TABLE, "NC", (5,)),
        pytest.param(SEQUENCE, "NCT", (3, 16), marks=pytest.mark.slow),
    ],
)
def test_what_is_no_image_is_published_with_its_layout(
    space: dict[str, Any], layout: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    devices = small_fleet(tmp_path, ["any", "any"])
    for place, device in enumerate(devices):
        arguments = {"shape": ",".join(map(str, shape)), "classes": 3}
        source = DataSource("synthetic:load", client=place, clients=2, arguments=arguments)
        devices[place] = replace(device, source=source)
    settings = {
        **SETTINGS,
        "classes": {"any": {}},
        "export": {"max_accuracy_drop": 1.0, "int4": True},
    }
    run = Run(tmp_path, small_config(space=space, **settings), grid_of(devices, honest_app))
    run.start()
    start(run)
    assert not run.events("class_failed")
    manifest = Manifest.from_json((tmp_path / "models/any/manifest.json").read_bytes())
    assert manifest.layout == layout
    assert manifest.golden.input_shape == (1, *shape)
    assert {file.kind for file in manifest.files} == set(FILE_NAMES)


def test_no_process_is_left(done: Run) -> None:
    assert done.events("published")
    assert not [p for p in psutil.Process().children() if "fork_server" in " ".join(p.cmdline())]


def test_when_no_class_is_left_the_job_fails_with_a_reason(tmp_path: Path) -> None:
    run = run_with_declared_budgets(tmp_path)
    full = run.roll.gather()
    alone = Fleet({"dev-3": full.members["dev-3"]})
    settings = {**SETTINGS, "classes": {"silent": {}}}
    work = Specialization(
        small_config(**settings),
        run.training.space,
        run.training.weights,
        run.exchange,
        alone,
        run.log,
    )
    with pytest.raises(RunError, match=r"no class could be published; silent: no device answered"):
        work.run(tmp_path, tmp_path / "registry")
    assert not list((tmp_path / "models").glob("*"))


def test_only_what_the_classes_own_devices_declared_tightens_it(tmp_path: Path) -> None:
    run = run_with_declared_budgets(tmp_path)
    found = class_budgets(run.config, run.training.space, run.roll.gather(), run.log)
    assert {name: bounds.budget.to_dict() for name, bounds in found.items()} == {
        "crashing": {"params": 4000},
        "small": {"params": 2200},
        "silent": {},
        "tiny": {"params": 3000, "file_bytes": 500},
    }
    with pytest.raises(UsageError, match="dev-4"):
        found["tiny"].check()


# ── folders ──────────────────────────────────────────────────────────────────────────────────────


def written(folders: ModelFolders, name: str, content: str) -> None:
    (folders.draft(name) / "file").write_text(content)


def test_publishing_swaps_whole_folders(tmp_path: Path) -> None:
    folders = ModelFolders(tmp_path / "models")
    for content in ("one", "two"):
        written(folders, "phone", content)
        assert (folders.publish("phone") / "file").read_text() == content
    written(folders, "phone", "three")
    folders.discard("phone")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["phone"]
    assert (tmp_path / "models" / "phone" / "file").read_text() == "two"


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_swap_that_was_cut_short_leaves_one_whole_folder(renamed: int, tmp_path: Path) -> None:
    folders, models = ModelFolders(tmp_path), tmp_path
    written(folders, "phone", "old")
    folders.publish("phone")
    written(folders, "phone", "new")
    (models / "phone").rename(models / ".former-phone")
    if renamed == 2:
        (models / ".draft-phone").rename(models / "phone")
    folders.sweep()
    assert [path.name for path in models.iterdir()] == ["phone"]
    assert (models / "phone" / "file").read_text() == ("old" if renamed == 1 else "new")


# ── what a file may lose ─────────────────────────────────────────────────────────────────────────


def figure(right: int, gap: float) -> FileMeasured:
    return FileMeasured(Measured(right, 100), Measured(90, 100), right, gap)


def test_a_file_that_loses_too_much_is_named_with_its_limit() -> None:
    limits = ExportConfig(max_accuracy_drop=0.05, max_float_difference=1e-3)
    check_figures({"onnx_int8": figure(86, 2.0), "onnx_fp32": figure(90, 1e-3)}, limits)
    with pytest.raises(ExportError, match=r"onnx_int8 loses 0\.060 of accuracy.* = 0\.05"):
        check_figures({"onnx_int8": figure(84, 2.0)}, limits)
    with pytest.raises(ExportError, match=r"tflite_fp32 is off by 0\.01 .* = 0\.001"):
        check_figures({"tflite_fp32": figure(90, 0.01)}, limits)
    for kind in ("onnx_int8", "onnx_fp32"):
        with pytest.raises(ExportError, match="beyond measure"):
            check_figures({kind: figure(90, float("inf"))}, limits)
