"""Plain torch layers whose sizes are read off a selection and whose tensors know their axes."""

from torch import Tensor, nn

from ..axes import Selection, tag

Width = str | int | None


def activation(name: str) -> nn.Module:
    """The module of an activation's name; '' is none."""
    if name == "hswish":
        return nn.Hardswish(inplace=True)
    return nn.ReLU(inplace=True) if name == "relu" else nn.Identity()


class Layers:
    """Makes layers for one architecture.

    A width given as a text is an axis whose selected indices give the size; as a number it is
    fixed. None as input width means depthwise.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

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
        bias: bool = False,
    ) -> nn.Conv2d:
        """Convolution with 'same' padding; depthwise where `in_` is None."""
        k, channels = self.size(kernel), self.size(out)
        layer = nn.Conv2d(
            channels if in_ is None else self.size(in_),
            channels,
            k,
            stride=stride,
            padding=k // 2,
            groups=channels if in_ is None else 1,
            bias=bias,
        )
        axis_k = _axis(kernel)
        tag(layer, weight=(_axis(out), _axis(in_), axis_k, axis_k), bias=(_axis(out),))
        return layer

    def conv_norm_act(
        self, out: Width, in_: Width, *, kernel: Width = 1, stride: int = 1, act: str = "relu"
    ) -> nn.Sequential:
        """Convolution, batch normalization, activation: modules `conv`, `bn`, `act`."""
        norm = tag(nn.BatchNorm2d(self.size(out)), weight=(_axis(out),), bias=(_axis(out),))
        chain = nn.Sequential()
        chain.add_module("conv", self.conv(out, in_, kernel=kernel, stride=stride))
        chain.add_module("bn", norm)
        if act:
            chain.add_module("act", activation(act))
        return chain

    def conv_act(self, out: Width, in_: Width, act: str) -> nn.Sequential:
        """1×1 convolution without normalization or bias, then an activation."""
        chain = nn.Sequential()
        chain.add_module("conv", self.conv(out, in_))
        chain.add_module("act", activation(act))
        return chain

    def linear(self, out: Width, in_: Width) -> nn.Linear:
        """Linear layer with bias."""
        layer = nn.Linear(self.size(in_), self.size(out))
        tag(layer, weight=(_axis(out), _axis(in_)), bias=(_axis(out),))
        return layer

    def squeeze_excite(self, channels: str, squeezed: str) -> "SqueezeExcite":
        """Squeeze-and-excitation over an axis (Hu et al. 2018), hard sigmoid gate."""
        return SqueezeExcite(
            self.conv(squeezed, channels, bias=True), self.conv(channels, squeezed, bias=True)
        )


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channels' means."""

    def __init__(self, reduce: nn.Conv2d, expand: nn.Conv2d) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = reduce, expand
        self.act, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid(inplace=True)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        gate_bc11: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x_bchw)))))
        return x_bchw * gate_bc11


def _axis(width: Width) -> str | None:
    return width if isinstance(width, str) else None
