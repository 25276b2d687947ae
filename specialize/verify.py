"""Loading exported files in a fresh process and running them on one input.

A broken file may crash its runtime; a process of its own turns that into an error. Without this
step, and the comparison on the devices' own examples, nothing is registered.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..protos.inference import open_model
from ..protos.manifest import FileEntry, FileKind
from ..supernet.errors import ExportError, FedofaError

TIMEOUT_S = 120.0
Floats = NDArray[np.float32]


def outputs_in_fresh_process(
    folder: Path, entries: Sequence[FileEntry], x: Floats, timeout_s: float = TIMEOUT_S
) -> dict[FileKind, Floats]:
    """Each file's output for input `x` (1, …), run by a new process.

    ExportError when a file does not load, its runtime crashes, or its output is not finite.
    """
    request = {
        "folder": str(folder),
        "entries": [entry.model_dump(mode="json") for entry in entries],
        "shape": list(x.shape),
        "input": x.ravel().tolist(),
    }
    command = [sys.executable, "-P", "-m", "fedofa.specialize.verify"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"exported files gave no result within {timeout_s:g} s") from None
    if done.returncode < 0:
        raise ExportError(f"an exported file crashed its runtime (signal {-done.returncode})")
    if done.returncode > 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ExportError(f"an exported file does not load: {said[-1] if said else 'no message'}")
    found = json.loads(done.stdout)
    outputs = {entry.kind: np.array(found[entry.kind], dtype=np.float32) for entry in entries}
    for kind, output in outputs.items():
        if not np.isfinite(output).all():
            raise ExportError(f"{kind}: its output is not finite")
    return outputs


def main() -> int:
    """Read a request from standard input, write the outputs to standard output."""
    request = json.load(sys.stdin)
    x = np.array(request["input"], dtype=np.float32).reshape(request["shape"])
    found = {}
    try:
        for fields in request["entries"]:
            entry = FileEntry.model_validate_json(json.dumps(fields))
            model = open_model(Path(request["folder"]) / entry.name, entry)
            found[entry.kind] = model.run(x).tolist()
    except FedofaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
