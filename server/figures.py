"""What devices answer when they measure: checked, then numbers that add up.

A reply is checked against what was asked and against the number of examples in the device's
profile. MessageError says what is wrong with one that is not used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ..protos.calibration import Calibration
from ..protos.flower import Values
from ..protos.histograms import Histogram
from ..protos.inference import Ranges
from ..protos.messages import (
    EvaluateReply,
    MessageError,
    MomentsReply,
    RangesReply,
    Verdict,
    VerifyReply,
)
from ..protos.probes import MOST_MACS_PER_S_AND_THREAD
from ..supernet.batchnorm import Moments
from ..supernet.errors import UsageError
from ..supernet.space import Arch, Space
from ..supernet.subnet import batch_norms

# What adding up in another order may change of a sum of squares.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Measured:
    """Right answers of so many validation examples, summed over devices."""

    correct: int
    examples: int

    @property
    def accuracy(self) -> float:
        """Fraction of right answers."""
        return self.correct / self.examples

    @property
    def error(self) -> float:
        """Standard error of the accuracy as a binomial proportion."""
        p = self.accuracy
        return float(np.sqrt(max(p * (1 - p), 1e-12) / self.examples))

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(self.correct + other.correct, self.examples + other.examples)


@dataclass(frozen=True, slots=True)
class FileMeasured:
    """One exported file against its subnet in PyTorch, on the same validation examples."""

    file: Measured
    reference: Measured
    agree: int
    max_difference: float
    calibration: tuple[Calibration, Calibration] | None = None
    """Of the file and of its subnet, where it was asked for."""
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """Device → seconds of one run on one example, by those that said so."""

    def __add__(self, other: "FileMeasured") -> "FileMeasured":
        return FileMeasured(
            file=self.file + other.file,
            reference=self.reference + other.reference,
            agree=self.agree + other.agree,
            # Python's max passes over a NaN or keeps it, as the order has it.
            max_difference=max(_bounded(self.max_difference), _bounded(other.max_difference)),
            calibration=self._calibration_with(other),
            latency_s={**self.latency_s, **other.latency_s},
        )

    def _calibration_with(self, other: "FileMeasured") -> tuple[Calibration, Calibration] | None:
        if self.calibration is None or other.calibration is None:
            return self.calibration or other.calibration
        (file, reference), (file_2, reference_2) = self.calibration, other.calibration
        return file + file_2, reference + reference_2


def read_moments(
    space: Space, archs: Sequence[Arch], examples: int, body: MomentsReply, values: Values | None
) -> list[dict[str, Moments]]:
    """One device's moments per subnet, over `examples` training examples."""
    layers = [norm_layers(space, arch) for arch in archs]
    needed = 2 * sum(channels for mine in layers for channels, _ in mine.values())
    if values is None or values.dtype != np.float64 or len(values) != needed:
        raise MessageError(f"moments: {needed} float64 values expected")
    if not np.isfinite(values).all() or len(body.counts) != len(archs):
        raise MessageError("moments: a value is not finite, or a subnet is missing")
    wide = values.astype(np.float64, copy=False)
    found, at = [], 0
    for mine, counts in zip(layers, body.counts, strict=True):
        stated = {name: examples * positions for name, (_, positions) in mine.items()}
        if counts != stated or examples < 1:
            raise MessageError(
                f"moments: not those of every norm layer over the {examples} training examples "
                "that its profile leaves for whole batches"
            )
        moments = {}
        for name, (size, _) in mine.items():
            total, squares = wide[at : at + size], wide[at + size : at + 2 * size]
            with np.errstate(over="ignore"):
                least = np.square(total) / counts[name]
            if not (squares >= least * (1 - ROUNDING)).all():
                raise MessageError(f"moments: a variance of {name} is negative")
            moments[name] = Moments(counts[name], total.copy(), squares.copy())
            at += 2 * size
        found.append(moments)
    return found


def read_measured(reply: EvaluateReply, targets: int, examples: int) -> list[Measured]:
    """Right answers per subnet."""
    _require_examples("evaluation", reply.examples, examples)
    right = reply.correct
    if len(right) != targets or any(not 0 <= count <= reply.examples for count in right):
        raise MessageError(f"evaluation: {targets} counts from 0 to {reply.examples} expected")
    return [Measured(count, reply.examples) for count in right]


def read_ranges(reply: RangesReply, files: int, examples: int) -> tuple[Ranges, ...]:
    """Activation ranges per file."""
    _require_examples("ranges", reply.examples, examples)
    if len(reply.ranges) != files:
        raise MessageError(f"ranges of {files} files expected")
    for ranges in reply.ranges:
        if not all(-math.inf < low <= high < math.inf for low, high in ranges.values()):
            raise MessageError("ranges: one is not finite, or its ends are swapped")
    return reply.ranges


def read_histograms(
    reply: RangesReply, files: int, examples: int, bins: int
) -> tuple[Mapping[str, Histogram], ...]:
    """Histograms of activations per file, each over all the examples and of its own range."""
    ranges = read_ranges(reply, files, examples)
    if [each.keys() for each in ranges] != [each.keys() for each in reply.histograms]:
        raise MessageError("ranges: a histogram for each tensor expected")
    found = []
    for mine, counts in zip(ranges, reply.histograms, strict=True):
        try:
            seen = {
                name: Histogram.with_range(bins, mine[name], each, zeros)
                for name, (zeros, each) in counts.items()
            }
        except UsageError as error:
            raise MessageError(f"ranges: {error}") from None
        if any(each.total % reply.examples for each in seen.values()):
            raise MessageError("ranges: a histogram is not of so many values for each example")
        found.append(seen)
    return tuple(found)


