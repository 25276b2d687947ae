"""Making probes: subnets and single layers with random weights, exported as all kinds of files.

See `protos/probes.py` for what they are for.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..protos import durable
from ..protos.manifest import FILE_NAMES, FLOATS, FileEntry
from ..protos.observing import observe_ranges
from ..protos.probes import SET_NAME, Probe, ProbeSet
from ..supernet.axes import regions
from ..supernet.cost import LayerPlan, cost
from ..supernet.errors import ExportError, UsageError
from ..supernet.families.catalogue import space_from_dict
from ..supernet.folding import folded
from ..supernet.randomness import array_stream, stream
from ..supernet.space import Arch, Space, Value, plain
from ..supernet.subnet import static
from ..supernet.weights import shapes_of
from .fork_server import Call, ForkServer
from .latency.table import ALONE, Key, key_of
from .quantizing import ROUNDED, FewBits, quantize, quantize_few

OBSERVED = 4
ACTS: Mapping[str, type[nn.Module]] = {
    "": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "hswish": nn.Hardswish,
    "hsigmoid": nn.Hardsigmoid, "silu": nn.SiLU, "gelu": nn.GELU,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """What to make: so many random subnets (smallest and largest among them), so many layers.

    Each in files of every format, with `int4` of 4-bit weights too.
    """

    subnets: int = 40
    layers: int = 0
    formats: tuple[str, ...] = ("tflite", "onnx")
    int4: bool = False
    seed: int = 0


def make_probes(space: Space, plan: ProbePlan, folder: Path, converters: ForkServer) -> ProbeSet:
    """Export the probes into a folder that is not there yet, and write the set last.

    UsageError where the folder exists; ExportError where a converter refuses.
    """
    if folder.exists():
        raise UsageError(f"--out {folder} exists; give a folder that does not")
    archs = sample(space, plan)
    plans = [one for arch in archs for one in space.layers(arch)]
    layers = layers_of(space, plan, plans)
    described = plain(space.to_dict())
    calls = {
        f"s{place:04d}": Call(
            export_subnet,
            (described, dict(arch), plan.formats, folder / f"s{place:04d}", plan.int4),
        )
        for place, arch in enumerate(archs)
    }
    calls |= {
        f"l{place:04d}": Call(
            export_layer, (layer, plan.formats, folder / f"l{place:04d}", plan.int4)
        )
        for place, layer in enumerate(layers)
    }
    found = converters.run(calls)
    for name, result in found.items():
        if isinstance(result, ExportError):
            raise ExportError(f"probe {name}: {result}")
    probes = [
        Probe(
            name=f"s{place:04d}",
            macs=cost(space, arch).macs,
            input_shape=space.input_shape(arch),
            arch=dict(arch),
            files=found[f"s{place:04d}"],
        )
        for place, arch in enumerate(archs)
    ]
    probes += [
        Probe(
            name=f"l{place:04d}",
            macs=max(layer.macs, 1),
            input_shape=layer_input(layer),
            layer=place,
            files=found[f"l{place:04d}"],
        )
        for place, layer in enumerate(layers)
    ]
    made = ProbeSet(
        space=described, probes=tuple(probes), layers=tuple(key_of(layer) for layer in layers)
    )
    durable.write(folder / SET_NAME, made.model_dump_json(indent=1).encode())
    return made


def sample(space: Space, plan: ProbePlan) -> list[Arch]:
    """Distinct architectures: the smallest, the largest, and random ones."""
    rng, found = stream(plan.seed, "probes"), {space.smallest(): None, space.largest(): None}
    for _ in range(50 * plan.subnets):
        if len(found) >= plan.subnets:
            break
        found[space.sample(rng)] = None
    return list(found)


def layers_of(space: Space, plan: ProbePlan, plans: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Distinct layers of the subnets, the most frequent first, at most `plan.layers`.

    None where the space is not one of images: how a layer lies in time or among tokens cannot be
    told from its sizes.
    """
    if len(space.input_shape(space.smallest())) != 3 or not plan.layers:
        return []
    counted: dict[Key, tuple[int, LayerPlan]] = {}
    for one in plans:
        if one.kind in ALONE:
            times, _ = counted.get(key_of(one), (0, one))
            counted[key_of(one)] = times + 1, one
    ordered = sorted(counted.values(), key=lambda entry: -entry[0])
    return [one for _, one in ordered[: plan.layers]]


