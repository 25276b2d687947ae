"""Plain torch layers whose sizes are read off a selection and whose tensors know their axes."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from ..axes import Selection, tag, tag_std

Width = str | int | None


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "": nn.Identity,
        "relu": lambda: nn.ReLU(inplace=True),
        "hswish": lambda: nn.Hardswish(inplace=True),
        "silu": lambda: nn.SiLU(inplace=True),
        "gelu": nn.GELU,
    }
)


def activation(name: str) -> nn.Module:
    """The module of an activation's name; '' is none."""
    return ACTIVATIONS[name]()


class Layers:
    """Makes layers for one architecture.

    A width given as a text is an axis whose selected indices give the size; as a number it is
    fixed. None as input width means depthwise. `dims` is 2 for images and 1 for sequences, which
    are images of one row (B, C, 1, T) with kernels of 1×k: around a 1-D convolution of its own the
    TFLite converter writes transpositions. `norm_group` = 0 is batch normalization; else group
    normalization (Wu & He 2018) over so many channels a group, so that a subnet's groups are whole
    groups of the supernet's and its statistics need no recalibration.
    """

    def __init__(self, selection: Selection, *, dims: int = 2, norm_group: int = 0) -> None:
        self.selection, self.dims, self.norm_group = selection, dims, norm_group

    def size(self, width: Width) -> int:
        """Channels of an axis or a fixed width."""
        return self.selection.size(width) if isinstance(width, str) else int(width or 0)

    def conv(
        self,
        out: Width,
        in_: Width,
        *,
        kernel: Width = 1,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ) -> nn.Conv2d:
        """Convolution with 'same' padding; depthwise where `in_` is None."""
        k, channels = self.size(kernel), self.size(out)
        layer = nn.Conv2d(
            channels if in_ is None else self.size(in_),
            channels,
            self._along(k, 1),
            stride=self._along(stride, 1),
            padding=self._along(dilation * (k // 2), 0),
            dilation=self._along(dilation, 1),
            groups=channels if in_ is None else 1,
            bias=bias,
        )
        axis_k = _axis(kernel)
        axes_k = (None if self.dims == 1 else axis_k, axis_k)
        tag(layer, weight=(_axis(out), _axis(in_), *axes_k), bias=(_axis(out),))
        return layer

    def _along(self, value: int, across: int) -> tuple[int, int]:
        """(rows, columns): for sequences, `across` over the one row there is."""
        return (across if self.dims == 1 else value, value)

    def norm(self, width: Width, *, vectors: bool = False) -> nn.Module:
        """Batch or group normalization of a width, of maps or of `vectors` (B, C)."""
        channels, axes = self.size(width), (_axis(width),)
        layer: nn.Module
        if self.norm_group:
            layer = nn.GroupNorm(channels // self.norm_group, channels)
        else:
            layer = (nn.BatchNorm1d if vectors else nn.BatchNorm2d)(channels)
        return tag(layer, weight=axes, bias=axes)

    def layer_norm(self, width: Width) -> nn.Module:
        """Layer normalization over a width, the last dimension (Ba et al. 2016)."""
        axes = (_axis(width),)
        return tag(nn.LayerNorm(self.size(width)), weight=axes, bias=axes)

    def conv_norm_act(
        self,
        out: Width,
        in_: Width,
        *,
        kernel: Width = 1,
        stride: int = 1,
        dilation: int = 1,
        act: str = "relu",
    ) -> nn.Sequential:
        """Convolution, normalization, activation: modules `conv`, `bn`, `act`."""
        chain = nn.Sequential()
        conv = self.conv(out, in_, kernel=kernel, stride=stride, dilation=dilation)
        chain.add_module("conv", conv)
        chain.add_module("bn", self.norm(out))
        if act:
            chain.add_module("act", activation(act))
        return chain

    def conv_act(self, out: Width, in_: Width, act: str) -> nn.Sequential:
        """1×1 convolution without normalization or bias, then an activation."""
        chain = nn.Sequential()
        chain.add_module("conv", self.conv(out, in_))
        chain.add_module("act", activation(act))
        return chain

    def linear(
        self, out: Width, in_: Width, *, std: float | None = None, bias: bool = True
    ) -> nn.Linear:
        """Linear layer, its weights drawn with `std` (0.01, a classifier's, where None)."""
        layer = nn.Linear(self.size(in_), self.size(out), bias=bias)
        if std is not None:
            tag_std(layer, weight=std)
        tag(layer, weight=(_axis(out), _axis(in_)), bias=(_axis(out),))
        return layer

    def linear_norm_act(
        self, out: Width, in_: Width, *, act: str = "relu", norm: bool = True
    ) -> nn.Sequential:
        """Linear layer, normalization unless `norm` is off, activation: `linear`, `bn`, `act`.

        Weights are drawn for a ReLU, by fan-in (He et al. 2015).
        """
        chain = nn.Sequential()
        std = math.sqrt(2 / self.size(in_))
        chain.add_module("linear", self.linear(out, in_, std=std, bias=not norm))
        if norm:
            chain.add_module("bn", self.norm(out, vectors=True))
        if act:
            chain.add_module("act", activation(act))
        return chain

    def pool(self) -> nn.Module:
        """Mean over all positions, keeping each of their dimensions at 1."""
        return nn.AdaptiveAvgPool2d(1)

    def squeeze_excite(self, channels: str, squeezed: str) -> "SqueezeExcite":
        """Squeeze-and-excitation over an axis (Hu et al. 2018), hard sigmoid gate."""
        return SqueezeExcite(
            self.pool(),
            self.conv(squeezed, channels, bias=True),
            self.conv(channels, squeezed, bias=True),
        )


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channels' means; x is (B, C, ...)."""

    def __init__(self, pool: nn.Module, reduce: nn.Module, expand: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.reduce, self.expand = reduce, expand
        self.act, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid(inplace=True)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        gate_bc11: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x_bchw)))))
        return x_bchw * gate_bc11


def _axis(width: Width) -> str | None:
    return width if isinstance(width, str) else None
