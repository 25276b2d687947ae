"""What is known of a traced module: operations, layers, and the sizes of every tensor.

Sizes are kept as what they are made of, (layer's channels) × (positions), so that those of any
architecture follow by multiplication.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .declared_operations import Saved
from .declared_ties import Dim, Dims, Ties

BATCH = 2
"""Examples in the batch that is followed."""
WHERE = "space declared"
"""How the errors about a declaration begin."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `inputs` are places of operations; `dims` those of its output, batch included.

    `kind` is a layer's class in small letters, an operation's kind, or `input`, `table` (a tensor
    of the module itself). `path` names the layer or the place in the module, `block` the block
    that may be left out around it.
    """

    kind: str
    name: str
    path: str
    inputs: tuple[int, ...]
    dims: Dims
    block: str
    saves: Saved = "nothing"
    in_place: bool = False
    macs: int = 0
    params: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with parameters. `inside` are the dimensions of its input, `outside` its channels.

    `kernel` is empty for all but convolutions; `same` says that padding keeps odd kernels centred;
    `tensors` are the names of its parameters, and `own` the dimensions of a normalization's.
    """

    kind: str
    inside: Dims
    outside: Dim
    kernel: tuple[int, ...] = ()
    same: bool = False
    depthwise: bool = False
    groups: int = 1
    tensors: tuple[str, ...] = ()
    own: Dims = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """Operations in order, each block's (input, output), and the network's output, as places."""

    ops: tuple[Op, ...]
    blocks: Mapping[str, tuple[int, int]]
    output: int


@dataclass(frozen=True)
class Trace:
    """A module's operations, the shape after each (batch included), its layers, and the ties."""

    graph: Graph
    shapes: tuple[tuple[int, ...], ...]
    layers: Mapping[str, Layer]
    ties: Ties
