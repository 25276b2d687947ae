"""Latency of subnets, predicted from what a device timed of probes."""

import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client import probing
from fedofa.client.app import app as honest_app
from fedofa.client.cli import app as device_cli
from fedofa.client.declared import read_profile
from fedofa.protos.probes import (
    SET_NAME,
    KindMeasured,
    Measurements,
    Probe,
    ProbeSet,
    absurd,
    read_measurements,
    read_set,
)
from fedofa.server.class_budgets import ClassBudget, usable_classes
from fedofa.server.cli import app as operator_cli
from fedofa.server.latencies import device_latency, predicted
from fedofa.specialize.export import PRELOADS
from fedofa.specialize.fork_server import ForkServer
from fedofa.specialize.latency.errors import LatencyErrors, cross_validated
from fedofa.specialize.latency.features import NAMES, features
from fedofa.specialize.latency.regression import Timed, fit_regression
from fedofa.specialize.latency.table import Table, fit_table, key_of, sums
from fedofa.specialize.probes import ProbePlan, layer_input, layer_module, make_probes, sample
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import ArtifactError, UsageError
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.space import Arch, Space, plain
from fleets import SPEEDS, Run, grid_of, small_config, small_fleet
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

DIGITS = preset("digits")


def drawn(space: Space, count: int, seed: int = 0) -> list[Arch]:
    return sample(space, ProbePlan(subnets=count, seed=seed))


def device(space: Space, arch: Arch) -> float:
    """A device that pays for calls, multiplications and traffic, more for depthwise."""
    total = 2e-5
    for plan in space.layers(arch):
        slow = 4.0 if plan.kind == "depthwise" else 1.0
        total += 1e-6 + slow * plan.macs * 2e-10 + 1e-10 * (plan.in_elements + plan.out_elements)
    return total


def timed(archs: Sequence[Arch], noise: float = 0.0, seed: int = 0) -> list[Timed]:
    rng = np.random.default_rng(seed)
    return [Timed(a, device(DIGITS, a) * (1 + noise * rng.standard_normal())) for a in archs]


def test_costs_that_are_there_are_found() -> None:
    regression = fit_regression(DIGITS, timed(drawn(DIGITS, 40)))
    for arch in drawn(DIGITS, 80, seed=1):
        assert regression(arch) == pytest.approx(device(DIGITS, arch), rel=0.02)
    assert all(value > 0 for value in regression.explained().values())


def test_errors_are_of_subnets_that_were_held_out() -> None:
    """A predictor that knows the training subnets by heart is found out."""
    mine = timed(drawn(DIGITS, 40), noise=0.02)

    def by_heart(seen: Sequence[Timed]) -> Any:
        table = {one.arch: one.seconds for one in seen}
        return lambda arch: table.get(arch, 1.0)

    assert cross_validated(by_heart, mine, 0.0).mape > 1
    honest = cross_validated(lambda seen: fit_regression(DIGITS, seen), mine, 0.01)
    assert honest.held_out == 40
    assert 0.005 < honest.mape < 0.04
    assert honest.doubts == ()


def test_a_predictor_of_a_noisy_device_says_that_it_should_not_be_trusted() -> None:
    mine = timed(drawn(DIGITS, 40), noise=0.5)
    found = cross_validated(lambda seen: fit_regression(DIGITS, seen), mine, 0.3)
    assert len(found.doubts) == 3
    assert not found.to_dict()["trusted"]


def test_a_rank_correlation_that_is_no_number_is_none_in_reports() -> None:
    known = {"held_out": 40, "mape": 0.01, "worst": 0.02, "noise": 0.0}
    told = LatencyErrors(**known, spearman=float("nan")).to_dict()  # type: ignore[arg-type]
    assert told["spearman"] is None
    assert not told["trusted"]
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("worst", [{"mape": 0.09}, {"spearman": 0.9}, {"spearman": float("nan")}])
def test_each_bound_alone_is_a_doubt(worst: dict[str, float]) -> None:
    fine = {"held_out": 9, "mape": 0.05, "worst": 0.1, "spearman": 0.99, "noise": 0.01}
    assert LatencyErrors(**fine).doubts == ()  # type: ignore[arg-type]
    assert len(LatencyErrors(**{**fine, **worst}).doubts) == 1  # type: ignore[arg-type]


FITTED = fit_regression(DIGITS, timed(drawn(DIGITS, 24)))


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_prediction_grows_with_the_network(one: int, two: int) -> None:
    rng = random.Random(one)
    small = DIGITS.sample(rng)
    grown = list(DIGITS.grown(small))
    if not grown:
        return
    larger = random.Random(two).choice(grown)
    more = features(DIGITS.layers(larger)) - features(DIGITS.layers(small))
    if (more >= 0).all():
        assert FITTED(larger) >= FITTED(small)
    assert len(more) == len(NAMES)


