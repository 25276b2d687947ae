"""From a checkpoint's values to verified int8 files: the first subnet, the next one, a fleet's 64.

Seconds on the clock, since two converters run side by side: measure on a machine that does nothing else.
`first` pays for starting the process that imports the converters, which `second` finds ready. Both make
TFLite and ONNX, float and int8, with ranges observed here on random inputs in place of devices', and run
each file in a fresh process. `in converters` is the share of the second's time within the packages that
convert and quantize. `64` are as many different subnets, each one kind of file, two at a time.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fedofa.protos.inference import Ranges
from fedofa.protos.manifest import FLOATS
from fedofa.protos.observing import observe_ranges
from fedofa.specialize import onnx_export, onnx_quantize, tflite
from fedofa.specialize.export import (
    PRELOADS,
    FloatExport,
    Subnet,
    complete,
    export_floats,
    float_calls,
    together,
)
from fedofa.specialize.fork_server import Call, ForkServer
from fedofa.specialize.verify import outputs_in_fresh_process
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.randomness import array_stream, stream
from fedofa.supernet.space import Arch, Space, plain
from fedofa.supernet.subnet import batch_norms

SPACES = ("digits", "small")
BOTH, FLEET, OBSERVED = ("tflite", "onnx"), 64, 16
CONVERTERS: Sequence[tuple[Any, str]] = (
    (tflite, "export_tflite"), (onnx_export, "export_onnx"),
    (tflite, "quantize_tflite"), (onnx_quantize, "quantize_onnx"),
)  # fmt: skip


def bench_export() -> list[dict[str, Any]]:
    """Seconds from values to verified int8 files, goal 8 for the first."""
    return [_row(name) for name in SPACES]


def _row(name: str) -> dict[str, Any]:
    space = preset(name)
    archs = _different(space, FLEET)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with ForkServer(PRELOADS) as server:
            _verified(server, space, [archs[0]], Path(folder) / "first", BOTH)
            first_s = time.perf_counter() - begin
            second_s = _verified(server, space, [archs[1]], Path(folder) / "second", BOTH)
            fleet_s = _verified(server, space, archs, Path(folder) / "fleet")
        inside_s, whole_s = _inside(space, archs[1], Path(folder) / "inside")
    return {
        "space": name,
        "goal_s": 8,
        "first_s": first_s,
        "second_s": second_s,
        "in converters": f"{100 * inside_s / whole_s:.0f} %",
        f"{FLEET}_s": fleet_s,
    }


def _different(space: Space, count: int) -> list[Arch]:
    rng, found = stream(0, "bench export"), dict[Arch, None]()
    while len(found) < count:
        found[space.sample(rng)] = None
    return list(found)


def _verified(
    server: ForkServer,
    space: Space,
    archs: Sequence[Arch],
    folder: Path,
    formats: Sequence[str] | None = None,
) -> float:
    """Seconds to make and run the files of these subnets; without `formats`, TFLite and ONNX in turn."""
    begin = time.perf_counter()
    subnets = {f"{place}": _subnet(space, arch) for place, arch in enumerate(archs)}
    asked = {n: formats or (BOTH[int(n) % 2],) for n in subnets}
    parts = server.run(
        {
            f"{n} {form}": call
            for n, s in subnets.items()
            for form, call in zip(asked[n], float_calls(s, asked[n], folder / n), strict=True)
        }
    )
    floats = {n: together([parts[f"{n} {form}"] for form in asked[n]]) for n in subnets}
    ranges = {n: _ranges(floats[n]) for n in subnets}
    done = server.run({n: Call(complete, (s, folder / n, ranges[n])) for n, s in subnets.items()})
    for name, completed in done.items():
        outputs_in_fresh_process(folder / name, completed.entries, _inputs(floats[name], 1))
    return time.perf_counter() - begin


def _ranges(exported: FloatExport) -> dict[str, Ranges]:
    x = _inputs(exported, OBSERVED)
    return {
        form: observe_ranges(content, FLOATS[form], x)
        for form, content in exported.observable.items()
    }


def _inputs(exported: FloatExport, count: int) -> np.ndarray:
    rng = array_stream(0, "bench export inputs")
    return rng.standard_normal((count, *exported.input_shape)).astype(np.float32)


def _subnet(space: Space, arch: Arch) -> Subnet:
    """Values as a checkpoint gives them, of an untrained network: no converter's time depends on them."""
    rng, module = array_stream(0, "bench export values"), space.build(arch)
    norms = [
        part
        for layer in batch_norms(module).values()
        for part in (rng.normal(size=layer.num_features), rng.uniform(0.5, 2, layer.num_features))
    ]
    values = [p.detach().numpy().ravel() for p in module.parameters()]
    flat = np.concatenate([*values, *norms]).astype(np.float32)
    return Subnet(plain(space.to_dict()), dict(arch), flat)


def _inside(space: Space, arch: Arch, folder: Path) -> tuple[float, float]:
    """Seconds within converters, and in all but the check in a fresh process, of one subnet here."""
    for preload in PRELOADS:
        preload()
    spent: list[float] = []
    with _timing(spent):
        begin = time.perf_counter()
        subnet = _subnet(space, arch)
        exported = export_floats(subnet, BOTH, folder)
        complete(subnet, folder, _ranges(exported))
        return sum(spent), time.perf_counter() - begin


@contextmanager
def _timing(spent: list[float]) -> Iterator[None]:
    kept = [(where, name, getattr(where, name)) for where, name in CONVERTERS]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                spent.append(time.perf_counter() - begin)

        return run

    for where, name, call in kept:
        setattr(where, name, timed(call))
    try:
        yield
    finally:
        for where, name, call in kept:
            setattr(where, name, call)
