"""Several subnets in one flat array: the server packs them, the device builds them.

Subnets are grouped so that one set of values, their hull's, serves each group, and no group is
larger than what the device may hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
import torch
from torch import Tensor, nn

from ..supernet.axes import regions, take
from ..supernet.batchnorm import Moments
from ..supernet.cost import cost
from ..supernet.fake_quant import rounded
from ..supernet.space import Arch, Space
from ..supernet.subnet import batch_norms, regions_within, static
from ..supernet.weights import Flat, gather, shapes_of, size_of, split
from .messages import MessageError, SubnetGroup

Statistics = Mapping[str, Moments]


def grouped(space: Space, archs: Sequence[Arch], params_limit: int | None) -> list[list[Arch]]:
    """Split subnets, in order, into groups whose hull has at most `params_limit` parameters.

    A subnet that alone exceeds the limit gets a group of its own: the caller has checked budgets.
    """
    groups: list[list[Arch]] = []
    hull: Arch | None = None
    for arch in archs:
        wider = arch if hull is None else space.hull(hull, arch)
        if hull is None or (params_limit is not None and cost(space, wider).params > params_limit):
            groups.append([arch])
            hull = arch
        else:
            groups[-1].append(arch)
            hull = wider
    return groups


def pack(
    space: Space,
    shared: Mapping[str, Tensor],
    groups: Sequence[Sequence[Arch]],
    statistics: Sequence[Statistics] | None = None,
) -> tuple[tuple[SubnetGroup, ...], Flat]:
    """The groups' description and one array: hull values of each group, then statistics.

    `statistics` has one entry per subnet, in the order of the groups.
    """
    described, parts, offset = [], list[Flat](), 0
    for group in groups:
        hull = group[0]
        for arch in group[1:]:
            hull = space.hull(hull, arch)
        parts.append(gather(shared, regions(space, hull)))
        archs = tuple(dict(arch) for arch in group)
        described.append(SubnetGroup(hull=dict(hull), offset=offset, archs=archs))
        offset += parts[-1].size
    if statistics is not None:
        parts += [flat_statistics(mine) for mine in statistics]
    return tuple(described), np.concatenate(parts)


def unpack(
    space: Space, groups: Sequence[SubnetGroup], values: Flat, *, with_statistics: bool
) -> Iterator[tuple[Arch, nn.Module]]:
    """Each subnet as a static module, in order; its norm statistics set where they came along.

    Kernels are rounded as the groups say. MessageError where the array is shorter or longer than they
    say, UsageError for a width or a kernel that there is not.
    """
    hulls = [space.arch(group.hull) for group in groups]
    sizes = [size_of(shapes_of(regions(space, hull))) for hull in hulls]
    at = sum(sizes)
    if len(values) < at:
        raise MessageError(f"array has {len(values)} values; the subnets need {at}")
    for group, hull, size in zip(groups, hulls, sizes, strict=True):
        if group.offset + size > len(values):
            raise MessageError(f"group at {group.offset} needs {size} of {len(values)} values")
        piece = values[group.offset : group.offset + size]
        held = split(piece, shapes_of(regions(space, hull)))
        if group.widths and len(group.widths) != len(group.archs):
            raise MessageError(f"{len(group.widths)} widths for {len(group.archs)} subnets")
        for fields, widths in zip(group.archs, group.widths or repeat({}), strict=False):
            arch = space.arch(fields)
            own = take(held, regions_within(space, arch, hull))
            module = static(space, arch, rounded(own, widths))
            if with_statistics:
                at = set_statistics(module, values, at)
            yield arch, module
    if at != len(values):
        raise MessageError(f"array has {len(values)} values; {at} are described")


def set_statistics(module: nn.Module, values: Flat, at: int) -> int:
    """Set each norm layer's mean and variance from the array at `at`; returns where they end."""
    for layer in batch_norms(module).values():
        for target in (layer.running_mean, layer.running_var):
            if target is None or at + target.numel() > len(values):
                raise MessageError("norm statistics are missing or too short")
            target.copy_(torch.from_numpy(values[at : at + target.numel()]))
            at += target.numel()
    return at


def flat_statistics(statistics: Statistics) -> Flat:
    """Mean then variance of each norm layer, in order, as they travel; empty without such layers."""
    parts = [part for m in statistics.values() for part in (m.mean, m.variance)]
    return np.concatenate([np.empty(0), *parts]).astype(np.float32)