def test_a_table_of_layers_gives_sums_on_the_scale_of_subnets() -> None:
    archs = drawn(DIGITS, 24)
    alone = {
        key_of(plan): 1e-5 + plan.macs * 1e-9 for arch in archs for plan in DIGITS.layers(arch)
    }

    def true(arch: Arch) -> float:
        total, count = sums(DIGITS, alone, arch)
        return 0.8 * total - 5e-6 * count + 3e-5

    table = fit_table(DIGITS, alone, [Timed(arch, true(arch)) for arch in archs])
    assert [table(a) for a in archs] == pytest.approx([true(a) for a in archs], rel=1e-6)
    assert all(table.covers(arch) for arch in archs)
    gone = key_of(DIGITS.layers(archs[0])[0])
    fewer = {key: seconds for key, seconds in alone.items() if key != gone}
    assert not Table(DIGITS, fewer, 1.0, 0.0, 0.0).covers(archs[0])


def test_a_table_needs_subnets_whose_layers_it_has() -> None:
    with pytest.raises(ValueError, match="of 0 of 24 timed subnets"):
        fit_table(DIGITS, {}, timed(drawn(DIGITS, 24)))


def probe_set(space: Space, archs: Sequence[Arch]) -> ProbeSet:
    """Probes without files: nothing here opens one."""
    return ProbeSet(
        space=plain(space.to_dict()),
        probes=tuple(
            Probe(
                name=f"s{place:04d}",
                macs=cost(space, arch).macs,
                input_shape=space.input_shape(arch),
                arch=dict(arch),
                files=(),
            )
            for place, arch in enumerate(archs)
        ),
    )


def measured(probes: ProbeSet, factor: float = 1.0) -> KindMeasured:
    return KindMeasured(
        kind="tflite_int8",
        runtime="ai_edge_litert 2.3.0",
        threads=1,
        seconds={
            probe.name: factor * device(DIGITS, DIGITS.arch(probe.arch or {}))
            for probe in probes.subnets
        },
        noise=0.01,
        load_s={},
        peak_bytes={},
    )


def test_a_subnet_that_was_timed_counts_as_timed() -> None:
    probes = probe_set(DIGITS, drawn(DIGITS, 24))
    odd = dict(measured(probes).seconds)
    odd["s0003"] *= 3
    found = device_latency(
        "d", measured(probes).model_copy(update={"seconds": odd}), probes, DIGITS
    )
    arch = DIGITS.arch(probes.probes[3].arch or {})
    assert found.timed[arch] == odd["s0003"]
    assert found.predict(arch) < 2 * device(DIGITS, arch)


def test_how_well_a_device_is_predicted_can_be_asked_before_a_run(tmp_path: Path) -> None:
    probes = probe_set(DIGITS, drawn(DIGITS, 20))
    (tmp_path / SET_NAME).write_text(probes.model_dump_json())
    file = tmp_path / "measurements.json"
    file.write_text(sent(probes))
    asked = ["latency", "--probes", str(tmp_path), "--measurements", str(file)]
    found = CliRunner().invoke(operator_cli, [*asked, "--json"])
    mine = device_latency("d", measured(probes), probes, DIGITS)
    assert json.loads(found.output) == [
        {"kind": "tflite_int8", "method": mine.method, **mine.errors.to_dict()}
    ]
    assert CliRunner().invoke(operator_cli, asked).exit_code == 0
    other = probe_set(DIGITS, drawn(DIGITS, 21))
    for wrong, words in (
        (sent(other), "measurements of other probes"),
        (sent(probes, largest_s=1e-7), "s0001"),
    ):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=words):
            predicted(tmp_path, file)


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        ({"s0001": 1e-7}, "no processor does more"),
        ({"zzz": 1.0}, "no such probe"),
    ],
)
def test_what_no_processor_can_do_is_not_believed(seconds: dict[str, float], reason: str) -> None:
    probes = probe_set(preset("mobile"), drawn(preset("mobile"), 2))
    mine = measured(probe_set(DIGITS, drawn(DIGITS, 2))).model_copy(update={"seconds": seconds})
    assert reason in absurd(mine, probes)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e-9, 1e9])
