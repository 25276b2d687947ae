"""Architectures in the notation of their publications, and what those count as parameters.

`ofa-mbv3` is written as once-for-all does: `ks` and `e`, four kernel sizes and expand ratios a
stage (those beyond a stage's depth are ignored), `d`, a depth a stage, `r`, the resolution.
`attentive-nas` is written as AttentiveNAS and AlphaNet do: `width` of the first convolution, the
seven stages and the last convolution, `depth`, `kernel_size` and `expand_ratio` a stage, and
`resolution`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..errors import UsageError
from ..space import Arch, Space, Value
from .mobilenet import MobileNetSpace

REMARKS = ("family", "model", "params", "macs", "top1_imagenet")
"""Columns of published tables that describe an architecture and are no part of it."""
OFA_BLOCKS = 4


def is_published(values: Mapping[str, object]) -> bool:
    """Whether an architecture is written in a publication's notation, and not gene by gene."""
    return any(isinstance(value, list | tuple) for value in values.values())


def read_published(name: str, space: Space, values: Mapping[str, object]) -> Arch:
    """The architecture of a preset's notation; UsageError names field, value and what is allowed."""
    if name not in NOTATIONS:
        raise UsageError(
            f"architecture: space {name!r} has no published notation with lists; give its genes, for "
            f"instance {dict(space.smallest())} (a notation: {', '.join(NOTATIONS)})"
        )
    return NOTATIONS[name](space, {k: v for k, v in values.items() if k not in REMARKS})


def unused_params(name: str, space: Space, arch: Arch) -> int:
    """Parameters that the published network holds and never executes, and ours does not hold.

    AttentiveNAS gives every block a projection in its shortcut, of input times output channels, and
    uses it only where width or resolution changes.
    """
    if name != "attentive-nas" or not isinstance(space, MobileNetSpace):
        return 0
    blocks = [block for block in space.blocks(arch) if block.shortcut == "identity"]
    return sum(block.width_in * block.width_out for block in blocks)


def _read_ofa(space: Space, values: Mapping[str, object]) -> Arch:
    stages = _mobilenet(space).stages[1:]
    fields = _Fields(values, ("ks", "e", "d", "r"))
    kernels = fields.numbers("ks", OFA_BLOCKS * len(stages))
    expands = fields.numbers("e", OFA_BLOCKS * len(stages))
    depths = fields.numbers("d", len(stages))
    chosen = {**space.smallest(), "resolution": fields.number("r")}
    for i, depth in enumerate(depths, start=1):
        chosen[f"s{i}.depth"] = depth
        for j in range(OFA_BLOCKS):
            place = OFA_BLOCKS * (i - 1) + j
            for gene, options in ((f"s{i}.b{j}.kernel", kernels), (f"s{i}.b{j}.expand", expands)):
                chosen.pop(gene, None)
                if j < depth:
                    chosen[gene] = options[place]
    return space.arch(chosen)


def _read_attentive(space: Space, values: Mapping[str, object]) -> Arch:
    count = len(_mobilenet(space).stages)
    fields = _Fields(values, ("resolution", "width", "depth", "kernel_size", "expand_ratio"))
    widths = fields.numbers("width", count + 2)
    chosen: dict[str, Value] = {
        "resolution": fields.number("resolution"),
        "stem.width": widths[0],
        "feature.width": widths[-1],
    }
    columns = {
        "width": widths[1:-1],
        "depth": fields.numbers("depth", count),
        "kernel": fields.numbers("kernel_size", count),
        "expand": fields.numbers("expand_ratio", count),
    }
    for gene, column in columns.items():
        chosen |= {f"s{i}.{gene}": value for i, value in enumerate(column)}
    return space.arch(chosen)


NOTATIONS: Mapping[str, Callable[[Space, Mapping[str, object]], Arch]] = MappingProxyType(
    {"ofa-mbv3": _read_ofa, "attentive-nas": _read_attentive}
)


def _mobilenet(space: Space) -> MobileNetSpace:
    if not isinstance(space, MobileNetSpace):
        raise UsageError(f"architecture: a mobilenet space expected, not {space.family}")
    return space


class _Fields:
    """Checked access to a notation's fields."""

    def __init__(self, values: Mapping[str, object], names: tuple[str, ...]) -> None:
        for name in names:
            if name not in values:
                raise UsageError(f"architecture: {name} is missing; fields: {', '.join(names)}")
        for name in values:
            if name not in names:
                raise UsageError(
                    f"architecture: unknown field {name!r}; fields: {', '.join(names)}"
                )
        self._values = values

    def number(self, name: str) -> Value:
        value = self._values[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"architecture: {name} = {value!r}; a number expected")
        return value

    def numbers(self, name: str, count: int) -> list[Value]:
        value = self._values[name]
        if (
            not isinstance(value, list | tuple)
            or len(value) != count
            or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value)
        ):
            raise UsageError(
                f"architecture: {name} = {value!r}; a list of {count} numbers expected"
            )
        return list(value)
