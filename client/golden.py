"""The golden test: does a model file, on this device, do what its manifest says?

A broken file may crash or hang the runtime that loads it, so the test runs in a process of its
own: `python -m fedofa.client.golden FOLDER KIND` ends with 0, or with 1 and a line `error: …`.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..protos.manifest import MANIFEST_NAME, FileKind, Manifest
from ..supernet.errors import ArtifactError, FedofaError

TIMEOUT_S = 120.0


def run_golden(folder: Path, kind: FileKind, timeout_s: float = TIMEOUT_S) -> None:
    """Test a version's file in a fresh process; ArtifactError says why it failed."""
    # -P: the current folder's files must not stand in for modules.
    command = [sys.executable, "-P", "-m", "fedofa.client.golden", str(folder), kind]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise ArtifactError(f"golden test: {kind} gave no result in {timeout_s:g} s") from None
    if done.returncode < 0:
        raise ArtifactError(f"golden test: {kind} crashed its runtime (signal {-done.returncode})")
    if done.returncode > 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise ArtifactError(f"golden test: {kind}: {(said or lines)[-1][:500]}")


def check_golden(folder: Path, kind: str) -> None:
    """Test a version's file in this process; ArtifactError when its output is another."""
    import numpy as np

    from ..protos.inference import open_model

    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_bytes())
    entry, golden = manifest.file(kind), manifest.golden
    tolerance = golden.tolerance.get(entry.kind)
    if tolerance is None:
        raise ArtifactError(f"the manifest has no golden tolerance for {kind}")
    x = np.asarray(golden.input, np.float32).reshape(golden.input_shape)
    wanted = np.asarray(golden.reference(entry.kind), np.float32)
    output = open_model(folder / entry.name, entry).run(x).ravel()
    if output.shape != wanted.shape:
        raise ArtifactError(f"{output.size} output values; the manifest has {wanted.size}")
    # Written so that a NaN fails.
    difference = float(np.abs(output - wanted).max())
    if not difference <= tolerance:
        raise ArtifactError(
            f"its output is off by {difference:.3g}; the manifest allows {tolerance:.3g}"
        )


def main(arguments: Sequence[str]) -> int:
    """Run the golden test on FOLDER KIND."""
    folder, kind = arguments
    try:
        check_golden(Path(folder), kind)
    except (FedofaError, OSError, ValueError, RuntimeError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
