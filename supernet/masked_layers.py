"""How one layer runs for several groups of rows, each with its own selection; see `masked`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .axes import Index, Selection, length, put, view
from .errors import UsageError
from .subnet import Forward

LAST, CHANNELS = -1, 1
"""The dimension of features in token sequences and tables, and of channels in maps."""


class Rows:
    """How many rows each group has in the pass that is under way."""

    def __init__(self) -> None:
        self.sizes: list[int] = []


@dataclass(frozen=True, slots=True)
class Group:
    """What one group has of the hull's axes and layers; `inner` is relative to `hull`."""

    hull: Selection
    inner: Selection

    def index(self, path: str, axis: str) -> Index:
        """The positions on an axis that this group has in a layer; none where it lacks that."""
        return self.inner.index[axis] if self.has(path) else slice(0, 0)

    def has(self, path: str) -> bool:
        """Whether the group runs this layer."""
        return self.inner.has(f"{path}.")

    def mask(self, path: str, axis: str) -> Tensor:
        """1 at the group's positions on the hull's axis, else 0."""
        mask = torch.zeros(self.hull.size(axis))
        put(mask, (self.index(path, axis),), 1.0)
        return mask


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the hull, and the groups that run through it."""

    family: str
    path: str
    module: Any
    groups: Sequence[Group]
    rows: Rows

    @property
    def axes(self) -> Mapping[str, tuple[str | None, ...]]:
        """The axis names of its tensors; empty where it owns none."""
        found: Mapping[str, tuple[str | None, ...]] = getattr(self.module, "axes", {})
        return found

    def masking(self, axis: str | None, dim: int) -> Forward:
        """Zeroes in each group's rows what it lacks of an axis that is dimension `dim`."""
        if axis is None:
            return _same
        table_gc = torch.stack([group.mask(self.path, axis) for group in self.groups])
        if bool(table_gc.all()):
            return _same

        def mask(x: Tensor) -> Tensor:
            mask_bc = table_gc.repeat_interleave(torch.tensor(self.sizes(x)), dim=0)
            shape = [len(x)] + [1] * (x.dim() - 1)
            shape[dim] = x.shape[dim]
            return x * mask_bc.view(shape)

        return mask

    def sizes(self, x: Tensor) -> list[int]:
        """The groups' rows of a tensor; UsageError where it has other rows than the batch."""
        if len(x) != sum(self.rows.sizes):
            raise self.refusal(f"gets {len(x)} rows of a batch of {sum(self.rows.sizes)}")
        return self.rows.sizes

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each group's rows."""
        found: tuple[Tensor, ...] = x.split(self.sizes(x))  # type: ignore[no-untyped-call]
        return found

    def refusal(self, reason: str) -> UsageError:
        """The error of a family that cannot be masked."""
        return UsageError(
            f"one pass for several subnets: family {self.family} does not allow it; layer "
            f"{self.path} ({type(self.module).__name__}) {reason}. Train them in turn"
        )


def masked_forward(layer: Layer, normed: bool) -> Forward | None:
    """The layer's forward pass for all groups; None where its own one is right as it is.

    `normed` says that batch normalization follows, which masks what the layer left unmasked.
    """
    module = layer.module
    if isinstance(module, _BatchNorm):
        return _batch_norm(layer)
    if not layer.axes:
        return None
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return _norm_of_channels(layer)
    if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd):
        return _product(layer, normed)
    return _tables(layer)


def followed_by_norm(module: nn.Module) -> set[str]:
    """Paths of layers that stand before a batch normalization of their outputs in a sequence."""
    found = set()
    for path, chain in module.named_modules():
        if isinstance(chain, nn.Sequential):
            for (name, layer), (_, norm) in pairwise(chain.named_children()):
                axes = getattr(layer, "axes", {}).get("weight", ("",))
                if (
                    isinstance(norm, _BatchNorm)
                    and getattr(norm, "axes", {}).get("weight") == axes[:1]
                ):
                    found.add(f"{path}.{name}" if path else name)
    return found


def _same(x: Tensor) -> Tensor:
    return x


def _product(layer: Layer, normed: bool) -> Forward:
    """A convolution or linear layer: once for all rows, unless kernels differ."""
    out, in_, *kernel = layer.axes["weight"]
    linear = isinstance(layer.module, nn.Linear)
    before = layer.masking(in_, LAST) if linear else _same
    after = _same if normed else layer.masking(out, LAST if linear else CHANNELS)
    run = _by_kernel(layer, kernel)
    return lambda x: after(run(before(x)))


