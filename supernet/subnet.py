"""Running a subnet: as a static module with its own numbers, or on shared weights."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Region, Regions, cut, locate, regions, relative, take
from .axes import layout as shared_layout
from .space import Arch, Space
from .weights import check_shared

Forward = Callable[[Tensor], Tensor]
Place = tuple[dict[str, Any], str]
"""A layer's attributes, and the name of one of its tensors among them."""
Places = Mapping[str, Place]


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
    """The subnet cut out of the supernet: a static module with copies of the shared values.

    UsageError names a tensor or a gene that is not the space's.
    """
    check_shared(space, shared)
    arch = space.arch(arch)
    return static(space, arch, take(shared, regions(space, arch)))


def on_views(
    space: Space, arch: Arch, held: Mapping[str, Tensor], outer: Arch | None = None
) -> Forward:
    """The subnet's forward pass in training mode on `held`, cut to its regions at each call.

    `held` are the supernet's weights, or those of the subnet `outer`, which must contain `arch`.
    Gradients flow into `held`.
    """
    module, places = skeleton(space, arch)
    return filled(module, places, held, regions_within(space, arch, outer))


def filled(
    module: nn.Module, places: Places, held: Mapping[str, Tensor], where: Regions
) -> Forward:
    """The forward pass of a `hollow` module on `held`, cut to these regions at each call."""
    # To find out at every call what needs no cutting costs 4 µs a tensor.
    parts = {path: None if _whole(held[path], r) else r for path, r in where.items()}

    def forward(x: Tensor) -> Tensor:
        try:
            for path, region in parts.items():
                attributes, name = places[path]
                attributes[name] = held[path] if region is None else cut(held[path], region)
            logits_bc: Tensor = module(x)
            return logits_bc
        finally:
            # The module outlives the call; the values must not.
            for attributes, name in places.values():
                attributes.pop(name, None)

    return forward


@lru_cache(maxsize=4096)
def regions_within(space: Space, arch: Arch, outer: Arch | None) -> Regions:
    """Where `arch` lies inside `outer`'s own tensors, or inside the shared ones."""
    if outer is None:
        return regions(space, arch)
    inside = relative(space.select(outer), space.select(arch))
    # The held tensors have the outer subnet's shapes: whole dimensions are whole there too.
    return locate(shared_layout(space), inside)


def _whole(tensor: Tensor, region: Region) -> bool:
    return region == tuple(slice(0, size) for size in tensor.shape)


def batch_norms(module: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Name → batch normalization layer, in the module's order."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }


def hollow(space: Space, arch: Arch) -> tuple[nn.Module, Places]:
    """The module in training mode, without parameters, and where each of their tensors is to be put.

    Batch norm uses batch statistics, so that the module has no state. The places are kept because
    `torch.func.functional_call` looks them up anew at each call, for 0.3 ms.
    """
    with torch.device("meta"):
        module = space.build(arch)
    for layer in batch_norms(module).values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    places = {}
    for path in dict(module.named_parameters()):
        prefix, _, name = path.rpartition(".")
        owner = module.get_submodule(prefix)
        # A registered parameter must be a leaf; a plain attribute may be any tensor.
        delattr(owner, name)
        places[path] = (vars(owner), name)
    return module.train(), places


skeleton = lru_cache(maxsize=256)(hollow)
"""The same, made once: nothing but its tensors may be changed."""


def _reset_statistics(module: nn.Module) -> None:
    for layer in batch_norms(module).values():
        layer.reset_running_stats()
