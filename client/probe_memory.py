"""In a process of its own: how long each probe takes to load and run once, and its peak memory.

`python -m fedofa.client.probe_memory FOLDER KIND THREADS OUT`, the probes as JSON on standard input.
"""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from ..protos.inference import open_model
from ..protos.manifest import FileKind
from ..protos.probes import Probe


class Cost(NamedTuple):
    """Seconds to load and run once; bytes beyond what the process held before."""

    load_s: float
    peak_bytes: int


def main(folder: Path, kind: FileKind, threads: int, out: Path) -> None:
    """Measure each probe and write {name: [seconds, bytes]}."""
    probes = [Probe.model_validate_json(text) for text in json.load(sys.stdin)]
    if probes:
        _cost(folder, probes[0], kind, threads)  # imports the runtime
    found = {probe.name: _cost(folder, probe, kind, threads) for probe in probes}
    out.write_text(json.dumps(found))


def _cost(folder: Path, probe: Probe, kind: FileKind, threads: int) -> Cost:
    entry = next(entry for entry in probe.files if entry.kind == kind)
    x = np.zeros((1, *probe.input_shape), np.float32)
    _forget()
    before, begin = _status("VmRSS"), time.perf_counter()
    model = open_model(folder / probe.name / entry.name, entry, threads)
    model.run(x)
    load_s = time.perf_counter() - begin
    return Cost(load_s, max(_status("VmHWM") - before, 0))


def _forget() -> None:
    """Give freed memory back, so that it is counted when it is taken again; reset the peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # the GNU C library's
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast(FileKind, sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