def export_subnet(
    described: Mapping[str, object],
    values: Mapping[str, Value],
    formats: Sequence[str],
    folder: Path,
    int4: bool = False,
) -> tuple[FileEntry, ...]:
    """A subnet of random weights as all kinds of files."""
    space = space_from_dict(described)
    arch = space.arch(values)
    rng = array_stream(0, "probe", str(sorted(values.items())))
    weights = {
        name: torch.from_numpy(_drawn(rng, shape))
        for name, shape in shapes_of(regions(space, arch)).items()
    }
    return _exported(static(space, arch, weights), space.input_shape(arch), formats, folder, int4)


def export_layer(
    layer: LayerPlan, formats: Sequence[str], folder: Path, int4: bool = False
) -> tuple[FileEntry, ...]:
    """One layer of random weights as all kinds of files."""
    return _exported(layer_module(layer), layer_input(layer), formats, folder, int4)


def layer_input(layer: LayerPlan) -> tuple[int, ...]:
    """The shape of one example: (channels, height, width), or (features,)."""
    if layer.kind == "linear":
        return (layer.in_per_group,)
    channels = layer.in_per_group if layer.kind == "conv" else layer.out_channels
    side = math.isqrt(layer.in_elements // channels)
    return channels, side, side


def layer_module(layer: LayerPlan) -> nn.Module:
    """The layer as deployed: normalization folded into a bias, then the activation."""
    act = ACTS[layer.act]()
    if layer.kind == "linear":
        return nn.Sequential(nn.Linear(layer.in_per_group, layer.out_channels), act)
    if layer.kind == "pool":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), act)
    channels, side, _ = layer_input(layer)
    out = math.isqrt(layer.out_elements // layer.out_channels)
    kernel = math.isqrt(layer.kernel_area)
    conv = nn.Conv2d(
        channels,
        layer.out_channels,
        kernel,
        stride=-(-side // out),
        padding=kernel // 2,
        groups=channels if layer.kind == "depthwise" else 1,
    )
    return nn.Sequential(conv, act)


def _exported(
    module: nn.Module, shape: tuple[int, ...], formats: Sequence[str], folder: Path, int4: bool
) -> tuple[FileEntry, ...]:
    from . import onnx_export, tflite

    ready, example = folded(module.eval()), torch.zeros(1, *shape)
    folder.mkdir(parents=True)
    x = array_stream(0, "probe input").standard_normal((OBSERVED, *shape)).astype(np.float32)
    ranges = {}
    for form in formats:
        path = folder / FILE_NAMES[FLOATS[form]]
        if form == "tflite":
            tflite.export_tflite(ready, example, path)
            ranges[form] = observe_ranges(path.read_bytes(), FLOATS[form], x)
        else:
            onnx_export.export_onnx(ready, example, path)
            ranges[form] = observe_ranges(onnx_export.observable(path), FLOATS[form], x)
    entries = quantize(folder, ranges)
    if int4:
        (folder / ROUNDED).mkdir()
        for form in formats:
            shutil.copy(folder / FILE_NAMES[FLOATS[form]], folder / ROUNDED)
        entries += quantize_few(folder, FewBits(ranges))
    return tuple(entries)


def _drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """He's scale: activations neither vanish nor overflow, whatever the depth."""
    inputs = math.prod(shape[1:]) or 1
    drawn: np.ndarray = rng.standard_normal(shape).astype(np.float32) * math.sqrt(2 / inputs)
    return drawn.astype(np.float32)
