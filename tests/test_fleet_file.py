"""A fleet's file: what is wrong is said by device and field, with a way out, and the others go on."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import entry
from fedofa.protos.probes import KindMeasured, Measurements, Probe, ProbeSet
from fedofa.server.fleet_demands import wanted
from fedofa.server.fleet_file import FleetFile, parse_fleet, read_fleet
from fedofa.server.fleet_plan import planned
from fedofa.server.tables import show
from fedofa.specialize.fleet import candidates
from fedofa.specialize.fleet.columns import Columns, latency
from fedofa.specialize.fleet.demand import Bound
from fedofa.specialize.predictors.contract import Sample
from fedofa.supernet.errors import ArtifactError, UsageError
from fedofa.supernet.space import plain
from toy_search import ALL, TOY, linear_truth, macs_of

GOOD: dict[str, Any] = {"name": "good", "runtime": "pi", "budget": {"macs": 10**9}}
RUNTIMES: dict[str, Any] = {
    "pi": {"kind": "onnx_fp32"},
    "fast": {"kind": "tflite_int8", "macs_per_s": 1e9, "power_w": 2.0},
    "counted": {"kind": "tflite_int8", "pj_per_mac": 4.0, "pj_per_byte": 20.0},
}
SAMPLES = [Sample(arch, "all", linear_truth(TOY, 2)(arch)) for arch in ALL[::6]]


@pytest.fixture(autouse=True)
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The space has a few hundred architectures; its front needs no thousands of looks."""
    monkeypatch.setattr(candidates, "LOOKS", 300)
    monkeypatch.setattr(candidates, "GENERATIONS", 3)


def no_probes() -> ProbeSet:
    raise ArtifactError("the run's configuration names no probes")


def fleet(*devices: Any, runtimes: Any = None, **fields: Any) -> FleetFile:
    given = {"runtimes": {**RUNTIMES, **(runtimes or {})}, "devices": [GOOD, *devices], **fields}
    return parse_fleet(json.loads(json.dumps(given)))


def rejected(
    file: FleetFile, folder: Path = Path(), probes: Callable[[], ProbeSet] = no_probes
) -> dict[str, str]:
    """Device → field: reason; the good device is always served."""
    asked = wanted(file, folder, TOY, probes)
    plan, not_served = planned(file, asked, ("linear", SAMPLES), 8, seed=0)
    assert "good" in [one.demand.device for one in plan.placed]
    return {one.device: f"{one.field}: {one.reason}" for one in not_served}


def device(**fields: Any) -> dict[str, Any]:
    return {"name": "bad", "runtime": "fast", **fields}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"budget": {"macs": 0}}, "budget.macs: 0: .*greater than 0; give the bound a number above 0"),
        ({"budget": {"latency_ms": -1}}, "budget.latency_ms: -1: .*greater than or equal to"),
        ({"budget": {"latency_ms": float("nan")}}, "budget.latency_ms: nan: .*finite number"),
        ({"budget": {"energy_mj": float("inf")}}, "budget.energy_mj: inf"),
        ({"budget": {"macs": "many"}}, "budget.macs: 'many': .*valid integer"),
        ({"budget": {"macs": 10**400}}, "budget.macs: 1000"),
        ({"budget": {"flops": 5}}, "budget.flops: unknown; allowed here: macs, params, peak"),
        ({"latency": 3}, "latency: unknown; allowed here: name, runtime, budget, slowdown"),
        ({"slowdown": 0}, "slowdown: 0: .*its latency over the measured device's"),
        ({"macs_per_s": -5.0}, "macs_per_s: -5.0: .*measure it again"),
        ({"macs_per_s": 4.1e12}, "macs_per_s: 4.1e.12 multiply-accumulates a second on 1 threads"),
        ({"slowdown": 0.001, "macs_per_s": 5e9, "budget": {"latency_ms": 1}}, "no processor does"),
        ({"weight": 0}, "weight: 0"),
        ({"runtime": "tpu"}, "runtime: 'tpu' is not in runtimes; there are pi, fast, counted"),
        ({"runtime": 3}, "runtime: 3: .*name one of"),
        ({"gateway": "hub"}, "gateway: 'hub' is not in gateways; there are none"),
        ({"lacks": ["convolution"]}, "lacks: 'convolution' is no operator; known: conv, depthwise"),
        ({"lacks": ["conv"]}, "lacks: every subnet of the space needs conv, which its runtime lacks"),
        ({"runtime": "pi", "budget": {"latency_ms": 1}}, "runtime pi has no measurements.*or remove"),
        ({"runtime": "pi", "budget": {"energy_mj": 1}}, "budget.energy_mj: runtime pi has neither"),
        ({"budget": {"macs": 5}}, r"budget.macs: no subnet fits: .* macs [\d.e+]+ > 5 \(overshoot .*Raise"),
        ({"budget": {"latency_ms": 1e-6}}, "budget.latency_ms: no subnet fits: .*latency_ms"),
        ({"name": "bad", "runtime": "fast", "budget": 7}, "budget: 7: "),
    ],
)  # fmt: skip
def test_a_bad_device_is_rejected_with_field_and_way_out(fields: dict[str, Any], said: str) -> None:
    found = rejected(fleet(device(**fields)))
    assert found.keys() == {"bad"}
    assert re.search(said, found["bad"]), found["bad"]


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"kind": "tensorrt"}, "runtimes.mine.kind: 'tensorrt': .*name the kind of file"),
        ({}, "runtimes.mine.kind: Field required; name the kind of file"),
        ({"kind": "onnx_fp32", "macs_per_s": 1e14}, "runtimes.mine.macs_per_s: 1e.14"),
        ({"kind": "onnx_fp32", "macs_per_s": 0}, "runtimes.mine.macs_per_s: 0: "),
        ({"kind": "onnx_fp32", "macs_per_s": 1e9, "measurements": "a.json"}, "may contradict"),
        (
            {"kind": "onnx_fp32", "power_w": 1, "pj_per_mac": 1, "pj_per_byte": 1},
            "leave one way out",
        ),
        ({"kind": "onnx_fp32", "pj_per_mac": 1}, "pj_per_mac and pj_per_byte go together"),
        ({"kind": "onnx_fp32", "measurements": "gone.json"}, "gone.json: No such file"),
        ({"kind": "onnx_fp32", "lacks": ["covn"]}, "runtimes.mine.lacks: 'covn' is no operator"),
        ([], "runtimes.mine.fields: "),
    ],
)
def test_a_bad_runtime_rejects_its_devices_and_no_others(runtime: Any, said: str) -> None:
    found = rejected(fleet(device(runtime="mine"), runtimes={"mine": runtime}))
    assert found.keys() == {"bad"}
    assert found["bad"].startswith("runtimes.mine.")
    assert re.search(said, found["bad"]), found["bad"]


