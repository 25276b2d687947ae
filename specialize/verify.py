"""Loading exported files in a fresh process and running them.

A broken file may crash or hang its runtime; a process of its own turns that into an error. Without
this step, and the comparison on the devices' own examples, nothing is registered.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..protos.inference import Floats, open_model
from ..protos.manifest import FileEntry, FileKind
from ..supernet.errors import ExportError, FedofaError

TIMEOUT_S = 120.0


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
