"""`fedofa bench bits`: what few bits cost in accuracy, and give in bytes and time, subnet by subnet.

A supernet of each task is trained once, as for the table of recipes. Of every budget the largest subnet
is exported; each way of quantizing it is measured on the test part, beside the float network on the
same examples. Ranges come from devices' histograms, merged.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from fedofa.client.data import Floats
from fedofa.protos import durable
from fedofa.protos.histograms import Histogram
from fedofa.protos.inference import InferenceModel, Ranges, open_model
from fedofa.protos.manifest import FILE_NAMES, FLOATS, INT4S, INTS, FileKind
from fedofa.protos.observing import observe_histograms
from fedofa.server.tables import table
from fedofa.specialize import onnx_export, onnx_quantize, tflite
from fedofa.specialize.equalize import equalized
from fedofa.specialize.estimators import Estimator, estimated
from fedofa.specialize.quantizing import ROUNDED, FewBits, file_entry, quantize_few
from fedofa.specialize.scheme import INT8, QuantScheme
from fedofa.supernet.called_layers import narrow
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.fake_quant import quantized
from fedofa.supernet.fake_quant import rounded as round_to
from fedofa.supernet.folding import folded
from fedofa.supernet.space import Arch
from rich.console import Console
from torch import nn

from .accuracy import commit
from .bits_subnets import Measurable, measurable
from .timing import machine

TASK_NAMES = ("fashion", "cifar10")
TEST_EXAMPLES, SLOW_EXAMPLES = 4000, 400
BINS = 512
KEPT = Path("build/bits")
Record = dict[str, Any]

W4 = QuantScheme(weight_bits=4)
WEIGHTS_ONLY, W4_ONLY = QuantScheme(activation_bits=32), QuantScheme(4, activation_bits=32)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of quantizing. `prepared` names what is done to the network before export; `published`
    is how a run makes files of 4 bits, whatever the scheme says, and `nearest` without `int4_compensate`.
    """

    name: str
    form: str
    scheme: QuantScheme = INT8
    prepared: str = "plain"
    estimator: Estimator = "minmax"
    examples: int = TEST_EXAMPLES


PUBLISHED, NEAREST = "4-bit, as published", "4-bit, to the nearest levels"
WIDE = QuantScheme(activation_bits=16, activation_symmetric=True)
VARIANTS = (
    Variant("int8", "tflite"),
    Variant("int8, percentile", "tflite", estimator="percentile"),
    Variant("int8, mse", "tflite", estimator="mse"),
    Variant("int8, equalized", "tflite", prepared="equalized"),
    Variant("int8, bias corrected", "tflite", prepared="8-bit statistics"),
    Variant("int8 per tensor", "tflite", QuantScheme(per_channel=False)),
    Variant("int8 per tensor, equalized", "tflite", QuantScheme(per_channel=False), "equalized"),
    Variant("w8 a16", "tflite", WIDE, examples=SLOW_EXAMPLES),
    Variant("w8 a32", "tflite", WEIGHTS_ONLY),
    Variant("w4 a8", "tflite", W4),
    Variant("w4 a8, mse", "tflite", W4, estimator="mse"),
    Variant("w4 a8, equalized", "tflite", W4, "equalized"),
    Variant(NEAREST, "tflite", W4, "nearest"),
    Variant(PUBLISHED, "tflite", W4, "published"),
    Variant("w4 a32, bias corrected", "tflite", W4_ONLY, "4-bit statistics"),
    Variant("int8", "onnx"),
    Variant("int8, mse", "onnx", estimator="mse"),
    Variant("w8 a16", "onnx", WIDE),
    Variant("w8 a32", "onnx", WEIGHTS_ONLY),
    Variant("w4 a32", "onnx", W4_ONLY),
    Variant(NEAREST, "onnx", W4_ONLY, "nearest"),
    Variant(PUBLISHED, "onnx", W4_ONLY, "published"),
)  # fmt: skip


def rounded(bits: int) -> Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]:
    """Weights as fewer bits hold them: norm statistics are then those of the rounded network."""
    return partial(quantized, bits=bits)


PREPARED: Mapping[str, Callable[[Measurable, Arch], nn.Module]] = MappingProxyType(
    {
        "plain": lambda on, arch: folded(on.module(arch)),
        "equalized": lambda on, arch: equalized(folded(on.module(arch))).module,
        "8-bit statistics": lambda on, arch: folded(on.module(arch, rounded(8))),
        "4-bit statistics": lambda on, arch: folded(on.module(arch, rounded(4))),
        "published": lambda on, arch: folded(on.narrowed(arch)),
        "nearest": lambda on, arch: folded(
            on.corrected(arch, partial(round_to, widths=narrow(on.space, arch)))
        ),
    }
)


@dataclass(slots=True)
class Exports:
    """One subnet's float files and histograms, each made when first asked for."""

    on: Measurable
    arch: Arch
    folder: Path
    _made: dict[tuple[str, str], tuple[Path, dict[str, Histogram]]] = field(default_factory=dict)

    def get(self, form: str, prepared: str) -> tuple[Path, dict[str, Histogram]]:
        """The float file, and what the devices saw in it."""
        key = form, prepared
        if key not in self._made:
            module = PREPARED[prepared](self.on, self.arch)
            example = torch.zeros(1, *self.on.space.input_shape(self.arch))
            path = self.folder / f"{form}-{prepared}"
            if form == "tflite":
                tflite.export_tflite(module, example, path)
                content = path.read_bytes()
            else:
                onnx_export.export_onnx(module, example, path)
                content = onnx_export.observable(path)
            kind = FLOATS[form]
            seen = [
                observe_histograms(content, kind, self.on.inputs(self.arch, part), BINS)
                for part in self.on.parts
            ]
            merged = {name: reduce(add, (one[name] for one in seen)) for name in seen[0]}
            self._made[key] = path, merged
        return self._made[key]


