"""Several subnets in one pass: channel masks on the network that contains them all.

The multi-architecture step of ViT-ResNAS (Liao et al. 2021): a batch is split into groups of rows,
each group has its own subnet, and all groups share one forward and backward pass. What a group's
subnet does not have is zero in the group's rows, so its outputs are those of the subnet itself on
these rows, and the gradients are the sum of the subnets' own. Here the shared network is the hull of
the subnets, not the whole supernet, and everything follows from axis names:

- a convolution or linear layer runs once for all rows; what the group does not select of its output
  axis is set to zero. Linear layers also get their inputs masked, since what lies between two of
  them (attention) need not keep zeros. Where groups differ in the kernel's positions, it runs once
  per group, with those weights set to zero that the group lacks;
- batch, layer and group normalization run once per group, on its rows and its channels alone: each
  group has its own batch statistics and its own mean over channels. (The published method divides
  the moments over all channels by the kept fraction instead: the same for layer normalization.)
- a module with tables along a named axis has the axis masked where it is the last dimension of what
  it returns;
- a block that a group leaves out is all zeros there, which leaves the sum with its input as it was.

Allowed are families whose parameters all belong to such layers, whose activations keep 0 at 0,
whose blocks that may be left out are added to their input, and in which subnets differ from their
hull in sizes and in what is absent, not in what is done (a shortcut that projects only where widths
differ). The subnets must have one input shape. What can be seen in the modules is refused when the
pass is made, the rest by `check_masked`, which compares one batch with the subnets themselves. Both
raise UsageError.

It saves no arithmetic, since every row pays for the hull, but calls, of which there are fewer. Four
subnets on 64 examples took, of the time of four steps of the sliced subnets on 16 each (`fedofa bench
masked`, one core of an AMD EPYC): of digits 0.92, of small 1.58, of small-resnet 0.86 where they were
drawn from the whole space, and 0.62, 0.90, 0.64 where they were near the smallest. So it pays for
small subnets of about one size, and does not where sizes and kernels differ much.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .axes import relative
from .errors import UsageError
from .masked_layers import Group, Layer, Rows, followed_by_norm, masked_forward
from .space import Arch, Space
from .subnet import Places, filled, hollow, on_views, regions_within, skeleton

Groups = Callable[[Tensor], tuple[Tensor, ...]]
TOLERANCE = 1e-2


class Network(NamedTuple):
    """The hull's module without parameters, its layers masked."""

    module: nn.Module
    places: Places
    rows: Rows


def masked(
    space: Space, archs: Sequence[Arch], held: Mapping[str, Tensor], outer: Arch | None = None
) -> Groups:
    """The forward pass of all subnets, each on its group of rows, on `held` as in `on_views`.

    Called with (B, ...) it returns the logits of each group, (`group_sizes`(B, n), classes).
    Gradients flow into `held`. UsageError where the family or these subnets do not allow it.
    """
    network = _network(space, tuple(archs))
    hull = reduce(space.hull, archs)
    forward = filled(network.module, network.places, held, regions_within(space, hull, outer))

    def groups(x: Tensor) -> tuple[Tensor, ...]:
        network.rows.sizes = group_sizes(len(x), len(archs))
        found: tuple[Tensor, ...] = forward(x).split(network.rows.sizes)  # type: ignore[no-untyped-call]
        return found

    return groups


def group_sizes(rows: int, groups: int) -> list[int]:
    """How many rows each group gets: as equal as can be, the first ones one more."""
    return [rows // groups + (place < rows % groups) for place in range(groups)]


def check_masked(
    space: Space, archs: Sequence[Arch], held: Mapping[str, Tensor], outer: Arch | None, x: Tensor
) -> None:
    """UsageError unless each group's outputs on this batch are its subnet's own."""
    parts = x.split(group_sizes(len(x), len(archs)))  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        together = masked(space, archs, held, outer)(x)
        for arch, mine, part in zip(archs, together, parts, strict=True):
            alone = on_views(space, arch, held, outer)(part)
            gap, scale = float((mine - alone).abs().max()), max(1.0, float(alone.abs().max()))
            if not gap <= TOLERANCE * scale:
                raise UsageError(
                    f"one pass for several subnets: family {space.family} does not allow it; the "
                    f"outputs of {space.describe(arch)} differ by {gap:.3g}. Train them in turn"
                )


@lru_cache(maxsize=64)
def _network(space: Space, archs: tuple[Arch, ...]) -> Network:
    shapes = {space.input_shape(arch) for arch in archs}
    if len(shapes) > 1:
        raise UsageError(
            f"one pass for several subnets: input shapes {sorted(shapes)}; all must be equal"
        )
    hull = reduce(space.hull, archs)
    module, places = hollow(space, hull)
    for arch in archs:
        _require_likeness(space, module, arch)
    whole, rows = space.select(hull), Rows()
    groups = [Group(whole, relative(whole, space.select(arch))) for arch in archs]
    normed = followed_by_norm(module)
    # The masks outlive this call; made in inference mode, they could never be trained with.
    with torch.inference_mode(False):
        for path, layer in list(module.named_modules()):
            forward = masked_forward(Layer(space.family, path, layer, groups, rows), path in normed)
            if forward is not None:
                layer.forward = forward
    return Network(module, places, rows)


def _require_likeness(space: Space, hull: nn.Module, arch: Arch) -> None:
    """UsageError where a subnet's module does anything else than the hull's besides its sizes."""
    selection, theirs = space.select(arch), dict(hull.named_modules())
    mine = dict(skeleton(space, arch)[0].named_modules())
    for path in {**theirs, **mine}:
        if selection.has(f"{path}.") and _nature(mine.get(path)) != _nature(theirs.get(path)):
            raise UsageError(
                f"one pass for several subnets: family {space.family} does not allow these; at "
                f"{path} {space.describe(arch)} does something else than the subnet that contains "
                "them all. Train them in turn"
            )


def _nature(module: nn.Module | None) -> tuple[object, ...]:
    """What a module is, without sizes: its type, and what it holds of texts and switches."""
    options = {n: v for n, v in vars(module).items() if isinstance(v, str | bool)} if module else {}
    return (type(module), *sorted(options.items()))
