"""Batch normalization folded where the network's forward applies it to a convolution's output.

In a network that keeps its layers as attributes and calls them in `forward`, as most do, no
`nn.Sequential` says which norm layer follows which convolution. torch.fx does.
"""

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def traced(module: nn.Module) -> fx.Graph | None:
    """The module's graph; None where it cannot be traced."""
    try:
        return fx.Tracer().trace(module)
    except Exception:  # noqa: BLE001 - whatever forward raises; then nothing is known
        return None


def fold_followed(module: nn.Module) -> None:
    """Fold each norm layer, in place, that alone reads the output of a layer called once.

    Does nothing where the module cannot be traced. The module must be in evaluation mode.
    """
    if (graph := traced(module)) is None:
        return
    layers = dict(module.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        norm = layers.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        (source,) = node.all_input_nodes
        called_once = all(calls.count(str(each.target)) == 1 for each in (node, source))
        if source.op == "call_module" and called_once and len(source.users) == 1:
            _fuse(module, str(source.target), str(node.target), norm)


def _fuse(root: nn.Module, before: str, after: str, norm: nn.modules.batchnorm._BatchNorm) -> None:
    layer = root.get_submodule(before)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        fused: nn.Module = fuse_conv_bn_eval(layer, norm)
    elif isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_eval(layer, norm)
    else:
        return
    for path, new in ((before, fused), (after, nn.Identity())):
        parent, _, name = path.rpartition(".")
        setattr(root.get_submodule(parent), name, new)