def read_nll(reply: EvaluateReply, targets: int, temperatures: int) -> list[tuple[float, ...]]:
    """Summed negative log-likelihoods per subnet and temperature."""
    sizes = [len(sums) for sums in reply.nll]
    if sizes != [temperatures] * targets or any(each < 0 for sums in reply.nll for each in sums):
        raise MessageError(
            f"evaluation: log-likelihoods of {targets} subnets at {temperatures} temperatures expected"
        )
    return list(reply.nll)


def read_verdicts(
    reply: VerifyReply, files: Sequence[int], examples: int
) -> list[list[FileMeasured]]:
    """Per export one figure for each of its files (`files` says how many)."""
    _require_examples("verification", reply.examples, examples)
    if len(reply.verdicts) != len(files):
        raise MessageError(f"verification: {len(files)} verdicts expected")
    for verdict, count in zip(reply.verdicts, files, strict=True):
        figures = (verdict.correct, verdict.agree, verdict.max_difference)
        if {len(figure) for figure in figures} != {count}:
            raise MessageError(f"verification: figures of {count} files expected")
        counts = (*verdict.correct, *verdict.agree, verdict.reference_correct)
        if any(not 0 <= right <= examples for right in counts):
            raise MessageError(f"verification: counts from 0 to {examples} expected")
        if len(verdict.calibration) not in (0, count + 1):
            raise MessageError(f"verification: calibrations of {count + 1} networks expected")
        if len(verdict.latency_s) not in (0, count):
            raise MessageError(f"verification: latencies of {count} files expected")
    return [_figures(verdict, examples) for verdict in reply.verdicts]


def timed_by(
    device: str, found: Sequence[FileMeasured], verdict: Verdict, macs: int
) -> list[FileMeasured]:
    """The figures of a subnet's files with the latencies that the device said.

    MessageError for one that no processor reaches.
    """
    if not verdict.latency_s:
        return list(found)
    if min(verdict.latency_s) < (least := macs / MOST_MACS_PER_S_AND_THREAD):
        raise MessageError(
            f"verification: {min(verdict.latency_s):.3g} s for {macs:,} multiply-accumulates; no "
            f"processor needs less than {least:.3g}"
        )
    pairs = zip(found, verdict.latency_s, strict=True)
    return [replace(figure, latency_s={device: seconds}) for figure, seconds in pairs]


def _require_examples(about: str, got: int, stated: int) -> None:
    if got != stated:
        raise MessageError(f"{about}: {got} examples; by its profile there are {stated}")


def _figures(verdict: Verdict, examples: int) -> list[FileMeasured]:
    reference = Measured(verdict.reference_correct, examples)
    parts = zip(verdict.correct, verdict.agree, verdict.max_difference, strict=True)
    found = [
        FileMeasured(Measured(correct, examples), reference, agree, _bounded(gap))
        for correct, agree, gap in parts
    ]
    if not verdict.calibration:
        return found
    try:
        subnet, *files = (Calibration(*sums) for sums in verdict.calibration)
    except UsageError as error:
        raise MessageError(f"verification: {error}") from None
    if any(each.examples != examples for each in (subnet, *files)):
        raise MessageError(f"verification: a calibration is not of the {examples} examples")
    return [
        replace(figure, calibration=(file, subnet))
        for figure, file in zip(found, files, strict=True)
    ]


def _bounded(difference: float) -> float:
    """The difference, infinite where it is no number: no bound holds for one."""
    return math.inf if math.isnan(difference) else difference


def lighter_moments(moments: Mapping[str, Moments], weight: float) -> dict[str, Moments]:
    """The same means and variances, counting less where `weight` is below 1."""
    if weight >= 1:
        return dict(moments)
    found = {}
    for name, layer in moments.items():
        count = max(1, round(layer.count * weight))
        share = count / layer.count
        found[name] = Moments(count, layer.total * share, layer.squares * share)
    return found


def lighter(measured: Measured, weight: float) -> Measured:
    """The same accuracy, rounded to whole examples, counting less where `weight` is below 1."""
    if weight >= 1:
        return measured
    examples = max(1, round(measured.examples * weight))
    return Measured(round(measured.correct * examples / measured.examples), examples)


def lighter_file(figure: FileMeasured, weight: float) -> FileMeasured:
    """The same accuracies, difference and calibration, counting less where `weight` is below 1."""
    calibration = figure.calibration
    if calibration is not None and weight < 1:
        calibration = calibration[0].lighter(weight), calibration[1].lighter(weight)
    return replace(
        figure,
        file=lighter(figure.file, weight),
        reference=lighter(figure.reference, weight),
        agree=lighter(Measured(figure.agree, figure.file.examples), weight).correct,
        calibration=calibration,
    )


@lru_cache(maxsize=4096)
def norm_layers(space: Space, arch: Arch) -> Mapping[str, tuple[int, int]]:
    """Norm layer → (channels, positions that one example adds), in the module's order."""
    found: dict[str, tuple[int, int]] = {}
    with torch.device("meta"):
        module = space.build(arch).eval()
        x = torch.empty(1, *space.input_shape(arch))
    layers = batch_norms(module)

    def watch(name: str) -> None:
        def note(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channels = inputs[0].shape[1]
            before = found[name][1] if name in found else 0
            found[name] = channels, before + inputs[0].numel() // channels

        layers[name].register_forward_pre_hook(note)

    for name in layers:
        watch(name)
    with torch.no_grad():
        module(x)
    return {name: found[name] for name in layers if name in found}
