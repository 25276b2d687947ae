"""MobileNetV3-style inverted residuals with elastic depth, width, expand ratio, kernel, resolution.

The network: a 3×3 stem, stages of inverted residual blocks (Sandler et al. 2018; squeeze-and-
excitation and hard-swish as in Howard et al. 2019), a 1×1 head, average pooling, a classifier.
Elastic dimensions as in once-for-all (Cai et al. 2020) and AttentiveNAS (Wang et al. 2021): the
smaller kernel is the centre of the larger one, channels are prefixes, depth drops a stage's last
blocks.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Self

from torch import Tensor, nn

from ..axes import Index, Selection, centred, prefix
from ..cost import LayerPlan
from ..errors import UsageError
from ..space import Arch, Gene, Space
from .layers import Layers

ACTIVATIONS = ("relu", "hswish")
SE_REDUCTION = 4


def make_divisible(channels: float, divisor: int) -> int:
    """Nearest multiple of `divisor`, never more than 10 % below (Howard et al. 2019)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@dataclass(frozen=True, slots=True)
class Stage:
    """Options of one stage; `widths` in channels, `depths` in blocks, all ascending.

    Expand ratio 1 alone means blocks without an expansion convolution.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    expands: tuple[int, ...]
    kernels: tuple[int, ...]
    stride: int = 1
    act: str = "relu"
    se: bool = False

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS:
            raise UsageError(f"stage: act = {self.act!r}; allowed: {', '.join(ACTIVATIONS)}")
        for field in ("widths", "depths", "expands", "kernels"):
            _check_counts(f"stage: {field}", getattr(self, field))
        _check_counts("stage: stride", (self.stride,))
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UsageError(f"stage: kernels = {self.kernels}; odd sizes only")


@dataclass(frozen=True, slots=True)
class Block:
    """Geometry of one inverted residual block of one architecture."""

    name: str
    axis_in: str
    axis_out: str
    width_in: int
    width_mid: int
    width_out: int
    kernel: int
    stride: int
    hw_in: int
    hw_out: int
    act: str
    se: int
    expand: bool

    @property
    def residual(self) -> bool:
        """Whether the input is added: same axis on both sides and no stride."""
        return self.stride == 1 and self.axis_in == self.axis_out


@dataclass(frozen=True)
class MobileNetSpace(Space):
    """A space of inverted-residual networks; resolution in pixels, square inputs."""

    classes: int
    in_channels: int
    resolutions: tuple[int, ...]
    stem_widths: tuple[int, ...]
    stages: tuple[Stage, ...]
    head_widths: tuple[int, ...]
    feature_width: int = 0
    stem_stride: int = 1
    stem_act: str = "hswish"
    divisor: int = 8

    family = "mobilenet"

    def __post_init__(self) -> None:
        for field in ("resolutions", "stem_widths", "head_widths"):
            _check_counts(f"space: {field}", getattr(self, field))
        for field in ("in_channels", "stem_stride", "divisor"):
            _check_counts(f"space: {field}", (getattr(self, field),))
        _check_counts("space: classes", (self.classes,), least=2)
        _check_counts("space: feature_width", (self.feature_width,), least=0)
        if not self.stages or not all(isinstance(stage, Stage) for stage in self.stages):
            raise UsageError("space: stages must be at least one stage")
        if self.stem_act not in ACTIVATIONS:
            raise UsageError(f"space: stem_act = {self.stem_act!r}; allowed: {ACTIVATIONS}")
        _ = self.genes  # an impossible option list is an error here, not at first use

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Resolution, widths and depth per stage, expand ratio and kernel per block."""
        found = [Gene("resolution", self.resolutions), Gene("stem.width", self.stem_widths)]
        for i, stage in enumerate(self.stages):
            found += [Gene(f"s{i}.width", stage.widths), Gene(f"s{i}.depth", stage.depths)]
            for j in range(stage.depths[-1]):
                needs = (f"s{i}.depth", j + 1) if j >= stage.depths[0] else None
                found.append(Gene(f"s{i}.b{j}.expand", stage.expands, needs))
                found.append(Gene(f"s{i}.b{j}.kernel", stage.kernels, needs))
        return (*found, Gene("head.width", self.head_widths))

    def blocks(self, arch: Arch) -> list[Block]:
        """Every block that the architecture uses, with its sizes."""
        found = []
        axis, width = "stem.out", arch.count("stem.width")
        hw = _strided(arch.count("resolution"), self.stem_stride)
        for i, stage in enumerate(self.stages):
            for j in range(arch.count(f"s{i}.depth")):
                stride = stage.stride if j == 0 else 1
                mid = make_divisible(width * arch[f"s{i}.b{j}.expand"], self.divisor)
                expand = stage.expands != (1,)
                found.append(
                    Block(
                        name=f"stages.{i}.{j}",
                        axis_in=axis,
                        axis_out=f"s{i}.out",
                        width_in=width,
                        width_mid=mid if expand else width,
                        width_out=arch.count(f"s{i}.width"),
                        kernel=arch.count(f"s{i}.b{j}.kernel"),
                        stride=stride,
                        hw_in=hw,
                        hw_out=_strided(hw, stride),
                        act=stage.act,
                        se=make_divisible(mid // SE_REDUCTION, self.divisor) if stage.se else 0,
                        expand=expand,
                    )
                )
                axis, width, hw = found[-1].axis_out, found[-1].width_out, found[-1].hw_out
        return found

    def select(self, arch: Arch) -> Selection:
        """Prefixes of channels, centres of kernels; a shallower stage leaves its last blocks."""
        index: dict[str, Index] = {
            "stem.out": prefix(arch.count("stem.width")),
            "head.out": prefix(arch.count("head.width")),
        }
        used = set()
        for block in self.blocks(arch):
            stage = self.stages[int(block.name.split(".")[1])]
            used.add(block.name)
            index[block.axis_out] = prefix(block.width_out)
            if block.expand:
                index[f"{block.name}.mid"] = prefix(block.width_mid)
            index[f"{block.name}.k"] = centred(block.kernel, stage.kernels[-1])
            if block.se:
                index[f"{block.name}.se"] = prefix(block.se)
        absent = {
            f"stages.{i}.{j}"
            for i, stage in enumerate(self.stages)
            for j in range(stage.depths[-1])
        }
        return Selection(index, frozenset(absent - used))

    def build(self, arch: Arch) -> nn.Module:
        """Modules `stem`, `stages.<i>.<j>` and `head`."""
        make = Layers(self.select(arch))
        blocks = self.blocks(arch)
        stages = nn.ModuleList()
        for i in range(len(self.stages)):
            mine = [block for block in blocks if block.name.startswith(f"stages.{i}.")]
            stages.append(nn.Sequential(*(InvertedResidual(block, make) for block in mine)))
        return MobileNet(
            stem=make.conv_norm_act(
                "stem.out", self.in_channels, kernel=3, stride=self.stem_stride, act=self.stem_act
            ),
            stages=stages,
            head=Head(self, blocks[-1].axis_out, make),
        )

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        """Stem, each block's convolutions, head and classifier."""
        blocks = self.blocks(arch)
        r, stem = arch.count("resolution"), arch.count("stem.width")
        first = LayerPlan(
            name="stem", kind="conv", out_channels=stem, in_per_group=self.in_channels,
            kernel_area=9, in_elements=self.in_channels * r * r,
            out_elements=stem * blocks[0].hw_in**2, norm=True, act=self.stem_act,
        )  # fmt: skip
        plans = [first]
        for block in blocks:
            plans += _block_layers(block)
        return (*plans, *self._head_layers(arch, blocks[-1]))

    def _head_layers(self, arch: Arch, last: Block) -> list[LayerPlan]:
        head, area = arch.count("head.width"), last.hw_out**2
        plans = [
            LayerPlan("head.expand", "conv", head, last.width_out, 1, last.width_out * area,
                      head * area, norm=True, act="hswish"),
            LayerPlan("head.pool", "pool", head, 0, 0, head * area, head),
        ]  # fmt: skip
        width = head
        if self.feature_width:
            width = self.feature_width
            plans.append(
                LayerPlan("head.feature", "conv", width, head, 1, head, width, act="hswish")
            )
        plans.append(
            LayerPlan("head.classifier", "linear", self.classes, width, 1, width, self.classes,
                      bias=True)
        )  # fmt: skip
        return plans

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """(channels, resolution, resolution)."""
        return (self.in_channels, arch.count("resolution"), arch.count("resolution"))

    def describe(self, arch: Arch) -> str:
        """Resolution, then per stage width×depth with expand and kernel of each block."""
        parts = [f"r{arch['resolution']} {arch['stem.width']}"]
        for i in range(len(self.stages)):
            blocks = " ".join(
                f"e{arch[f's{i}.b{j}.expand']}k{arch[f's{i}.b{j}.kernel']}"
                for j in range(arch.count(f"s{i}.depth"))
            )
            parts.append(f"{arch[f's{i}.width']}[{blocks}]")
        return " ".join([*parts, str(arch["head.width"])])

    def to_dict(self) -> dict[str, object]:
        """Family and every field."""
        return {"family": self.family, **asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names an unknown or missing field."""
        raw = dict(fields)
        stages = raw.pop("stages", None)
        if not isinstance(stages, list | tuple) or not all(isinstance(s, Mapping) for s in stages):
            raise UsageError("space mobilenet: stages must be a list of tables")
        try:
            made = tuple(Stage(**_tuples(stage)) for stage in stages)  # type: ignore[arg-type]
            return cls(**_tuples(raw), stages=made)  # type: ignore[arg-type]
        except TypeError as error:  # a missing or an unknown field; values are checked in there
            raise UsageError(
                f"space mobilenet: {error}; fields: {list(cls.__match_args__)}"
            ) from None


def _check_counts(where: str, values: object, least: int = 1) -> None:
    if not isinstance(values, tuple) or any(type(v) is not int or v < least for v in values):
        raise UsageError(f"{where} = {values!r}; whole numbers of at least {least} expected")


def _tuples(fields: Mapping[str, object]) -> dict[str, object]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}


def _strided(hw: int, stride: int) -> int:
    return (hw - 1) // stride + 1


def _block_layers(block: Block) -> list[LayerPlan]:
    area_in, area_out = block.hw_in**2, block.hw_out**2
    skip = block.width_in * area_in if block.residual else 0
    mid = block.width_mid
    plans = []
    if block.expand:
        plans.append(
            LayerPlan(f"{block.name}.expand", "conv", mid, block.width_in, 1,
                      block.width_in * area_in, mid * area_in, norm=True, act=block.act)
        )  # fmt: skip
    # Without an expansion the depthwise layer's input is the residual's tensor itself.
    held = skip if block.expand else 0
    plans.append(
        LayerPlan(f"{block.name}.depthwise", "depthwise", mid, 1, block.kernel**2, mid * area_in,
                  mid * area_out, norm=True, act=block.act, held=held)
    )  # fmt: skip
    if block.se:
        scaled = mid * area_out + skip
        plans += [
            LayerPlan(f"{block.name}.se.pool", "pool", mid, 0, 0, mid * area_out, mid, held=skip,
                      reread=True),
            LayerPlan(f"{block.name}.se.reduce", "conv", block.se, mid, 1, mid, block.se,
                      bias=True, act="relu", held=scaled),
            LayerPlan(f"{block.name}.se.expand", "conv", mid, block.se, 1, block.se, mid,
                      bias=True, act="hsigmoid", held=scaled),
        ]  # fmt: skip
    plans.append(
        LayerPlan(f"{block.name}.project", "conv", block.width_out, mid, 1, mid * area_out,
                  block.width_out * area_out, norm=True, held=skip)
    )  # fmt: skip
    return plans


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, optional squeeze-and-excitation, project 1×1, optional skip."""

    def __init__(self, block: Block, make: Layers) -> None:
        super().__init__()
        mid_axis = f"{block.name}.mid" if block.expand else block.axis_in
        self.residual = block.residual
        self.expand = (
            make.conv_norm_act(mid_axis, block.axis_in, act=block.act)
            if block.expand
            else nn.Identity()
        )
        self.depthwise = make.conv_norm_act(
            mid_axis, None, kernel=f"{block.name}.k", stride=block.stride, act=block.act
        )
        self.se = make.squeeze_excite(mid_axis, f"{block.name}.se") if block.se else nn.Identity()
        self.project = make.conv_norm_act(block.axis_out, mid_axis, act="")

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, in, h, w) to (B, out, h / stride, w / stride)."""
        y_bchw: Tensor = self.project(self.se(self.depthwise(self.expand(x_bchw))))
        return x_bchw + y_bchw if self.residual else y_bchw


class Head(nn.Module):
    """1×1 expansion, global average pooling, optional feature layer, classifier."""

    def __init__(self, space: MobileNetSpace, axis_in: str, make: Layers) -> None:
        super().__init__()
        self.expand = make.conv_norm_act("head.out", axis_in, act="hswish")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.feature = (
            make.conv_act(space.feature_width, "head.out", act="hswish")
            if space.feature_width
            else nn.Identity()
        )
        width: int | str = space.feature_width or "head.out"
        self.classifier = make.linear(space.classes, width)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Features (B, C, h, w) to logits (B, classes)."""
        feature_bc = self.feature(self.pool(self.expand(x_bchw))).flatten(1)
        logits_bc: Tensor = self.classifier(feature_bc)
        return logits_bc


class MobileNet(nn.Module):
    """Stem, stages, head; input (B, C, r, r), output logits (B, classes)."""

    def __init__(self, stem: nn.Module, stages: nn.ModuleList, head: Head) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, stages, head

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Images (B, C, r, r) to logits (B, classes)."""
        x_bchw = self.stem(x_bchw)
        for stage in self.stages:
            x_bchw = stage(x_bchw)
        logits_bc: Tensor = self.head(x_bchw)
        return logits_bc


# No map is smaller than the kernels on it: a convolution like that takes a CPU five times as long.
DIGITS = MobileNetSpace(
    classes=10,
    in_channels=1,
    resolutions=(8,),
    stem_widths=(8, 16),
    stages=(
        Stage((8, 16, 24), (1,), (2, 3, 4), (3, 5), stride=2),
        Stage((16, 24, 32), (1, 2), (2, 3, 4), (3,)),
        Stage((16, 32, 48), (1, 2), (2, 3, 4), (3,)),
    ),
    head_widths=(32, 96),
)
SMALL = MobileNetSpace(
    classes=10,
    in_channels=1,
    resolutions=(20, 24, 28),
    stem_widths=(8, 16),
    stages=(
        Stage(widths=(8, 16), depths=(1, 2), expands=(2, 3, 4), kernels=(3, 5)),
        Stage(widths=(16, 24, 32), depths=(1, 2, 3), expands=(2, 3, 4), kernels=(3, 5), stride=2,
              act="hswish"),
        Stage(widths=(32, 48, 64), depths=(1, 2, 3), expands=(2, 3, 4), kernels=(3, 5), stride=2,
              act="hswish", se=True),
    ),
    head_widths=(96, 192),
)  # fmt: skip
MOBILE = MobileNetSpace(
    classes=1000,
    in_channels=3,
    resolutions=(128, 160, 192, 224),
    stem_widths=(16,),
    stem_stride=2,
    stages=(
        Stage((16,), (1,), (1,), (3,)),
        Stage((16, 24), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2),
        Stage((32, 40), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2, se=True),
        Stage((64, 80), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2, act="hswish"),
        Stage((96, 112), (2, 3, 4), (3, 4, 6), (3, 5, 7), act="hswish", se=True),
        Stage((128, 160), (2, 3, 4), (3, 4, 6), (3, 5, 7), stride=2, act="hswish", se=True),
    ),
    head_widths=(768, 960),
    feature_width=1280,
)
SMALL_32 = replace(SMALL, in_channels=3, resolutions=(24, 28, 32))
PRESETS: Mapping[str, MobileNetSpace] = {
    "digits": DIGITS,
    "small": SMALL,
    "small-32": SMALL_32,
    "mobile": MOBILE,
}
