"""Accuracy and latency on examples of no device: files that devices print, of this run's models."""

import hashlib
import json
from pathlib import Path

import pytest
from fedofa.client.device_model import Latency, Measured
from fedofa.client.reports import of_run
from fedofa.client.store import Installed
from fedofa.protos.manifest import Finished, Manifest
from fedofa.server.registry import Registry
from fedofa.server.report import command, content, held_out
from fedofa.server.report.page import render
from fedofa.supernet.errors import UsageError
from reported import asked, copied, facts_of, held_out_of, traced


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
        ({"kind": "onnx_int2"}, "kind: "),
    ):
        paths[0].write_text(json.dumps({**fields, **change}))
        with pytest.raises(UsageError, match=said):
            held_out.read(paths[:1], facts)
    paths[0].write_text("{")
    with pytest.raises(UsageError, match="no JSON"):
        held_out.read(paths[:1], facts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"runtime": "\\ud800"', "runtime: String should match pattern|runtime: .*unicode|no JSON"),
        ('"runtime": "<b>x</b>"', "runtime: String should match pattern"),
        (f'"runtime": "{"x" * 65}"', "runtime: String should match pattern"),
        (f'"examples": {10**400}', "examples: "),
        (f'"latency_ms": {{"median": 1, "p95": 1, "runs": {10**400}}}', r"latency_ms\.runs: "),
        (f'"more": {"[" * 200_000}', "no JSON"),
    ],
    ids=["surrogate", "markup", "long", "examples", "runs", "deep"],
)
def test_a_file_that_no_device_prints_is_refused_in_words(
    change: str, said: str, reported_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "one.json"
    # The last of a name counts.
    path.write_text(f"{held_out_of(reported_run)[0].model_dump_json()[:-1]}, {change}}}")
    with pytest.raises(UsageError, match=f"--held-out .*{said}"):
        held_out.read([path], facts_of(reported_run))


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


def test_a_model_that_was_finished_since_is_noted_and_its_measurement_refused_in_words(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    assert traced(folder).notes == ()
    models, root = folder / "models/big", facts_of(folder).job.published.registry  # type: ignore[union-attr]
    manifest = Manifest.from_json((models / "manifest.json").read_bytes())
    told = Finished(
        run="tiny", round=2, supernet_sha256=manifest.supernet_sha256, version=1, rounds=5,
        gain=0.1, standard_error=0.01,
    )  # fmt: skip
    draft = manifest.model_copy(update={"finished": told, "supernet_sha256": "2" * 64})
    with Registry(Path(root)) as registry:
        made = registry.publish(draft, {n: models / f.name for n, f in draft.named().items()})
    found = traced(folder)
    assert found.broken == ()
    assert found.notes == (
        f"registry {root}: channel 'stable' gives devices of class 'big' tiny.big, version 2 "
        "(finished by fedofa finish from version 1), which this report is not about; it is about "
        "what the newest specialization published",
    )
    one, _ = held_out_of(folder)
    digest = hashlib.sha256(made.to_json()).hexdigest()
    path = tmp_path / "big.json"
    path.write_text(one.model_copy(update={"manifest_sha256": digest}).model_dump_json())
    with pytest.raises(
        UsageError, match=r"version 2 \(finished .* from version 1\), which devices"
    ):
        held_out.read([path], facts_of(folder))


def test_times_that_no_device_can_have_are_refused_and_all_others_can_be_drawn(
    reported_run: Path, tmp_path: Path
) -> None:
    facts, path = facts_of(reported_run), tmp_path / "one.json"
    big, small = (json.loads(one.model_dump_json()) for one in held_out_of(reported_run))
    for field in ("median", "p95"):
        for value in (1e-13, 1e300):
            path.write_text(json.dumps({**big, "latency_ms": {**big["latency_ms"], field: value}}))
            with pytest.raises(
                UsageError, match=rf"latency_ms\.{field}: Input should be .* than or"
            ):
                held_out.read([path], facts)
    extremes = [
        {**one, "runtime": "x y.z", "latency_ms": {"median": ms, "p95": ms, "runs": 1}}
        for one, ms in ((big, held_out.LEAST_MS), (small, held_out.MOST_MS))
    ]
    for given in (extremes, extremes[:1], extremes[1:]):
        found = content.build(facts, [held_out.HeldOut.model_validate(one) for one in given])
        assert "x y.z" in render(found)
        command.show(found)
