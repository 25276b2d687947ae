"""What a device does for each kind of message, Flower-free: body and values in, the same out."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..protos.calibration import Calibration, nll_by_temperature
from ..protos.device import Device
from ..protos.flower import Values
from ..protos.histograms import Histogram
from ..protos.inference import Ranges, open_model
from ..protos.manifest import FileEntry, FileKind
from ..protos.messages import (
    DeviceProfile,
    EvaluateReply,
    EvaluateRequest,
    InputsReply,
    InputsRequest,
    MessageError,
    MomentsReply,
    MomentsRequest,
    ProfileRequest,
    RangesReply,
    RangesRequest,
    TrainReply,
    TrainRequest,
    Verdict,
    VerifyItem,
    VerifyReply,
    VerifyRequest,
    tensor_shapes,
)
from ..protos.observing import observe_histograms, observe_ranges
from ..protos.probes import read_measurements
from ..protos.subnets import set_statistics, unpack
from ..supernet import kernel_inputs
from ..supernet.axes import regions
from ..supernet.batch import resized
from ..supernet.batchnorm import collect, load
from ..supernet.families.catalogue import space_from_dict
from ..supernet.losses.accuracy import right_ones
from ..supernet.space import Arch, Space
from ..supernet.subnet import static
from ..supernet.weights import shapes_of, size_of, split
from .codec.held import held_states
from .codec.reply import reply_values
from .data import ClientData, Floats
from .device import class_name, declared
from .device import data as data_of
from .local_tensors import own_values
from .probing import latency_s
from .profile import profile
from .update_task import floats, local_update, octets


def run_profile(device: Device, body: ProfileRequest, _values: Values | None) -> DeviceProfile:
    """Measure the device; with a run, what it holds of it too."""
    space = space_from_dict(body.space)
    found = profile(device.name, class_name(device), declared(device), data_of(device), space)
    if body.run is None:
        return found
    return found.model_copy(update={"holds": held_states(device, body.run, space).all()})


def run_train(
    device: Device, body: TrainRequest, values: Values | None
) -> tuple[TrainReply, Values]:
    """Train the assigned subnet; the reply's array holds its new values, or its encoded change.

    Tensors that are to stay are not in it.
    """
    found = local_update(device, body, values)
    reply = TrainReply(
        run=body.run,
        round=body.round,
        device=device.name,
        arch=dict(found.arch),
        examples=found.examples,
        steps=found.done.steps,
        loss=found.done.loss,
        train_macs=found.done.train_macs,
        seconds=found.seconds,
        tensors=tensor_shapes(shapes_of(found.leaving)),
        holds=found.holds,
    )
    parts = found.space, found.leaving, found.before, found.after
    return reply, reply_values(device, body, *parts)


def run_moments(
    device: Device, body: MomentsRequest, values: Values | None
) -> tuple[MomentsReply, Values]:
    """Batch-norm moments of each subnet over the device's training examples."""
    space = space_from_dict(body.space)
    data = data_of(device)
    x = data.normalized(data.train.x[: body.max_examples])
    counts, parts = [], []
    for arch, module in unpack(space, body.groups, floats(values), with_statistics=False):
        moments = collect(module, _batches(space, arch, x, body.batch_size, least=2))
        counts.append({name: layer.count for name, layer in moments.items()})
        parts += [part for layer in moments.values() for part in (layer.total, layer.squares)]
    sums = np.concatenate([np.empty(0), *parts])  # none without batch normalization
    return MomentsReply(device=device.name, counts=tuple(counts)), sums


def run_inputs(
    device: Device, body: InputsRequest, values: Values | None
) -> tuple[InputsReply, Values]:
    """Second moments of what kernels multiply, over some of the device's training examples."""
    space, flat, data = space_from_dict(body.space), floats(values), data_of(device)
    x = data.normalized(data.train.x[: body.max_examples])
    parts = [np.empty(0, np.float32)]
    subnets = unpack(space, body.groups, flat, with_statistics=True)
    for (arch, module), names in zip(subnets, body.kernels, strict=True):
        batches = _batches(space, arch, x, body.batch_size, least=1)
        parts += kernel_inputs.flat(kernel_inputs.collect(module.eval(), names, batches))
    return InputsReply(device=device.name, examples=len(x)), np.concatenate(parts)


def run_evaluate(device: Device, body: EvaluateRequest, values: Values | None) -> EvaluateReply:
    """Right answers of each subnet on the device's validation examples."""
    space, flat = space_from_dict(body.space), floats(values)
    data, size, nll = data_of(device), body.batch_size, []
    labels, right = torch.from_numpy(data.validation.y), list[Tensor]()
    if body.personal is not None:
        flat = own_values(device, body.personal, space, body.groups, flat)
    for arch, module in unpack(space, body.groups, flat, with_statistics=True):
        if body.personal is not None:
            x = data.normalized(data.train.x)
            load(module, collect(module, _batches(space, arch, x, size, least=2)))
        logits = _logits(space, arch, module.eval(), data, size)
        right.append(right_ones(logits, labels))
        if body.temperatures:
            sums = nll_by_temperature(logits.numpy(), data.validation.y, body.temperatures)
            nll.append(sums)
    return EvaluateReply(
        device=device.name,
        examples=len(data.validation),
        correct=tuple(int(one.sum()) for one in right),
        nll=tuple(nll),
        gained=tuple(int((one & ~right[0]).sum()) for one in right) if body.paired else (),
    )


