"""Ranges without tails, a temperature and a prior, from the devices' sums to the published files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.app import app as honest_app
from fedofa.client.device import data as data_of
from fedofa.protos.calibration import Calibration, log_probabilities, prior_shift
from fedofa.protos.device import DataSource, Device
from fedofa.protos.histograms import Histogram
from fedofa.protos.manifest import Manifest
from fedofa.protos.messages import EvaluateReply, MessageError, RangesReply, Verdict, VerifyReply
from fedofa.protos.observing import observe_histograms
from fedofa.protos.subnets import flat_statistics
from fedofa.server import figures
from fedofa.server.evaluation import FederatedEvaluator, FloatFile, Target
from fedofa.server.figures import FileMeasured, Measured
from fedofa.server.specialization import Specialization
from fedofa.server.specialize_config import ExportConfig
from fedofa.specialize.estimators import merged
from fedofa.specialize.export import Subnet, export_floats, module_of
from fedofa.supernet.axes import regions
from fedofa.supernet.cost import Budget
from fedofa.supernet.errors import ExportError, RunError, UsageError
from fedofa.supernet.space import plain
from fedofa.supernet.weights import gather
from fleets import SPEEDS, Run, grid_of, small_config, small_fleet

TABLE = {
    "family": "mlp",
    "classes": 3,
    "features": 5,
    "widths": [8, 16],
    "hidden_widths": [8, 16],
    "depths": [1, 2],
}
SEARCH = {"samples": 8, "population": 4, "generations": 1, "finalists": 1, "random_baseline": 1}
EXPORT = {
    "formats": ["onnx"],
    "max_accuracy_drop": 1.0,
    "ranges": "mse",
    "equalize": True,
    "temperature": True,
    "prior": "equal",
}


def fleet(folder: Path, *, share_labels: bool) -> list[Device]:
    devices = small_fleet(folder, ["any", "any"])
    Path(str(devices[0].profile)).write_text(
        SPEEDS + ("share_labels = true\n" if share_labels else "")
    )
    return [
        replace(
            device,
            source=DataSource(
                "synthetic:load", client=place, clients=2,
                arguments={"shape": "5", "classes": 3},
            ),
        )
        for place, device in enumerate(devices)
    ]  # fmt: skip


def prepared(
    folder: Path, export: dict[str, Any], *, share_labels: bool = True
) -> tuple[Run, list[Device]]:
    devices = fleet(folder, share_labels=share_labels)
    config = small_config(space=TABLE, classes={"any": {}}, search=SEARCH, export=export)
    run = Run(folder, config, grid_of(devices, honest_app))
    run.start()
    return run, devices


def specialize(run: Run) -> None:
    training = run.training
    work = Specialization(
        run.config, training.space, training.weights, run.exchange, run.roll.gather(), run.log
    )
    work.run(run.folder, run.folder / "registry")


def test_a_model_is_published_with_temperature_and_prior_in_it_and_a_report(tmp_path: Path) -> None:
    run, devices = prepared(tmp_path, EXPORT)
    specialize(run)
    assert not run.events("class_failed")
    (row,) = json.loads((tmp_path / "specialized.json").read_text())
    adjustment = row["adjustment"]
    clients = [data_of(device) for device in devices]
    counts = np.bincount(np.concatenate([c.train.y for c in clients]), minlength=3)
    assert adjustment["shift"] == pytest.approx(prior_shift(counts.tolist()))
    assert adjustment["temperature"] > 0
    # The golden test's output is the subnet's with both, and the files' are compared with it.
    manifest = Manifest.from_json((tmp_path / "models/any/manifest.json").read_bytes())
    plain_logits = logits_of(run, manifest, np.float32(manifest.golden.input).reshape(1, 5))
    want = plain_logits / adjustment["temperature"] + np.float32(adjustment["shift"])
    np.testing.assert_allclose(manifest.golden.output, want[0], atol=1e-4)
    # The report is that of all validation examples in one place.
    x = np.concatenate([c.normalized(c.validation.x) for c in clients])
    y = np.concatenate([c.validation.y for c in clients])
    logits = logits_of(run, manifest, x) / adjustment["temperature"]
    pooled = Calibration.of(np.float32(logits + adjustment["shift"]), y)
    assert row["calibration"]["pytorch"] == pytest.approx(pooled.report(), rel=1e-4, abs=1e-6)
    assert row["calibration"]["onnx_fp32"] == pytest.approx(pooled.report(), rel=1e-2, abs=1e-3)
    assert row["calibration"].keys() == {"pytorch", "onnx_fp32", "onnx_int8"}


def logits_of(run: Run, manifest: Manifest, x: np.ndarray) -> np.ndarray:
    """Of the published subnet without any adjustment; an MLP of this family has norm layers."""
    space = run.training.space
    arch = space.arch(manifest.arch)
    evaluator = FederatedEvaluator(
        run.exchange, run.roll.gather(), space, run.training.weights, run.log
    )
    statistics = evaluator.statistics([Target(arch, Budget())])
    module = module_of(subnet(run, arch, statistics[0]))
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(np.float32(x))))


def subnet(run: Run, arch: Any, statistics: Any) -> Subnet:
    space = run.training.space
    weights = gather(run.training.weights, regions(space, arch))
    values = np.concatenate([weights, flat_statistics(statistics)])
    return Subnet(plain(space.to_dict()), dict(arch), values)


def test_what_devices_send_adds_up_to_what_one_place_would_see(tmp_path: Path) -> None:
    """Likelihoods by temperature and histograms, over two devices, against all the examples."""
    run, devices = prepared(tmp_path, {"formats": ["onnx"]})
    space, members = run.training.space, run.roll.gather()
    evaluator = FederatedEvaluator(run.exchange, members, space, run.training.weights, run.log)
    target = Target(space.largest(), Budget())
    statistics = evaluator.statistics([target])
    sums = evaluator.likelihoods([target], statistics, (0.5, 2.0))[0]
    clients = [data_of(device) for device in devices]
    made = subnet(run, target.arch, statistics[0])
    x = np.concatenate([c.normalized(c.validation.x) for c in clients])
    y = np.concatenate([c.validation.y for c in clients])
    with torch.no_grad():
        logits = module_of(made)(torch.from_numpy(x)).numpy()
    for found, temperature in zip(sums, (0.5, 2.0), strict=True):
        log_p = log_probabilities(logits / temperature)
        assert found == pytest.approx(-log_p[np.arange(len(y)), y].sum(), rel=1e-4)

    exported = export_floats(made, ("onnx",), tmp_path / "export")
    content = exported.observable["onnx"]
    file = FloatFile("onnx_fp32", exported.input_shape, content, Budget(), 0)
    parts = evaluator.histograms([file], 30, 64)[0]
    inputs = np.concatenate([c.normalized(c.train.x[:30]) for c in clients])
    pooled = observe_histograms(content, "onnx_fp32", inputs, 64)
    assert len(parts) == len(devices)
    total = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert total.keys() == pooled.keys()
    for name, seen in pooled.items():  # batches of another size may round otherwise
        assert total[name].low == pytest.approx(seen.low, abs=1e-5)
        assert total[name].high == pytest.approx(seen.high, abs=1e-5)
        assert total[name].total == seen.total


def test_a_prior_without_counts_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    run, _ = prepared(tmp_path, EXPORT, share_labels=False)
    with pytest.raises(RunError, match="no device shares its label counts; set share_labels"):
        specialize(run)
    assert not run.events("step")


def test_a_prior_of_other_classes_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    run, _ = prepared(tmp_path, {**EXPORT, "prior": [0.5, 0.5]})
    with pytest.raises(RunError, match=r"export.prior: 2 shares; the network has 3 classes"):
        specialize(run)
    assert not run.events("step")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranges": "median"}, "export.ranges.*'minmax', 'percentile' or 'mse'"),
        ({"prior": [0.5, 0.6]}, "export.prior.*must add up to 1, these to 1.1"),
        ({"prior": [0.0, 1.0]}, "export.prior"),
        ({"prior": "uniform"}, "export.prior.*'equal'"),
        ({"temperature": 2.0}, "export.temperature"),
        ({"calibrate": True}, "unknown key 'calibrate'.*did you mean"),
    ],
)
def test_a_wrong_export_section_names_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_config(export=fields)


def test_by_default_nothing_is_adjusted_and_all_of_a_range_counts() -> None:
    plain_export = ExportConfig()
    assert (plain_export.ranges, plain_export.adjusts, plain_export.equalize) == (
        "minmax",
        False,
        False,
    )


# ── what a device answers ────────────────────────────────────────────────────────────────────────


def ranges_reply(**change: Any) -> RangesReply:
    fields: dict[str, Any] = {
        "device": "d", "examples": 2,
        "ranges": ({"a0": (-1.0, 2.0)},), "histograms": ({"a0": (1, (1, 0, 0, 2))},),
    }  # fmt: skip
    return RangesReply(**{**fields, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"histograms": ()}, "a histogram for each tensor expected"),
        ({"histograms": ({"a1": (1, (1, 0, 0, 2))},)}, "a histogram for each tensor expected"),
        ({"histograms": ({"a0": (1, (1, 0, 2, 0, 0))},)}, "its bins are not those of its range"),
        ({"histograms": ({"a0": (2, (1, 0, 0, 2))},)}, "of so many values for each example"),
        ({"ranges": ({"a0": (-1.0, 1e9)},)}, "its bins are not those of its range"),
    ],
)
def test_histograms_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    (good,) = figures.read_histograms(ranges_reply(), 1, 2, bins=4)
    assert good == {"a0": Histogram.of(np.float32([-1, 0, 2, 2]), 4)}
    with pytest.raises(MessageError, match=message):
        figures.read_histograms(ranges_reply(**change), 1, 2, bins=4)


def test_histograms_of_other_tensors_do_not_merge() -> None:
    seen = Histogram.of(np.float32([1.0]), 16)
    with pytest.raises(ExportError, match="other tensors: a0, a1"):
        merged([{"a0": seen}, {"a1": seen}], "mse")
    with pytest.raises(ExportError, match="no device returned any"):
        merged([], "mse")


@pytest.mark.parametrize("nll", [(), ((1.0,),), ((1.0, -2.0),), ((1.0, 2.0), (1.0, 2.0))])
def test_likelihoods_that_were_not_asked_for_are_refused(nll: Any) -> None:
    reply = EvaluateReply(device="d", examples=3, correct=(1,), nll=nll)
    with pytest.raises(MessageError, match="log-likelihoods of 1 subnets at 2 temperatures"):
        figures.read_nll(reply, 1, 2)


def test_calibrations_of_files_add_up_and_wrong_ones_are_refused() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(8, 3)).astype(np.float32), rng.integers(0, 3, 8)
    parts = [Calibration.of(logits[rows], labels[rows]) for rows in (slice(0, 4), slice(4, 8))]

    def reply(*calibration: Any) -> VerifyReply:
        verdict = Verdict(
            reference_correct=3, correct=(2,), agree=(3,), max_difference=(0.1,),
            calibration=calibration,
        )  # fmt: skip
        return VerifyReply(device="d", examples=4, verdicts=(verdict,))

    found = [figures.read_verdicts(reply(p.sums(), p.sums()), [1], 4)[0][0] for p in parts]
    both = found[0] + found[1]
    assert both.calibration is not None
    assert both.calibration[0].report() == pytest.approx(Calibration.of(logits, labels).report())
    without = FileMeasured(Measured(2, 4), Measured(3, 4), 3, 0.1)
    assert (without + found[0]).calibration == found[0].calibration
    with pytest.raises(MessageError, match="calibrations of 2 networks expected"):
        figures.read_verdicts(reply(parts[0].sums()), [1], 4)
    more = parts[0] + parts[1]
    with pytest.raises(MessageError, match="not of the 4 examples"):
        figures.read_verdicts(reply(parts[0].sums(), more.sums()), [1], 4)
    counts, right, confidence, nll, brier = parts[0].sums()
    wrong = (counts, tuple(r + 9 for r in right), confidence, nll, brier)
    with pytest.raises(MessageError, match="verification: calibration: bin 0"):
        figures.read_verdicts(reply(parts[0].sums(), wrong), [1], 4)
