"""Residual multilayer perceptrons for tables, with elastic depth and widths.

The ResNet for tables of Gorishniy et al. 2021 ("Revisiting deep learning models for tabular data"):
a linear layer to the trunk, residual blocks of two linear layers, a classifier. Elastic: the
trunk's width, the number of blocks, and the hidden width of each. Units are prefixes, depth drops
the last blocks; because a block adds to the trunk, what is left still fits together.

Deviations: normalization follows each linear layer, where that paper has one before each block, so
that it can be folded into the layer when exported; a ReLU follows the addition; no dropout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from torch import Tensor, nn

from ..axes import Index, Selection, prefix
from ..cost import LayerPlan
from ..errors import UsageError
from ..space import Arch, Gene, Space, block_needs
from .fields import check_counts, check_flag, check_multiples, read_space
from .layers import Layers


@dataclass(frozen=True)
class MlpSpace(Space):
    """A space of perceptrons on `features` numbers; widths in units, depths in blocks.

    `norm` = False leaves normalization out. `norm_group` = 0 is batch normalization, else group
    normalization over so many units a group.
    """

    classes: int
    features: int
    widths: tuple[int, ...]
    hidden_widths: tuple[int, ...]
    depths: tuple[int, ...]
    norm: bool = True
    norm_group: int = 0

    family = "mlp"

    def __post_init__(self) -> None:
        check_counts("space: classes", (self.classes,), least=2)
        check_counts("space: features", (self.features,))
        for field in ("widths", "hidden_widths"):
            check_counts(f"space: {field}", getattr(self, field))
        check_counts("space: depths", self.depths, least=0)
        check_flag("space: norm", self.norm)
        check_counts("space: norm_group", (self.norm_group,), least=0)
        if self.norm_group and not self.norm:
            raise UsageError(f"space: norm_group = {self.norm_group}; needs norm = true")
        if self.norm_group:
            for field in ("widths", "hidden_widths"):
                values = getattr(self, field)
                check_multiples(f"space: {field}", values, self.norm_group, "norm_group")
        _ = self.genes  # an impossible option list is an error here, not at first use

    @property
    def rolls(self) -> bool:
        """Without group normalization, whose units have an order."""
        return self.norm_group == 0

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Trunk width, depth, and the hidden width of each block."""
        found = [Gene("width", self.widths, role="width"), Gene("depth", self.depths)]
        for j in range(self.depths[-1]):
            needs = block_needs("depth", self.depths, j)
            found.append(Gene(f"b{j}.hidden", self.hidden_widths, needs, role="width"))
        return tuple(found)

    def select(self, arch: Arch) -> Selection:
        """Prefixes of units; a shallower network leaves its last blocks out."""
        depth = arch.count("depth")
        index: dict[str, Index] = {"trunk": prefix(arch.count("width"))}
        for j in range(depth):
            index[f"blocks.{j}.hidden"] = prefix(arch.count(f"b{j}.hidden"))
        return Selection(index, frozenset(f"blocks.{j}" for j in range(depth, self.depths[-1])))

    def build(self, arch: Arch) -> nn.Module:
        """Modules `stem`, `blocks.<j>` and `classifier`."""
        make = Layers(self.select(arch), norm_group=self.norm_group)
        blocks = nn.Sequential(
            *(
                ResidualPair(
                    make.linear_norm_act(f"blocks.{j}.hidden", "trunk", norm=self.norm),
                    make.linear_norm_act("trunk", f"blocks.{j}.hidden", act="", norm=self.norm),
                )
                for j in range(arch.count("depth"))
            )
        )
        return Mlp(
            make.linear_norm_act("trunk", self.features, norm=self.norm),
            blocks,
            make.linear(self.classes, "trunk"),
        )

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        """Stem, two layers a block, classifier."""
        width = arch.count("width")
        plans = [self._linear("stem", width, self.features, act="relu")]
        for j in range(arch.count("depth")):
            hidden = arch.count(f"b{j}.hidden")
            plans += [
                self._linear(f"blocks.{j}.expand", hidden, width, act="relu"),
                self._linear(f"blocks.{j}.project", width, hidden, held=width),
            ]
        plans.append(
            LayerPlan("classifier", "linear", self.classes, width, 1, width, self.classes,
                      bias=True)
        )  # fmt: skip
        return tuple(plans)

    def _linear(self, name: str, out: int, in_: int, *, act: str = "", held: int = 0) -> LayerPlan:
        return LayerPlan(
            name, "linear", out, in_, 1, in_, out, bias=not self.norm, norm=self.norm, act=act,
            held=held,
        )  # fmt: skip

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """(features,)."""
        return (self.features,)

    def describe(self, arch: Arch) -> str:
        """Trunk width, then each block's hidden width."""
        hidden = " ".join(str(arch[f"b{j}.hidden"]) for j in range(arch.count("depth")))
        return f"{arch['width']}[{hidden}]"

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names an unknown or missing field."""
        return read_space(cls, fields)


class ResidualPair(nn.Module):
    """Two layers whose result is added to their input, then a ReLU."""

    def __init__(self, expand: nn.Module, project: nn.Module) -> None:
        super().__init__()
        self.expand, self.project = expand, project
        self.act = nn.ReLU(inplace=True)

    def forward(self, x_bc: Tensor) -> Tensor:
        """(B, width) to the same shape."""
        y_bc: Tensor = self.act(x_bc + self.project(self.expand(x_bc)))
        return y_bc


class Mlp(nn.Module):
    """Stem, residual blocks, classifier; rows (B, features) to logits (B, classes)."""

    def __init__(self, stem: nn.Module, blocks: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.classifier = stem, blocks, classifier

    def forward(self, x_bc: Tensor) -> Tensor:
        """(B, features) to (B, classes)."""
        logits_bc: Tensor = self.classifier(self.blocks(self.stem(x_bc)))
        return logits_bc


SMALL = MlpSpace(
    classes=10, features=64, widths=(16, 32, 64), hidden_widths=(16, 32, 64), depths=(0, 1, 2)
)
# As many features as `fedofa.client.sensor_data:adult` gives.
ADULT = MlpSpace(
    classes=2,
    features=91,
    widths=(16, 32, 64, 128),
    hidden_widths=(16, 32, 64, 128, 256),
    depths=(1, 2, 3),
)
PRESETS: Mapping[str, MlpSpace] = {"mlp-small": SMALL, "mlp-adult": ADULT}
