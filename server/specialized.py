"""What a specialization published, as the run's folder and its report give it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median

from ..protos import durable
from ..protos.manifest import FILE_NAMES, FileKind, Manifest
from ..specialize.adjust import AS_TRAINED, Adjustment
from .class_choice import Choice
from .figures import FileMeasured


@dataclass(frozen=True, slots=True)
class Specialized:
    """One class's result, as the run's report gives it."""

    device_class: str
    manifest: Manifest
    manifest_path: Path
    choice: Choice
    figures: Mapping[FileKind, FileMeasured]
    adjustment: Adjustment = AS_TRAINED


def write_results(path: Path, results: Sequence[Specialized]) -> None:
    """What was published, for `fedofa specialize --json` and the demo's report."""
    rows = [_row(result) for result in results]
    durable.write(path, json.dumps(rows, indent=1).encode())


def _row(result: Specialized) -> dict[str, object]:
    folder, best = result.manifest_path.parent, result.choice.best
    adjusted = result.adjustment
    measured = {str(kind): figure.file.accuracy for kind, figure in result.figures.items()}
    counted = {str(kind): figure.file.examples for kind, figure in result.figures.items()}
    return {
        "class": result.device_class,
        "arch": dict(best.arch),
        "origin": best.origin,
        "cost": result.manifest.cost,
        "budget": result.manifest.budget,
        "manifest": str(result.manifest_path),
        "manifest_sha256": sha256(result.manifest.to_json()).hexdigest(),
        "version": result.manifest.version,
        "files": {e.kind: str(folder / FILE_NAMES[e.kind]) for e in result.manifest.files},
        "size_bytes": {e.kind: e.size_bytes for e in result.manifest.files},
        "validation": {
            "pytorch": best.measured.accuracy,
            "examples": best.measured.examples,
            **measured,
        },
        # Files are measured by themselves, after the search: another exchange, other replies.
        "validation_examples": {"pytorch": best.measured.examples, **counted},
        "latency_ms": latency_ms(result.choice.predicted_ms, result.figures),
        **result.choice.to_row(),
        "adjustment": {"temperature": adjusted.temperature, "shift": list(adjusted.shift)},
        "calibration": calibration(result.figures),
    }


def latency_ms(
    predicted_ms: Mapping[FileKind, float], figures: Mapping[FileKind, FileMeasured]
) -> dict[str, dict[str, float | int | None]]:
    """Each file's latency, milliseconds: as predicted, and as the class's own devices measured it.

    Of those that timed it: how many, their median, and the slowest. No entry where neither is known.
    """
    found: dict[str, dict[str, float | int | None]] = {}
    for kind, figure in figures.items():
        mine = [1e3 * seconds for seconds in figure.latency_s.values()]
        predicted = predicted_ms.get(kind)
        if mine or predicted is not None:
            found[str(kind)] = {
                "predicted": predicted,
                "median": median(mine) if mine else None,
                "slowest": max(mine) if mine else None,
                "devices": len(mine),
            }
    return found


def calibration(figures: Mapping[FileKind, FileMeasured]) -> dict[str, dict[str, float]] | None:
    """Each file's report and, as `pytorch`, its subnet's; None where none was asked for."""
    found = {str(kind): f.calibration for kind, f in figures.items() if f.calibration is not None}
    if not found:
        return None
    subnet = next(iter(found.values()))[1]
    return {
        "pytorch": subnet.report(),
        **{kind: file.report() for kind, (file, _) in found.items()},
    }
