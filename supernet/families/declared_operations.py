"""The operations that are understood, and what each keeps for the backward pass.

An operation is called by one name, be it a module, a function or a method: `nn.MaxPool2d`,
`functional.max_pool2d` and `torch.max_pool2d` are all `maxpool`. One that is not listed is no
error: it pins the channels that it is given, since nobody knows what it does to them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import fx, nn

Kind = Literal["act", "arithmetic", "pool", "reduce", "new", "view", "order", "unknown"]
Saved = Literal["nothing", "input", "output", "inputs", "indices", "mask", "all"]
"""What autograd keeps for the backward pass."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, *NORMS, nn.PReLU)
"""Layers with parameters whose sizes may vary."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What kind of operation it is, and what it keeps for the backward pass."""

    kind: Kind
    saves: Saved


def _table(kind: Kind, saves: Saved, names: str) -> dict[str, Behaviour]:
    return dict.fromkeys(names.split(), Behaviour(kind, saves))


BEHAVIOURS: Mapping[str, Behaviour] = MappingProxyType(
    {
        **_table("act", "output", "relu sigmoid tanh softmax logsoftmax exp sqrt"),
        **_table("act", "input", "relu6 hardtanh leakyrelu elu selu celu silu gelu hardswish"),
        **_table(
            "act", "input", "hardsigmoid mish softplus softsign logsigmoid prelu clamp abs pow"
        ),
        **_table("act", "mask", "dropout alphadropout featuredropout stochasticdepth"),
        **_table("arithmetic", "nothing", "add iadd sub isub neg"),
        **_table("arithmetic", "inputs", "mul imul truediv div itruediv"),
        **_table("pool", "indices", "maxpool adaptivemaxpool"),
        **_table("pool", "input", "avgpool"),
        **_table("pool", "nothing", "adaptiveavgpool"),
        **_table("reduce", "nothing", "mean sum"),
        **_table("new", "nothing", "cat concat concatenate"),
        **_table("new", "nothing", "pad zeropad constantpad reflectionpad replicationpad"),
        **_table("new", "nothing", "interpolate upsample upsamplingnearest upsamplingbilinear"),
        **_table("view", "nothing", "flatten reshape view squeeze unsqueeze identity contiguous"),
        **_table("view", "nothing", "clone detach float to expand expandas"),
        **_table("order", "nothing", "permute transpose swapaxes movedim t"),
    }
)
"""`new` writes a tensor of its own; `view` none; `order` exchanges dimensions."""
UNKNOWN = Behaviour("unknown", "all")


def canonical(name: str) -> str:
    """One name of an operation, however it is called."""
    short = name.rstrip("_").replace("_", "").lower()
    return re.sub(r"[123]d$", "", short)


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def behaviour(node: fx.Node, modules: Mapping[str, nn.Module]) -> Behaviour | None:
    """What a node does; None for a layer, an input, a table, an output."""
    if node.op in ("placeholder", "get_attr", "output"):
        return None
    if node.op == "call_module":
        layer = modules[str(node.target)]
        if isinstance(layer, LAYERS):
            return None
        if any(True for _ in layer.parameters()):
            return UNKNOWN
        name = type(layer).__name__
    else:
        name = called(node)
    found = BEHAVIOURS.get(canonical(name), UNKNOWN)
    # A learned slope, a bound: of more than one tensor nobody knows which channels are whose.
    return UNKNOWN if found.kind == "act" and len(node.all_input_nodes) > 1 else found