def test_devices_without_a_name_or_with_one_that_is_taken_are_told_by_their_place() -> None:
    found = rejected(fleet({"runtime": "pi"}, {"name": "good", "runtime": "pi"}, "phone"))
    assert found["devices[1]"].startswith("name: Field required")
    assert "devices[0] has this name too" in found["good"]
    assert found["devices[3]"].startswith("fields: 'phone'")


def test_what_is_given_twice_rejects_whom_it_concerns_and_is_not_taken_from_the_last(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(
        """{"runtimes": {"pi": {"kind": "onnx_fp32"}, "two": {"kind": "onnx_fp32"}, "two": {"kind":
        "onnx_int8"}}, "gateways": {"hub": {"budget": {"macs": 9}}, "hub": {"budget": {"macs": 8}}},
        "devices": [{"name": "good", "runtime": "pi"}, {"name": "a", "runtime": "two"},
        {"name": "b", "runtime": "pi", "gateway": "hub"}, {"name": "c", "runtime": "pi", "weight": 1,
        "weight": 2}, {"name": "d", "runtime": "pi", "budget": {"macs": 1, "params": 2, "macs": 3}}]}"""
    )
    found = rejected(read_fleet(path))
    assert {name: reason.partition(";")[0] for name, reason in found.items()} == {
        "a": "runtimes.two.fields: given twice under this name",
        "b": "gateways.hub.fields: given twice under this name",
        "c": "weight: given twice",
        "d": "budget.macs: given twice",
    }
    path.write_text('{"runtimes": {}, "devices": [], "devices": [{}]}')
    with pytest.raises(UsageError, match="'devices' is given twice"):
        read_fleet(path)


def test_a_rejected_device_can_be_told_whatever_its_names_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    half = "\ud800"
    odd = [
        {"name": half, "runtime": "pi"},
        {"name": "wipes\x1b[2J", "runtime": "pi"},
        {"name": "b", "runtime": half},
        {"name": "c", "runtime": "pi", half: 1},
        {"name": "d", "runtime": "odd" + half},
    ]
    file = fleet(*odd, runtimes={"odd" + half: {}})
    _, not_served = planned(file, wanted(file, Path(), TOY, no_probes), ("linear", SAMPLES), 8, 0)
    assert {one.device for one in not_served} == {"\\ud800", "wipes\\x1b[2J", "b", "c", "d"}
    rows = [{"device": one.device, "field": one.field, "reason": one.reason} for one in not_served]
    json.dumps(rows, ensure_ascii=False).encode()
    show({"not served": [f"{one.device}: {one.field}: {one.reason}" for one in not_served]})
    show([{"runtime": half}])
    assert capsys.readouterr().out.count("\\ud800") >= 4


def test_bounds_that_no_single_one_is_to_blame_for_contradict_each_other() -> None:
    """On this device the larger networks are the faster ones."""
    least = macs_of(TOY.smallest())
    asked = wanted(fleet(device(budget={"macs": least})), Path(), TOY, no_probes)
    odd = latency(lambda arch: 1e-3 if macs_of(arch) > 2 * least else 2e-3)
    bound = Bound("latency_ms", 1.5, "latency_ms:odd")
    asked = replace(
        asked,
        alone=[replace(d, bounds=(*d.bounds, bound)) for d in asked.alone],
        columns=Columns(TOY, {**asked.columns.figures, "latency_ms:odd": odd}),
    )
    _, (found,) = planned(fleet(device()), asked, ("linear", SAMPLES), 8, seed=0)
    assert (found.device, found.field) == ("bad", "budget")
    assert found.reason.startswith("its bounds contradict each other")
    assert "Raise one of them" in found.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "the file: a JSON object expected"),
        ('{"devices": []}', "devices: a list of 1 to 1,000,000 devices expected"),
        ('{"devices": [{}], "runtime": {}}', "unknown key 'runtime'; allowed: runtimes, devices"),
        ('{"devices": [{}]}', "runtimes: a JSON object expected"),
        ("\xff", "is no JSON"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=f"fleet {path}.*{said}"):
        read_fleet(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone.json: No such file .*docs/fleet.md"):
        read_fleet(tmp_path / "gone.json")


def test_a_fleet_in_which_nobody_can_be_served_says_why_for_the_first() -> None:
    file = parse_fleet({"runtimes": RUNTIMES, "devices": [device(budget={"macs": 3})]})
    asked = wanted(file, Path(), TOY, no_probes)
    with pytest.raises(
        UsageError, match=r"no device of the fleet can be served; 1 are .* bad: budget"
    ):
        planned(file, asked, ("linear", SAMPLES), 8, 0)


# ── estimates ────────────────────────────────────────────────────────────────────────────────────


def test_latency_and_energy_are_what_throughput_and_power_say() -> None:
    """1e9 multiply-accumulates a second, twice as slow, two watts."""
    macs = macs_of(ALL[100])
    bounds = {"latency_ms": macs * 2e-6 * 1.0001, "energy_mj": 1e9}
    file = fleet(device(slowdown=2.0, budget=bounds))
    asked = wanted(file, Path(), TOY, no_probes)
    plan, _ = planned(file, asked, ("linear", SAMPLES), 8, 0)
    (mine,) = [one for one in plan.placed if one.demand.device == "bad"]
    spent = plan.artifacts[mine.artifact].columns
    assert spent["macs"] <= macs
    by_name = {bound.name: bound for bound in mine.demand.bounds}
    assert by_name["latency_ms"].spent(1e6) == pytest.approx(2.0)
    assert by_name["energy_mj"].spent(1e6) == pytest.approx(4.0)


def measured_by(speed: float, folder: Path, threads: int = 1) -> ProbeSet:
    """Probes of the toy space, and a device's timings of them, in a file."""
    probes = tuple(
        Probe(
            name=f"p{place}",
            macs=macs_of(arch),
            input_shape=(1, 8, 8),
            arch=dict(arch),
            files=(entry("tflite_int8", b"a file"),),
        )
        for place, arch in enumerate(ALL[:: len(ALL) // 24])
    )
    found = ProbeSet(space=plain(TOY.to_dict()), probes=probes)
    seconds = {probe.name: max(1e-7, probe.macs / speed) for probe in probes}
    measured = KindMeasured(
        kind="tflite_int8", runtime="r", threads=threads, seconds=seconds, noise=0.0, load_s={},
        peak_bytes={},
    )  # fmt: skip
    told = Measurements(probe_set=found.digest, kinds=(measured,))
    (folder / "phone.json").write_text(told.model_dump_json())
    return found


def test_a_measured_runtime_predicts_its_devices_by_their_slowdown(tmp_path: Path) -> None:
    probes = measured_by(1e9, tmp_path)
    runtime = {"kind": "tflite_int8", "measurements": "phone.json"}
    macs = macs_of(ALL[200])
    devices = [
        {"name": f"d{k}", "runtime": "phone", "slowdown": k, "budget": {"latency_ms": 1e-6 * macs}}
        for k in (1.0, 2.0)
    ]
    file = fleet(*devices, runtimes={"phone": runtime})
    asked = wanted(file, tmp_path, TOY, lambda: probes)
    assert asked.trust["phone"]["trusted"]
    plan, not_served = planned(file, asked, ("linear", SAMPLES), 8, 0)
    assert not not_served
    for one in plan.placed:
        if one.demand.device != "good":
            slowdown = float(one.demand.device[1:])
            spent = plan.artifacts[one.artifact].columns
            assert spent["macs"] * slowdown <= macs * 1.05
    found = rejected(
        fleet(
            {**devices[0], "name": "rocket", "slowdown": 1e-3, "runtime": "phone"},
            {**devices[0], "name": "both", "macs_per_s": 1e9},
            runtimes={"phone": runtime},
        ),
        tmp_path,
        lambda: probes,
    )
    assert "may contradict" in found["both"]
    assert "rocket" not in found  # 1e12 a second is fast, and possible


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probe_set": "0" * 64}, "of other probes than the run's"),
        ({"kind": "onnx_int8"}, "has no timings of tflite_int8 files"),
        ({"seconds": {"p1": 1e-7}}, "no processor does more"),
        ({"seconds": {"p1": 0.0}}, "kinds.0.seconds.p1"),
        ({"seconds": {"p1": 1.0}}, "1 subnets were timed; at least 16 are needed"),
        ({"seconds": {"nobody": 1.0}}, "the set has no such probe"),
    ],
)
def test_absurd_measurements_reject_the_devices_that_go_by_them(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    probes = measured_by(1e9, tmp_path)
    path = tmp_path / "phone.json"
    told = json.loads(path.read_text())
    for key, value in change.items():
        (told if key == "probe_set" else told["kinds"][0])[key] = value
    path.write_text(json.dumps(told))
    if said.startswith("no processor"):  # the toy's subnets are too small for 100 ns to be absurd
        big = probes.probes[1].model_copy(update={"macs": 10**7})
        probes = probes.model_copy(update={"probes": (probes.probes[0], big, *probes.probes[2:])})
        told["probe_set"] = probes.digest
        path.write_text(json.dumps(told))
    runtime = {"kind": "tflite_int8", "measurements": "phone.json"}
    found = rejected(
        fleet(device(runtime="phone"), runtimes={"phone": runtime}), tmp_path, lambda: probes
    )
    assert found.keys() == {"bad"}
    assert said in found["bad"]
    assert "phone" in found["bad"]


# ── gateways ─────────────────────────────────────────────────────────────────────────────────────


def test_the_models_of_a_gateway_share_its_budget_and_one_that_is_too_small_is_named() -> None:
    small, large = macs_of(TOY.smallest()), macs_of(TOY.largest())
    models = [{"name": f"m{k}", "runtime": "pi", "gateway": "hub"} for k in range(3)]
    crowd = [{"name": f"c{k}", "runtime": "pi", "gateway": "crowded"} for k in range(3)]
    gateways = {"hub": {"budget": {"macs": 2 * large}}, "crowded": {"budget": {"macs": 2 * small}}}
    file = fleet(*models, *crowd, gateways=gateways)
    asked = wanted(file, Path(), TOY, no_probes)
    plan, not_served = planned(file, asked, ("linear", SAMPLES), 8, 0)
    got = {p.demand.device: plan.artifacts[p.artifact].columns["macs"] for p in plan.placed}
    assert got.keys() == {"good", "m0", "m1", "m2"}
    assert sum(got[name] for name in ("m0", "m1", "m2")) <= 2 * large
    assert {one.device for one in not_served} == {"c0", "c1", "c2"}
    assert (
        f"budget.macs = {2 * small:g}; its 3 models need at least {3 * small:g}"
        in not_served[0].reason
    )


def test_an_impossible_model_of_a_gateway_is_rejected_alone_by_its_own_field() -> None:
    models = [{"name": f"m{k}", "runtime": "pi", "gateway": "hub"} for k in range(2)]
    bad = device(runtime="pi", gateway="hub", budget={"params": 3})
    gateways = {"hub": {"budget": {"macs": 3 * macs_of(TOY.smallest())}}}
    found = rejected(fleet(*models, bad, gateways=gateways))
    assert found.keys() == {"bad"}
    assert found["bad"].startswith("budget.params: no subnet fits")


def test_a_gateways_bound_that_a_model_cannot_be_estimated_for_is_said() -> None:
    models = [{"name": "bad", "runtime": "pi", "gateway": "hub"}]
    found = rejected(fleet(*models, gateways={"hub": {"budget": {"latency_ms": 3.0}}}))
    assert "budget.latency_ms: runtime pi has no measurements" in found["bad"]
    found = rejected(fleet(*models, gateways={"hub": {"budget": {"latency_ms": 0}}}))
    assert found["bad"].startswith("gateways.hub.budget.latency_ms: 0: ")
