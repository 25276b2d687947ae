"""What goes wrong around a fleet's plan: whose fault it is is said, and the others go on."""

from typing import Any

import pytest
from fedofa.server import fleet_runtimes
from fedofa.server.fleet_plan import artifact_name
from test_fleet_file import device, few_looks, fleet, measured_by, rejected
from toy_search import ALL, TOY

__all__ = ["few_looks"]


def test_runs_that_share_a_registry_publish_the_same_subnet_for_classes_of_their_own() -> None:
    kind = "onnx_int8"
    names = {artifact_name(run, kind, ALL[0]) for run in ("one", "two", "two.branch")}
    assert len(names) == 3
    assert artifact_name("one", kind, ALL[0]) in names
    assert artifact_name("one", kind, ALL[1]) not in names


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"macs_per_s": 1e-30}, "macs_per_s"),
        ({"budget": {"latency_ms": 1e-31}}, "budget.latency_ms"),
        ({"runtime": "mine", "budget": {"energy_mj": 1.0}}, "budget.energy_mj"),
        ({"runtime": "mine", "gateway": "hub"}, "budget.energy_mj"),
        ({"runtime": "zero", "budget": {"macs": 1}}, "runtimes.zero.measurements"),
        ({"runtime": "half", "budget": {"macs": 1}}, "runtimes.half.measurements"),
    ],
)
def test_one_absurd_figure_rejects_its_own_device(fields: dict[str, Any], field: str) -> None:
    runtimes = {
        "mine": {"kind": "onnx_fp32", "macs_per_s": 1e9, "power_w": 1e-100},
        "zero": {"kind": "onnx_fp32", "measurements": "a\u0000b"},
        "half": {"kind": "onnx_fp32", "measurements": "\ud800"},
    }
    gateways = {"hub": {"budget": {"energy_mj": 5.0}}}
    found = rejected(fleet(device(**fields), runtimes=runtimes, gateways=gateways))
    assert found.keys() == {"bad"}
    assert found["bad"].startswith(f"{field}: "), found["bad"]
    found["bad"].encode()


@pytest.mark.parametrize("odd", [float("nan"), -1.0, float("inf")])
@pytest.mark.parametrize("ends", [True, False])
def test_a_runtime_whose_latency_is_predicted_as_no_number_rejects_its_own_devices(
    odd: float, ends: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, real = measured_by(1e9, tmp_path), fleet_runtimes.device_latency

    def broken(*arguments: Any) -> Any:
        found = real(*arguments)

        class Odd:
            method, errors = found.method, found.errors

            def predict(self, arch: Any) -> float:
                whole = not ends and arch in (TOY.smallest(), TOY.largest())
                return 1.0 if whole else odd

        return Odd()

    monkeypatch.setattr(fleet_runtimes, "device_latency", broken)
    runtimes = {"phone": {"kind": "tflite_int8", "measurements": "phone.json"}}
    bad = device(runtime="phone", budget={"latency_ms": 5.0})
    found = rejected(fleet(bad, runtimes=runtimes), tmp_path, lambda: probes)
    assert found.keys() == {"bad"}
    assert ("measure it again" if ends else "no subnet fits") in found["bad"]