def command(results: Path, only: Sequence[str] = ()) -> list[Record]:
    """Measure what is not in `results` yet, write it after every subnet, print the summary."""
    if unknown := set(only) - set(TASK_NAMES):
        raise UsageError(f"--data {unknown.pop()!r}: known: {', '.join(TASK_NAMES)}")
    torch.set_num_threads(1)
    path = results / "bits.json"
    kept: list[Record] = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in only or TASK_NAMES:
        on = measurable(name, KEPT, TEST_EXAMPLES)
        for budget, arch in on.archs():
            whose = {"task": name, "budget": budget, "train_macs": on.task.budget_macs}
            if not any(whose.items() <= row.items() for row in kept):
                kept += [{**whose, "commit": commit(), **row} for row in measured(on, arch)]
                path.parent.mkdir(parents=True, exist_ok=True)
                record = {"machine": machine(), "rows": kept}
                durable.write(path, json.dumps(record, indent=1).encode() + b"\n")
    Console().print(table(summary(kept), "bits: mean over the subnets of both tasks"))
    return kept


def measured(on: Measurable, arch: Arch, variants: Sequence[Variant] = VARIANTS) -> list[Record]:
    """Each variant of one subnet, after the float files."""
    x = on.inputs(arch, on.test.x)
    with torch.no_grad():
        reference: Floats = folded(on.module(arch))(torch.from_numpy(x)).numpy()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        exports = Exports(on, arch, Path(name))
        for form in ("tflite", "onnx"):
            path, _ = exports.get(form, "plain")
            rows.append(_row("fp32", form, FLOATS[form], path, x, reference, on))
        for variant in variants:
            source, seen = exports.get(variant.form, variant.prepared)
            ranges = estimated(seen, variant.estimator, min(variant.scheme.activation_bits, 16))
            target = Path(name) / "quantized"
            kind = INTS[variant.form]
            if variant.prepared in ("nearest", "published"):
                target = _published(source, variant.form, ranges, Path(name))
                kind = INT4S[variant.form]
            elif variant.form == "tflite":
                tflite.quantize_tflite(source, ranges, target, variant.scheme)
            else:
                onnx_quantize.quantize_onnx(source, ranges, target, variant.scheme)
            n = min(variant.examples, len(x))
            rows.append(_row(variant.name, variant.form, kind, target, x[:n], reference[:n], on))
    macs = cost(on.space, arch).macs
    return [{"macs": macs, **row} for row in rows]


def _published(source: Path, form: str, ranges: Ranges, folder: Path) -> Path:
    (folder / ROUNDED).mkdir()
    shutil.copy(source, folder / ROUNDED / FILE_NAMES[FLOATS[form]])
    (entry,) = quantize_few(folder, FewBits({form: ranges}))
    return folder / entry.name


def _row(
    name: str, form: str, kind: FileKind, path: Path, x: Floats, reference: Floats, on: Measurable
) -> Record:
    labels = on.test.y[: len(x)]
    model = open_model(
        path, file_entry(kind, path, (tflite if form == "tflite" else onnx_export).specs(path))
    )
    output = model.run(x)
    right, before = (logits.argmax(1) == labels for logits in (output, reference))
    return {
        "variant": name,
        "form": form,
        "examples": len(x),
        "float_accuracy": float(before.mean()),
        "drop": float(before.mean() - right.mean()),
        "drop_error": float(np.std(before.astype(float) - right) / len(x) ** 0.5),
        "agree": float((output.argmax(1) == reference.argmax(1)).mean()),
        "size_bytes": path.stat().st_size,
        "cpu_us": _microseconds(model, x[:1]),
    }


def _microseconds(model: InferenceModel, x: Floats) -> float:
    """CPU time of one inference: both runtimes compute in the thread that calls."""
    times = []
    for _ in range(60):
        begin = time.thread_time_ns()
        model.run(x)
        times.append((time.thread_time_ns() - begin) / 1e3)
    return median(times[10:])


def summary(rows: Sequence[Record]) -> list[Record]:
    """Per variant: drops in points, size and time relative to the float file of the same subnet."""
    floats = {(r["task"], r["budget"], r["form"]): r for r in rows if r["variant"] == "fp32"}
    found = []
    for form, name in dict.fromkeys((r["form"], r["variant"]) for r in rows):
        mine = [r for r in rows if (r["form"], r["variant"]) == (form, name)]
        base = [floats[r["task"], r["budget"], form] for r in mine]
        ratios = {
            key: mean(r[key] / b[key] for r, b in zip(mine, base, strict=True))
            for key in ("size_bytes", "cpu_us")
        }
        found.append(
            {
                "runtime": {"tflite": "LiteRT", "onnx": "ONNX Runtime"}[form],
                "variant": name,
                "mean drop": f"{100 * mean(r['drop'] for r in mine):+.2f}",
                "worst drop": f"{100 * max(r['drop'] for r in mine):+.2f}",
                "agree %": f"{100 * mean(r['agree'] for r in mine):.1f}",
                "size": f"{ratios['size_bytes']:.2f}",
                "CPU time": f"{ratios['cpu_us']:.2f}",
            }
        )
    return found