def test_measurements_that_are_no_times_are_refused(tmp_path: Path, seconds: float) -> None:
    probes = probe_set(DIGITS, drawn(DIGITS, 2))
    fields = json.loads(
        Measurements(probe_set=probes.digest, kinds=(measured(probes),)).model_dump_json()
    )
    fields["kinds"][0]["seconds"]["s0000"] = seconds
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=r"kinds\.0\.seconds\.s0000"):
        read_measurements(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real set, timed by the tests below."""
    folder = tmp_path_factory.mktemp("probes") / "set"
    with ForkServer(PRELOADS) as converters:
        make_probes(DIGITS, ProbePlan(subnets=2, layers=1, formats=("onnx",)), folder, converters)
    return folder


def test_a_device_times_real_files(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "measured.json"
    done = CliRunner().invoke(
        device_cli,
        ["profile", "--probes", str(made), "--kind", "onnx_int8", "--out", str(out), "--json"],
    )
    assert done.exit_code == 0, done.output
    found = read_measurements(out)
    mine = found.of("onnx_int8")
    assert mine is not None
    assert found.probe_set == read_set(made).digest
    assert set(mine.seconds) == {"s0000", "s0001", "l0000"}
    # The largest network is slower than the smallest, whatever else the machine does.
    assert mine.seconds["s0001"] > mine.seconds["s0000"]
    assert set(mine.load_s) == {"s0000", "s0001"}
    assert mine.peak_bytes["s0001"] > 0


def test_a_damaged_probe_is_not_timed(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "s0000" / "model.int8.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        probing.measure(copy, ["onnx_int8"])


def test_a_kind_that_the_set_lacks_is_named(made: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--kind tflite_int8: the probes in .* have no such files"
    ):
        probing.measure(made, ["tflite_int8"])


def test_no_folder_is_overwritten(made: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        make_probes(DIGITS, ProbePlan(), made, None)  # type: ignore[arg-type]


def test_every_layer_of_a_network_of_images_can_stand_alone() -> None:
    for name in ("digits", "small"):
        for arch in drawn(preset(name), 4):
            for layer in preset(name).layers(arch):
                y = layer_module(layer).eval()(torch.zeros(1, *layer_input(layer)))
                assert y.numel() == layer.out_elements, layer


def run_of(folder: Path, probes: ProbeSet | None, measurements: Sequence[str | None]) -> Run:
    """Devices of class `big`, each with a profile file that names its measurements, or none."""
    devices = small_fleet(folder, ["big"] * len(measurements))
    for place, text in enumerate(measurements):
        if text is not None:
            (folder / f"m{place}.json").write_text(text)
            path = folder / f"p{place}.toml"
            path.write_text(f'{SPEEDS}measurements = "m{place}.json"\n')
            devices[place] = replace(devices[place], profile=str(path))
    search = {}
    if probes is not None:
        (folder / "set").mkdir()
        (folder / "set" / SET_NAME).write_text(probes.model_dump_json())
        search = {"probes": str(folder / "set")}
    config = small_config(
        space={"preset": "digits"}, classes={"big": {"latency_ms": 0.15}}, search=search
    )
    return Run(folder, config, grid_of(devices, honest_app))


def budgets(run: Run) -> tuple[dict[str, ClassBudget], list[str]]:
    failed: list[str] = []
    fleet = run.roll.gather()
    found = usable_classes(
        run.config, DIGITS, fleet, run.log, lambda _name, error: failed.append(str(error))
    )
    return found, failed


def sent(probes: ProbeSet, factor: float = 1.0, largest_s: float | None = None) -> str:
    mine = measured(probes, factor)
    if largest_s is not None:  # the second probe is the largest subnet
        mine = mine.model_copy(update={"seconds": {**mine.seconds, "s0001": largest_s}})
    return Measurements(probe_set=probes.digest, kinds=(mine,)).model_dump_json()


def test_a_class_goes_by_its_slowest_device(tmp_path: Path) -> None:
    probes = probe_set(DIGITS, drawn(DIGITS, 24))
    found, failed = budgets(run_of(tmp_path, probes, [sent(probes), sent(probes, 2.0), None]))
    assert failed == []
    latency = found["big"].latency
    assert latency is not None
    assert latency.without == ("dev-2",)
    for arch in drawn(DIGITS, 40, seed=5):
        assert latency(arch) == pytest.approx(2e3 * device(DIGITS, arch), rel=0.05)
        assert found["big"].fits(arch) == (latency(arch) <= 0.15)
        assert found["big"].predicted_ms(arch) == {"tflite_int8": latency(arch)}


@pytest.mark.parametrize("case", ["no probes", "nobody measured", "other probes", "absurd"])
def test_a_bound_on_latency_that_nobody_can_predict_is_refused(tmp_path: Path, case: str) -> None:
    probes, others = (probe_set(DIGITS, drawn(DIGITS, 24, seed=seed)) for seed in (0, 1))
    text = {"other probes": sent(others), "absurd": sent(probes, largest_s=1e-7)}.get(case)
    run = run_of(tmp_path, None if case == "no probes" else probes, [text])
    found, failed = budgets(run)
    says = {
        "no probes": r"classes\.big: latency_ms = 0\.15, but search\.probes is not set",
        "nobody measured": r"classes\.big\.latency_ms: .*none of them sent timings of tflite_int8",
        "other probes": r"dev-0: measurements of other probes",
        "absurd": r"dev-0: seconds\.s\d+ = .*no processor does more",
    }
    assert found == {}
    assert re.search(says[case], failed[0]), failed


def test_probes_of_another_space_are_refused(tmp_path: Path) -> None:
    probes = probe_set(preset("small"), drawn(preset("small"), 2))
    _, failed = budgets(run_of(tmp_path, probes, [None]))
    assert "probes of another search space" in failed[0]


def test_a_profile_that_names_no_measurements_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "phone.toml"
    path.write_text('measurements = "gone.json"\n')
    with pytest.raises(UsageError, match=r"phone\.toml: .*gone\.json: No such file"):
        read_profile(path)