def run_ranges(device: Device, body: RangesRequest, values: Values | None) -> RangesReply:
    """Activation ranges of exported float files over the device's training examples."""
    blob, at = octets(values, "files"), 0
    found: list[Ranges] = []
    seen: list[Mapping[str, Histogram]] = []
    data = data_of(device)
    x = data.normalized(data.train.x[: body.max_examples])
    for kind, shape, size in body.files:
        if at + size > len(blob):
            raise MessageError(f"file {kind}: {size} bytes announced, {len(blob) - at} came")
        inputs = resized(torch.from_numpy(x), tuple(shape)).contiguous().numpy()
        content = blob[at : at + size]
        if body.bins:
            seen.append(observe_histograms(content, kind, inputs, body.bins))
            found.append({name: (each.low, each.high) for name, each in seen[-1].items()})
        else:
            found.append(observe_ranges(content, kind, inputs))
        at += size
    histograms = tuple({name: (h.zeros, h.counts) for name, h in each.items()} for each in seen)
    return RangesReply(
        device=device.name, examples=len(x), ranges=tuple(found), histograms=histograms
    )


def run_verify(device: Device, body: VerifyRequest, values: Values | None) -> VerifyReply:
    """How exported files do on the device's validation examples, beside the subnet in PyTorch."""
    space = space_from_dict(body.space)
    data = data_of(device)
    blob, at, verdicts = octets(values, "files"), 0, []
    threads = _threads(device) if any(item.timed for item in body.items) else {}
    for item in body.items:
        size = 4 * item.values + sum(entry.size_bytes for entry in item.files)
        if at + size > len(blob):
            raise MessageError(f"{size} bytes announced, {len(blob) - at} came")
        part = blob[at : at + size]
        verdicts.append(_verdict(space, item, part, data, threads, body.calibration))
        at += size
    return VerifyReply(device=device.name, examples=len(data.validation), verdicts=tuple(verdicts))


def _threads(device: Device) -> dict[FileKind, int]:
    """With how many threads the device timed its probes: so are its files, to compare with them."""
    path = declared(device).measurements
    return {one.kind: one.threads for one in read_measurements(Path(path)).kinds} if path else {}


def _verdict(
    space: Space,
    item: VerifyItem,
    blob: bytes,
    data: ClientData,
    threads: Mapping[FileKind, int],
    calibration: bool,
) -> Verdict:
    arch = space.arch(item.arch)
    flat = np.frombuffer(blob[: 4 * item.values], dtype=np.float32).copy()
    shapes = shapes_of(regions(space, arch))
    module = static(space, arch, split(flat[: size_of(shapes)], shapes)).eval()
    set_statistics(module, flat, size_of(shapes))
    x = torch.from_numpy(data.normalized(data.validation.x))
    inputs = resized(x, space.input_shape(arch))
    with torch.no_grad():
        reference = module(inputs).numpy() / np.float32(item.temperature)
    if item.shift:
        reference = reference + np.asarray(item.shift, np.float32)
    outputs, latencies, at = [], list[float | None](), 4 * item.values
    for entry in item.files:
        content = blob[at : at + entry.size_bytes]
        output, latency = _run_file(
            content, entry, inputs.contiguous().numpy(), threads.get(entry.kind, 1), item.timed
        )
        outputs.append(output)
        latencies.append(latency)
        at += entry.size_bytes
    labels = data.validation.y
    known_s = tuple(one for one in latencies if one is not None)
    # Where an output is no number, `max_difference` says so, and there is no confidence.
    known = calibration and all(np.isfinite(logits).all() for logits in (reference, *outputs))
    confident = [reference, *outputs] if known else []
    return Verdict(
        reference_correct=_hits(reference, labels),
        correct=tuple(_hits(output, labels) for output in outputs),
        agree=tuple(_hits(output, reference.argmax(1)) for output in outputs),
        max_difference=tuple(float(np.abs(o - reference).max()) for o in outputs),
        calibration=tuple(Calibration.of(logits, labels).sums() for logits in confident),
        latency_s=known_s if len(known_s) == len(latencies) else (),
    )


def _run_file(
    content: bytes, entry: FileEntry, inputs: Floats, threads: int, timed: bool
) -> tuple[Floats, float | None]:
    """Outputs, and where it is asked for and there is an example, the seconds of one."""
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise MessageError(f"file {entry.name}: its bytes are not those of the manifest")
    with tempfile.TemporaryDirectory(prefix="fedofa-verify-") as folder:
        path = Path(folder) / entry.name
        path.write_bytes(content)
        model = open_model(path, entry, threads)
        outputs = model.run(inputs)
        return outputs, latency_s(model, inputs[:1]) if timed and len(inputs) else None


def _hits(outputs: Floats, labels: NDArray[np.int64]) -> int:
    return int((outputs.argmax(axis=1) == labels).sum())


def _logits(
    space: Space, arch: Arch, module: nn.Module, data: ClientData, batch_size: int
) -> Tensor:
    """Of the validation examples, in order."""
    x = data.normalized(data.validation.x)
    with torch.no_grad():
        parts = [module(batch) for batch in _batches(space, arch, x, batch_size, least=1)]
    return torch.cat(parts) if parts else torch.empty(0, len(data.classes))


def _batches(space: Space, arch: Arch, x: Floats, size: int, *, least: int) -> Iterator[Tensor]:
    """Batches in order at the subnet's resolution; a last one below `least` is left out."""
    for begin in range(0, len(x), size):
        batch = torch.from_numpy(x[begin : begin + size])
        if len(batch) >= least:
            yield resized(batch, space.input_shape(arch))
