"""From each file back to devices: a changed byte anywhere on the way is found, and said where."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedofa.protos.manifest import Manifest
from reported import broken, copied, facts_of, results_again, signed_again, traced

CHAIN = (
    "models/big/manifest.json",
    "models/small/manifest.json",
    "models/big/model.int8.onnx",
    "models/small/model.fp32.onnx",
    "specialized.json",
    "events.jsonl",
    "checkpoints/round-000002/weights.safetensors",
    "checkpoints/round-000002/state.json",
    "checkpoints/round-000002/ages.safetensors",
    "ledger.jsonl",
    "run.json",
)


def test_every_file_leads_to_its_subnet_supernet_rounds_and_devices(reported_run: Path) -> None:
    found = traced(reported_run)
    assert (found.broken, found.notes) == ((), ())
    entries = [
        json.loads(line)["body"]
        for line in (reported_run / "ledger.jsonl").read_text().splitlines()
    ]
    rounds = [entry for entry in entries if entry["kind"] == "round"]
    devices = {device for entry in rounds for device in entry["accepted"]}
    files = set((reported_run / "models").glob("*/*.onnx"))
    assert {one.sha256 for one in found.artifacts} == {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    for one in found.artifacts:
        assert one.rounds == len(rounds) == one.round == 2
        assert one.supernet_sha256 == rounds[-1]["after"]
        assert set(one.devices) == devices == {"dev-0", "dev-1"}
        manifest = reported_run / "models" / one.device_class / "manifest.json"
        assert one.manifest_sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()
        canonical = json.dumps(
            json.loads(manifest.read_text())["arch"], sort_keys=True, separators=(",", ":")
        )
        assert one.arch_sha256 == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize("name", CHAIN)
def test_a_changed_byte_is_found_and_the_file_named(
    name: str, reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    assert broken(folder) == ""
    path = folder / name
    data = path.read_bytes()
    for place in (len(data) // 3, 2 * len(data) // 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert path.name in broken(folder) or str(path.parent) in broken(folder)
    path.write_bytes(data)
    assert broken(folder) == ""


@pytest.mark.parametrize("name", [name for name in CHAIN if name != "run.json"])
def test_a_file_that_is_gone_is_found_and_named(
    name: str, reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    (folder / name).unlink()
    found = broken(folder)
    assert Path(name).name in found or str((folder / name).parent) in found


def test_a_number_that_was_changed_in_the_results_is_found(
    reported_run: Path, tmp_path: Path
) -> None:
    """The file is good JSON, and every manifest is as it was."""
    folder = copied(reported_run, tmp_path)
    rows = json.loads((folder / "specialized.json").read_text())
    rows[0]["validation"]["onnx_int8"] = 0.99
    (folder / "specialized.json").write_text(json.dumps(rows, indent=1))
    assert "specialized.json: they are not those that run.json noted" in broken(folder)


def renamed_supernet(manifest: dict[str, Any]) -> None:
    manifest["supernet_sha256"] = "c" * 64


def cheaper(manifest: dict[str, Any]) -> None:
    manifest["cost"]["macs"] -= 1


def other_arch(manifest: dict[str, Any]) -> None:
    manifest["arch"]["head.width"] = 48 - manifest["arch"]["head.width"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed_supernet, f"it comes from the supernet {'c' * 64}"),
        (cheaper, "does not cost what it says"),
        (other_arch, "its architecture is not that of specialized.json"),
    ],
)
def test_a_manifest_of_something_else_is_found_also_where_its_digest_was_noted(
    change: Callable[[dict[str, Any]], None], said: str, reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    path = folder / "models/big/manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_bytes(Manifest.model_validate(fields).to_json())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def noted(record: dict[str, Any]) -> None:
        record["jobs"][-1]["published"]["manifests"]["big"] = digest

    signed_again(folder, noted)
    results_again(folder, lambda rows: rows[0].update(manifest_sha256=digest))
    assert said in broken(folder)


def test_a_record_of_another_supernet_breaks_at_checkpoint_and_ledger(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    signed_again(folder, lambda record: record["jobs"][-1].update(weights="d" * 64))
    found = broken(folder)
    for where in ("checkpoint", "ledger", "manifest"):
        assert any(line.startswith(where) and "d" * 64 in line for line in found.splitlines())


def test_a_ledger_that_was_cut_lacks_the_hash_that_was_noted(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    path = folder / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "run.json noted that hash" in broken(folder)


def test_what_devices_pull_is_compared_byte_for_byte(reported_run: Path, tmp_path: Path) -> None:
    folder = copied(reported_run, tmp_path)
    registry = Path(facts_of(folder).job.published.registry)  # type: ignore[union-attr]
    blob = next(path for path in registry.glob("blobs/*/*"))
    data = blob.read_bytes()
    blob.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert f"file {blob} was changed" in broken(folder)
    blob.write_bytes(data)
    with sqlite3.connect(registry / "registry.db") as database:
        database.execute("UPDATE versions SET manifest = replace(manifest, 'tiny.big', 'tiny.bug')")
    assert "the manifest of tiny.big, version 1, is not" in broken(folder)


def test_a_registry_that_is_elsewhere_is_noted_not_passed_over(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    shutil.rmtree(facts_of(folder).job.published.registry)  # type: ignore[union-attr]
    found = traced(folder)
    assert found.broken == ()
    assert "what devices pull was not compared" in found.notes[0]


def test_a_model_that_no_specialization_published_is_named(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    shutil.copytree(folder / "models/big", folder / "models/stranger")
    assert "models/stranger/manifest.json: no specialization in run.json" in broken(folder)


def test_a_checkpoint_that_made_room_for_newer_ones_is_noted(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    shutil.rmtree(folder / "checkpoints/round-000001")
    (folder / "checkpoints/round-000002").rename(folder / "checkpoints/round-000003")
    found = traced(folder)
    assert found.broken == ()
    assert "made room for newer ones" in found.notes[0]
    shutil.rmtree(folder / "checkpoints/round-000003")
    assert "it is not there, and no newer one" in broken(folder)


def test_a_ledger_with_a_bad_entry_is_a_broken_link(reported_run: Path, tmp_path: Path) -> None:
    folder = copied(reported_run, tmp_path)
    path = folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"dev-1":{"sha256"', b'"dev-9":{"sha256"', 1))
    assert "ledger.jsonl: entry 1: hash" in broken(folder)
