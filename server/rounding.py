"""Subnets with rounded kernels, prepared with the devices for files of 4 bits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from ..specialize.export import module_of
from ..specialize.filesize import largest_bytes, stated_error
from ..specialize.mixed import Option, cheapest
from ..specialize.scheme import NARROW, WIDE
from ..supernet.axes import regions
from ..supernet.called_layers import kernels
from ..supernet.fake_quant import least_bits, rounded
from ..supernet.space import Arch, Space
from ..supernet.weights import shapes_of, size_of, split
from .chosen import Chosen, Rounded, Work
from .compensation import Candidate, Outcome, compensated
from .evaluation import FederatedEvaluator, Target

Widths = Mapping[str, int]
OFF = "second moments are not asked for: export.int4_compensate"
AT_ONCE = 16
"""Subnets in one question to the devices, which have one deadline for it."""


def rounded_subnets(
    evaluator: FederatedEvaluator,
    works: Sequence[Work],
    share: float | None = None,
    examples: int | None = None,
) -> dict[int, Rounded]:
    """By place; one that no device measured is absent.

    Norm statistics are measured with the kernels as the files hold them. Folded into the layers, they
    correct what rounding shifts (as bias correction does, Nagel et al. 2019) and scales; a network
    without batch normalization has none. With `share` of the bytes that all kernels have in
    8 bits, those keep 8 that lose most in 4; not where a fleet's plan has reckoned with all in 4.
    With `examples`, devices send second moments over up to so many, and kernels are rounded by them
    (`specialize/compensate.py`) where the devices' likelihood is better for it.
    """
    shares = [None if work.chosen.kinds else share for work in works]
    widths = {at: _widths(evaluator, work.chosen, shares[at]) for at, work in enumerate(works)}
    told = [(at, found) for at, found in widths.items() if found is not None]
    targets = [_target(works[at].chosen, found) for at, found in told]
    statistics = evaluator.statistics(targets) if targets else {}
    nearest = {
        told[at][0]: Candidate(targets[at], mine, works[told[at][0]].chosen.statistics)
        for at, mine in statistics.items()
    }
    outcomes = compensated(evaluator, nearest, examples) if examples else {}
    made = {}
    for at, candidate in nearest.items():
        outcome = outcomes.get(at, Outcome(why_not=OFF))
        values = candidate.values(evaluator) if outcome.values is None else outcome.values
        held = candidate.target.widths
        made[at] = Rounded(
            # Equalized kernels would be rounded in other steps than those that were measured.
            replace(works[at].subnet, values=values, equalize=False),
            held,
            _places(evaluator.space, works[at].chosen.arch, held),
            why_nearest=outcome.why_not,
        )
    return made


def module_of_rounded(space: Space, part: Rounded) -> nn.Module:
    """The subnet in PyTorch with its kernels rounded as its files hold them, its logits adjusted."""
    shapes = shapes_of(regions(space, space.arch(part.subnet.arch)))
    size, values = size_of(shapes), part.subnet.values
    weights = rounded(split(values[:size].copy(), shapes), part.kernels)
    flat = [weights[name].numpy().ravel() for name in shapes]
    return module_of(replace(part.subnet, values=np.concatenate([*flat, values[size:]])))


def _places(space: Space, arch: Arch, widths: Widths) -> tuple[tuple[int, int], ...]:
    held = kernels(space, arch)
    if all(bits == least_bits(tuple(held[name].weight.shape)) for name, bits in widths.items()):
        return ()
    return tuple((held[name].weight.numel(), bits) for name, bits in widths.items())


def _widths(evaluator: FederatedEvaluator, chosen: Chosen, share: float | None) -> Widths | None:
    """Of each kernel, in the order of the files; None where no device could tell what one loses."""
    space, arch = evaluator.space, chosen.arch
    held = kernels(space, arch)
    counts = {name: layer.weight.numel() for name, layer in held.items()}
    least = {name: least_bits(tuple(layer.weight.shape)) for name, layer in held.items()}
    room = _room_bytes(space, arch, chosen, counts, least, share)
    if room <= _bytes(counts, least):
        return least
    narrowed = [name for name, bits in least.items() if bits == NARROW]
    losses = _losses(evaluator, chosen, narrowed)
    if losses is None:
        return None
    options = [
        [Option(WIDE, counts[name], 0.0)]
        + ([Option(NARROW, -(-counts[name] // 2), losses[name])] if name in losses else [])
        for name in counts
    ]
    return dict(zip(counts, cheapest(options, room).bits, strict=True))


def _room_bytes(
    space: Space,
    arch: Arch,
    chosen: Chosen,
    counts: Mapping[str, int],
    least: Widths,
    share: float | None,
) -> int:
    """What all kernels together may take: the share, and what a bound on the file's size leaves."""
    room = 0 if share is None else int(share * sum(counts.values()))
    if chosen.budget.file_bytes is not None and chosen.needs_int4:
        plans = space.layers(arch)
        predicted = largest_bytes(chosen.formats, plans, NARROW) * (1 + stated_error(plans))
        left = chosen.budget.file_bytes - math.ceil(predicted)
        room = min(room, _bytes(counts, least) + left)
    return room


def _bytes(counts: Mapping[str, int], widths: Widths) -> int:
    return sum(-(-count * widths[name] // 8) for name, count in counts.items())


def _losses(
    evaluator: FederatedEvaluator, chosen: Chosen, names: Sequence[str]
) -> dict[str, float] | None:
    """What the devices' log-likelihood loses, summed, with one kernel alone in 4 bits."""
    targets = [_target(chosen, {}), *(_target(chosen, {name: NARROW}) for name in names)]
    sums = list[float]()
    for at in range(0, len(targets), AT_ONCE):
        some = targets[at : at + AT_ONCE]
        found = evaluator.likelihoods(some, evaluator.statistics(some), [1.0])
        if len(found) < len(some):
            return None
        sums += [found[place][0] for place in range(len(some))]
    return {name: one - sums[0] for name, one in zip(names, sums[1:], strict=True)}


def _target(chosen: Chosen, widths: Widths) -> Target:
    return Target(chosen.arch, chosen.budget, widths=widths)
