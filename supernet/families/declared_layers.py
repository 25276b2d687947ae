"""The user's layers, their tensors' axes, and how one is cut to the sizes of an architecture.

A layer is cut in place: it stays what the user made it, of his class and with his settings, and
gets smaller tensors. So nothing needs to be known about its other attributes.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..axes import Region, Selection, tag, view
from ..errors import UsageError
from .declared_axes import axis_of
from .declared_graph import WHERE, Layer
from .declared_rules import is_depthwise

Axes = tuple[str | None, ...]


def tensor_axes(layer: Layer, path: str, elastic_kernel: bool) -> dict[str, Axes]:
    """The axes of each tensor of a layer, running statistics included."""
    out = axis_of(layer.outside)
    if layer.kernel:
        inside = None if layer.depthwise else axis_of(layer.inside[1])
        kernel = (f"{path}.k" if elastic_kernel else None,) * len(layer.kernel)
        return {"weight": (out, inside, *kernel), "bias": (out,)}
    if layer.kind == "linear":
        return {"weight": (out, axis_of(layer.inside[-1])), "bias": (out,)}
    if layer.kind == "layernorm":
        last = tuple(map(axis_of, layer.inside))
        return {"weight": last, "bias": last}
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (out,))


def tag_all(module: nn.Module, known: Mapping[str, Mapping[str, Axes]]) -> None:
    """Tell every tensor its axes; those of layers that are not known do not vary."""
    for path, layer in module.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        if not own:
            continue
        axes = known.get(path, {})
        # From the right: a layer normalization has the last dimensions, one slope serves all.
        found = {
            name: (
                axes[name][-p.dim() :] if name in axes and not _single(layer) else _none(p.dim())
            )
            for name, p in own.items()
        }
        tag(layer, **found)


def _single(layer: nn.Module) -> bool:
    return isinstance(layer, nn.PReLU) and layer.num_parameters == 1


def _none(dims: int) -> Axes:
    return (None,) * dims


def cut_layer(layer: nn.Module, axes: Mapping[str, Axes], selection: Selection) -> None:
    """Keep the selected part of each of a layer's tensors, and of the sizes that it states."""
    if _single(layer):
        return
    for name, names in axes.items():
        tensor = getattr(layer, name, None)
        if tensor is None:
            continue
        region: Region = tuple(
            slice(0, size) if axis is None else selection.index[axis]
            for axis, size in zip(names[-tensor.dim() :], tensor.shape, strict=True)
        )
        part = view(tensor.detach(), region).clone()
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, requires_grad=tensor.requires_grad)
        setattr(layer, name, part)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        _restate_convolution(layer)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        _restate_norm(layer, axes["weight"], selection)


def _restate_convolution(layer: nn.Conv1d | nn.Conv2d) -> None:
    out, inside, *kernel = layer.weight.shape
    if is_depthwise(layer):
        layer.groups = out // (layer.out_channels // layer.in_channels)
    layer.out_channels, layer.in_channels = out, inside * layer.groups
    if tuple(kernel) != tuple(layer.kernel_size):
        layer.kernel_size = tuple(kernel)
        total = [d * (k - 1) for d, k in zip(layer.dilation, kernel, strict=True)]
        if layer.padding != "same":
            layer.padding = tuple(t // 2 for t in total)
        # What padding modes other than zeros use, from the last dimension to the first.
        layer._reversed_padding_repeated_twice = [t // 2 for t in reversed(total) for _ in "lr"]


def _restate_norm(layer: nn.Module, axes: Axes, selection: Selection) -> None:
    """The sizes that a normalization or a learned slope states; it may have no tensors at all."""
    if isinstance(layer, nn.LayerNorm):
        rank = len(layer.normalized_shape)
        layer.normalized_shape = tuple(
            size if axis is None else selection.size(axis)
            for axis, size in zip(axes[-rank:], layer.normalized_shape, strict=True)
        )
    if (axis := axes[-1]) is None:
        return
    channels = selection.size(axis)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.num_features = channels
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = channels
    elif isinstance(layer, nn.GroupNorm):
        size = layer.num_channels // layer.num_groups
        layer.num_groups = channels // size if layer.num_groups > 1 else 1
        layer.num_channels = channels


def check_tensors(module: nn.Module) -> None:
    """UsageError for a tensor that subnets could not get: they receive parameters, each by one name."""
    owner: dict[int, str] = {}
    for path, layer in module.named_modules():
        at = f"{path}." if path else ""
        if is_parametrized(layer):
            raise UsageError(
                f"{WHERE}: {at}{next(iter(layer.parametrizations))} is computed from other tensors "
                "(weight_norm, spectral_norm, another parametrization); register it plainly"
            )
        for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
            first = owner.setdefault(id(parameter), at + name)
            if first != at + name:
                raise UsageError(
                    f"{WHERE}: {first} and {at}{name} are one parameter (tied weights), which would "
                    "be trained as two; give each layer its own"
                )
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        for name, _ in layer.named_buffers(recurse=False):
            raise UsageError(
                f"{WHERE}: buffer {at}{name}: only norm layers may have buffers; make it a constant "
                "in forward, or a parameter"
            )
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            held = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(t, Tensor) and t.is_meta and id(t) not in owner for t in held):
                raise UsageError(
                    f"{WHERE}: {path + '.' if path else ''}{name} holds a tensor that is neither "
                    "parameter nor buffer, so that its values reach no subnet; make it a number, a "
                    "constant in forward, or a parameter"
                )


def leave_out(module: nn.Module, block: str) -> None:
    """Put the identity in a block's place."""
    parent, _, name = block.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())


def take_plain_memory(module: nn.Module) -> None:
    """Let a network that views maps as vectors (`x.view(len(x), -1)`) take any memory format.

    Devices train on images in the channels-last format, in which such a view is impossible.
    """
    module.register_forward_pre_hook(_contiguous)


def _contiguous(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in inputs)
