"""A small run, trained and specialized through its jobs, and copies of it to break."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_alone
import pytest
from fedofa.protos.inference import Floats, open_model
from fedofa.protos.manifest import FileEntry, FileKind
from fedofa.server import fleet_delivery, publication, run_record, specialization
from fedofa.server.cli import app
from fedofa.server.finishing import finishing
from fedofa.server.jobs import run_job
from fedofa.server.ledger_keys import run_key
from fedofa.server.model_folders import MODELS, RESULTS
from fedofa.server.operate import train_job
from fedofa.server.report import facts, lineage, others
from fedofa.server.report.facts import Facts
from fedofa.server.report.held_out import HeldOut
from fedofa.server.report.lineage import Lineage
from fedofa.server.run_record import RunRecord
from fedofa.supernet.errors import FedofaError
from fleets import grid_of, small_config, small_fleet
from typer.testing import CliRunner

CONFIG: dict[str, Any] = {
    "search": {"samples": 8, "finalists": 1, "random_baseline": 3},
    "export": {"formats": ["onnx"], "max_accuracy_drop": 1.0, "calibration": True},
}


def make(root: Path) -> Path:
    """Train and specialize; the run's folder. The registry lies beside the runs."""
    job = train_job(root, small_config(**CONFIG), resume=False, then_specialize=True)
    with quick_exports():
        run_job(job, grid_of(small_fleet(root, ("big", "small"))))
    return Path(job.folder)


@contextmanager
def quick_exports() -> Iterator[None]:
    """For ONNX files: converters load nothing else, and golden tests run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        for module in (specialization, fleet_delivery, finishing):
            patch.setattr(module, "PRELOADS", (onnx_alone.preload,))
        patch.setattr(publication, "outputs_in_fresh_process", outputs_here)
        yield


def outputs_here(folder: Path, entries: Sequence[FileEntry], x: Floats) -> dict[FileKind, Floats]:
    """As `verify.outputs_in_fresh_process`, of files that are known to run."""
    return {one.kind: open_model(folder / one.name, one).run(x) for one in entries}


def copied(run: Path, root: Path) -> Path:
    """The run in another place, with a registry of its own; and what was finished of it."""
    shutil.copytree(run.parent.parent, root, dirs_exist_ok=True)
    folder = root / run.relative_to(run.parent.parent)

    def moved(record: dict[str, Any]) -> None:
        for job in record["jobs"]:
            if job["published"] is not None:
                registry = Path(job["published"]["registry"])
                job["published"]["registry"] = str(root / registry.name)

    for path in (folder / run_record.RECORD, *folder.glob(f"finished/*/{run_record.RECORD}")):
        signed_again(path.parent, moved)
    return folder


def traced(folder: Path) -> Lineage:
    """The lineage of all that a run published."""
    facts = facts_of(folder)
    return lineage.trace(facts, others.read(facts))


def broken(folder: Path) -> str:
    """What is said of a broken link, as a list or as an error."""
    try:
        return "\n".join(traced(folder).broken)
    except FedofaError as error:
        return str(error)


def signed_again(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the record as somebody who holds the run's key could."""
    record = run_record.read(folder).model_dump(mode="json")
    change(record)
    run_record.write(folder, RunRecord.model_validate(record), run_key(folder, new=False))


def results_again(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the results and note them as they are now."""
    path = folder / RESULTS
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))

    def noted(record: dict[str, Any]) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        record["jobs"][-1]["published"]["results_sha256"] = digest

    signed_again(folder, noted)


def events_of(folder: Path) -> list[dict[str, Any]]:
    """The event log, read by itself."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def held_out_of(folder: Path) -> list[HeldOut]:
    """What a device might have measured of each class's int8 file."""
    found = []
    for path in sorted((folder / MODELS).glob("*/manifest.json")):
        fields = {
            "device_class": path.parent.name,
            "kind": "onnx_int8",
            "manifest_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "examples": 449,
            "accuracy": 0.875,
            "latency_ms": {"median": 0.25, "p95": 0.5, "runs": 9},
            "runtime": "onnxruntime",
        }
        found.append(HeldOut.model_validate(fields))
    return found


def facts_of(folder: Path) -> Facts:
    """What the report reads."""
    return facts.read(folder)


def asked(*arguments: str) -> tuple[int, str]:
    """Exit code and output, as the console entry has them."""
    done = CliRunner().invoke(app, ["report", *arguments])
    if isinstance(done.exception, FedofaError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.stdout