def _by_kernel(layer: Layer, axes: Sequence[str | None]) -> Forward:
    """The layer with each group's positions of the kernel; in one call where they are the same."""
    plain: Forward = layer.module.forward
    masks = [_kernel_mask(group, layer.path, axes) for group in layer.groups]
    if all(bool(mask.all()) for mask in masks):
        return plain
    attributes = vars(layer.module)

    def forward(x: Tensor) -> Tensor:
        weight, found = attributes["weight"], []
        for part, mask in zip(layer.parts(x), masks, strict=True):
            attributes["weight"] = weight * mask
            found.append(plain(part))
        attributes["weight"] = weight
        return torch.cat(found)

    return forward


def _kernel_mask(group: Group, path: str, axes: Sequence[str | None]) -> Tensor:
    mask = torch.ones((1, 1) + (1,) * len(axes))
    for dim, axis in enumerate(axes, 2):
        if axis is not None and group.has(path):
            shape = [1] * mask.dim()
            shape[dim] = -1
            mask = mask * group.mask(path, axis).view(shape)
    return mask


def _batch_norm(layer: Layer) -> Forward:
    """Statistics of each group's own rows; a scale and shift of 0 where it lacks a channel."""
    norm = layer.module
    axis = layer.axes["weight"][0] if layer.axes else None
    masks = [None if axis is None else group.mask(layer.path, axis) for group in layer.groups]

    def of_group(part: Tensor, group: Group, mask: Tensor | None) -> Tensor:
        if not group.has(layer.path):
            return torch.zeros_like(part)
        weight, bias = norm.weight, norm.bias
        if mask is not None:
            weight, bias = weight * mask, bias * mask
        return functional.batch_norm(part, None, None, weight, bias, True, 0.0, norm.eps)

    return lambda x: torch.cat(
        [of_group(*each) for each in zip(layer.parts(x), layer.groups, masks, strict=True)]
    )


def _norm_of_channels(layer: Layer) -> Forward | None:
    """Layer or group normalization over the channels that each group has."""
    norm, (axis, *others) = layer.module, layer.axes["weight"]
    if others:
        raise layer.refusal("normalizes more than one dimension")
    if axis is None:
        return None
    dim = LAST if isinstance(norm, nn.LayerNorm) else CHANNELS

    def of_group(part: Tensor, group: Group) -> Tensor:
        index = group.index(layer.path, axis)
        if not length(index):
            return torch.zeros_like(part)
        own = _along(part, index, dim)
        weight, bias = view(norm.weight, (index,)), view(norm.bias, (index,))
        if isinstance(norm, nn.LayerNorm):
            own = functional.layer_norm(own, own.shape[-1:], weight, bias, norm.eps)
        else:
            in_each = norm.num_channels // norm.num_groups
            own = functional.group_norm(own, length(index) // in_each, weight, bias, norm.eps)
        return _spread(own, index, dim, part.shape[dim])

    return lambda x: torch.cat(
        [of_group(*each) for each in zip(layer.parts(x), layer.groups, strict=True)]
    )


def _along(x: Tensor, index: Index, dim: int) -> Tensor:
    region: list[Index] = [slice(0, size) for size in x.shape]
    region[dim] = index
    return view(x, tuple(region))


def _spread(x: Tensor, index: Index, dim: int, size: int) -> Tensor:
    """Back to `size` positions of a dimension, 0 at the others."""
    if isinstance(index, tuple):
        shape = list(x.shape)
        shape[dim] = size
        return x.new_zeros(shape).index_copy(dim, torch.tensor(index), x)
    after = 0 if dim == LAST else x.dim() - 1 - dim
    return functional.pad(x, (0, 0) * after + (index.start, size - index.stop))


def _tables(layer: Layer) -> Forward | None:
    """A module with tensors of its own: masked along their last axis, in what it returns."""
    if any(axis is not None for names in layer.axes.values() for axis in names[:-1]):
        raise layer.refusal("has tensors with a named axis that is not the last one")
    axes = {names[-1] for names in layer.axes.values() if names} - {None}
    if len(axes) > 1:
        raise layer.refusal(f"has tensors on several axes: {', '.join(sorted(map(str, axes)))}")
    if not axes:
        return None
    plain, mask = layer.module.forward, layer.masking(axes.pop(), LAST)
    return lambda x: mask(plain(x))
