"""Running a subnet: as a static module with its own numbers, or as views on shared weights."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .axes import Regions, locate, regions, relative, take, view_all
from .axes import layout as shared_layout
from .space import Arch, Space

Forward = Callable[[Tensor], Tensor]


def static(space: Space, arch: Arch, weights: Mapping[str, Tensor]) -> nn.Module:
    """A plain module of this architecture holding these values (exactly its own tensors).

    Raises ValueError naming the tensors that are missing or too many.
    """
    with torch.device("meta"):
        module = space.build(arch)
    module.to_empty(device="cpu")
    _reset_statistics(module)
    # What is not given would keep whatever the memory held.
    if differing := weights.keys() ^ dict(module.named_parameters()).keys():
        raise ValueError(f"weights do not match the architecture: {sorted(differing)}")
    module.load_state_dict(weights, strict=False)
    return module


def extract(space: Space, arch: Arch, shared: Mapping[str, Tensor]) -> nn.Module:
    """The subnet cut out of the supernet: a static module with copies of the shared values."""
    return static(space, arch, take(shared, regions(space, arch)))


def on_views(
    space: Space, arch: Arch, held: Mapping[str, Tensor], outer: Arch | None = None
) -> Forward:
    """The subnet's forward pass in training mode on differentiable views of `held`.

    `held` are the supernet's weights, or those of the subnet `outer`, which must contain `arch`.
    Gradients flow into `held`.
    """
    module, where = _skeleton(space, arch), regions_within(space, arch, outer)

    def forward(x: Tensor) -> Tensor:
        # No two parameters of a family are tied, and looking for ties costs 1 ms a call.
        logits_bc: Tensor = functional_call(module, view_all(held, where), (x,), tie_weights=False)
        return logits_bc

    return forward


@lru_cache(maxsize=4096)
def regions_within(space: Space, arch: Arch, outer: Arch | None) -> Regions:
    """Where `arch` lies inside `outer`'s own tensors, or inside the shared ones."""
    if outer is None:
        return regions(space, arch)
    inside = relative(space.select(outer), space.select(arch))
    # The held tensors have the outer subnet's shapes: whole dimensions are whole there too.
    return locate(shared_layout(space), inside)


def batch_norms(module: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Name → batch normalization layer, in the module's order."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }


@lru_cache(maxsize=256)
def _skeleton(space: Space, arch: Arch) -> nn.Module:
    """The module without values; batch norm on batch statistics, so that it has no state."""
    with torch.device("meta"):
        module = space.build(arch)
    for layer in batch_norms(module).values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return module.train()


def _reset_statistics(module: nn.Module) -> None:
    for layer in batch_norms(module).values():
        layer.reset_running_stats()
