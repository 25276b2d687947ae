"""Accuracy and latency on examples of no device: files that devices print, of this run's models."""

import hashlib
import json
from pathlib import Path

import pytest
from fedofa.client.device_model import Latency, Measured
from fedofa.client.reports import of_run
from fedofa.client.store import Installed
from fedofa.protos.manifest import Manifest
from fedofa.server.report import held_out
from fedofa.supernet.errors import UsageError
from reported import asked, facts_of, held_out_of


def test_held_out_measurements_are_taken_of_this_runs_models_only(
    reported_run: Path, tmp_path: Path
) -> None:
    paths = []
    for place, one in enumerate(held_out_of(reported_run)):
        paths.append(tmp_path / f"{place}.json")
        paths[-1].write_text(one.model_dump_json())
    options = [word for path in paths for word in ("--held-out", str(path))]
    code, text = asked("--run", str(reported_run), "--json", *options)
    found = json.loads(text)
    assert code == 0
    assert [(r["class"], r["accuracy"], r["median_ms"]) for r in found["held_out"]] == [
        ("big", 0.875, 0.25), ("small", 0.875, 0.25),
    ]  # fmt: skip
    states = {row["item"]: row["state"] for row in found["practices"]}
    assert states["test-part"] == "met"

    facts, fields = facts_of(reported_run), json.loads(paths[0].read_text())
    for change, said in (
        ({"manifest_sha256": "e" * 64}, "which this run did not publish for 'big'"),
        ({"accuracy": None}, "accuracy: Input should be a valid number"),
        ({"kind": "onnx_int4"}, "kind: "),
    ):
        paths[0].write_text(json.dumps({**fields, **change}))
        with pytest.raises(UsageError, match=said):
            held_out.read(paths[:1], facts)
    paths[0].write_text("{")
    with pytest.raises(UsageError, match="no JSON"):
        held_out.read(paths[:1], facts)


def test_what_a_device_prints_of_a_run_is_a_held_out_measurement(
    reported_run: Path, tmp_path: Path
) -> None:
    path = reported_run / "models/big/manifest.json"
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    model = Installed(path.parent, Manifest.from_json(data), digest, "onnx_int8")
    measured = Measured("onnxruntime", (1, 2, 3, 4), 0.75, Latency(0.2, 0.3, 50))
    printed = tmp_path / "big.json"
    printed.write_text(json.dumps(of_run(model, measured)))
    (found,) = held_out.read([printed], facts_of(reported_run))
    assert (found.accuracy, found.examples, found.latency_ms.median) == (0.75, 4, 0.2)
