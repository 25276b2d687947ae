"""Loading exported files in a fresh process and comparing what they give with the subnet's output.

A broken file may crash or hang its runtime; a process of its own turns that into an error. Without
this step, and the comparison on the devices' own examples, nothing is registered.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..protos.inference import Floats, open_model
from ..protos.manifest import FileEntry, FileKind
from ..supernet.errors import ExportError, FedofaError

TIMEOUT_S = 120.0
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may differ from its subnet: absolute for float files, as accuracy for all."""

    max_float_difference: float = 1e-3
    max_accuracy_drop: float = 0.01


@dataclass(frozen=True, slots=True)
class Compared:
    """One file beside its subnet on the same inputs.

    `agreement` is the share of inputs with the same top class; `accuracy_drop` (subnet's accuracy
    less the file's) is None where no labels were given.
    """

    kind: FileKind
    max_difference: float
    agreement: float
    accuracy_drop: float | None


def verify(
    folder: Path,
    entries: Sequence[FileEntry],
    inputs: Floats,
    reference: Floats,
    labels: Labels | None = None,
    limits: Limits | None = None,
) -> list[Compared]:
    """Run files in a fresh process on real inputs (n, …); reference outputs are (n, classes).

    ExportError names the first file beyond a limit, with its figure and the limit.
    """
    outputs = outputs_in_fresh_process(folder, entries, inputs)
    return compare(outputs, reference, labels, limits or Limits())


def compare(
    outputs: Mapping[FileKind, Floats], reference: Floats, labels: Labels | None, limits: Limits
) -> list[Compared]:
    """The files' outputs beside the subnet's, each (n, classes); ExportError as `verify` says."""
    found = []
    wanted = reference.argmax(axis=1)
    for kind, output in outputs.items():
        if output.shape != reference.shape:
            raise ExportError(f"{kind}: output {output.shape}; the subnet's is {reference.shape}")
        top, drop = output.argmax(axis=1), None
        if labels is not None:
            drop = float((wanted == labels).mean() - (top == labels).mean())
        difference = float(np.abs(output - reference).max())
        found.append(Compared(kind, difference, float((top == wanted).mean()), drop))
        if kind.endswith("fp32") and not difference <= limits.max_float_difference:
            raise ExportError(
                f"{kind}: off by {difference:.3g} from PyTorch; the limit is "
                f"{limits.max_float_difference:g}"
            )
        if drop is not None and drop > limits.max_accuracy_drop:
            raise ExportError(
                f"{kind}: loses {drop:.3f} of accuracy; the limit is {limits.max_accuracy_drop:g}"
            )
    return found


def outputs_in_fresh_process(
    folder: Path, entries: Sequence[FileEntry], x: Floats, timeout_s: float = TIMEOUT_S
) -> dict[FileKind, Floats]:
    """Each file's outputs for inputs `x` (n, …), run by a new process within `timeout_s` in all.

    ExportError names a file that does not load, crashes its runtime, hangs, or gives an output
    that is not finite.
    """
    request = {
        "folder": str(folder),
        "entries": [entry.model_dump(mode="json") for entry in entries],
        "shape": list(x.shape),
        "input": x.ravel().tolist(),
    }
    # -P: the current folder's files must not stand in for modules.
    command = [sys.executable, "-P", "-m", "fedofa.specialize.verify"]
    said = json.dumps(request).encode()
    try:
        done = subprocess.run(
            command, input=said, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as late:
        name = _in_progress(entries, late.stdout or b"")
        raise ExportError(f"{name}: no result within {timeout_s:g} s") from None
    if done.returncode < 0:
        name = _in_progress(entries, done.stdout)
        raise ExportError(f"{name}: crashed its runtime (signal {-done.returncode})")
    if done.returncode > 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ExportError(f"{_in_progress(entries, done.stdout)}: {lines[-1][:500]}")
    outputs = {}
    for entry, line in zip(entries, done.stdout.splitlines(), strict=True):
        outputs[entry.kind] = np.array(json.loads(line), dtype=np.float32)
        if not np.isfinite(outputs[entry.kind]).all():
            raise ExportError(f"{entry.name}: its output is not finite")
    return outputs


def _in_progress(entries: Sequence[FileEntry], printed: bytes) -> str:
    """The child prints a line per file: the first without one is where it stopped."""
    finished = printed.count(b"\n")
    return entries[finished].name if finished < len(entries) else "exported files"


def main() -> int:
    """Read a request from standard input, write each file's outputs as a line of JSON."""
    request = json.load(sys.stdin)
    x = np.array(request["input"], dtype=np.float32).reshape(request["shape"])
    for fields in request["entries"]:
        entry = FileEntry.model_validate_json(json.dumps(fields))
        try:
            outputs = open_model(Path(request["folder"]) / entry.name, entry).run(x)
        except FedofaError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stdout.write(json.dumps(outputs.tolist()) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
