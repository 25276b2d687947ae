"""Weights as a device of few bits holds them: rounded to few levels, trained as if they were not.

Rounded is every tensor of two dimensions or more, each output channel (its first dimension) to
levels of its own:

- 8 and 4 bits: -n … n times max|w| / n, with n = 2^(bits - 1) - 1. Symmetric, as the weights of
  int8 files are.
- 2 bits: -c, 0 and c. What is not above 0.7 · mean|w| becomes 0, and c is the mean |w| of the rest:
  Ternary Weight Networks (Li et al. 2016), there for a layer, here for each output channel.

Gradients are straight-through (Bengio et al. 2013): a rounded value's is its weight's, wherever that
lies. Scales count as constants.

Norm scales and biases stay as they are. Tables that a transformer adds (positions, tokens) have two
dimensions or more and are rounded like kernels. The first and the last layer are no exceptions: EQ-Net
and others keep them in 8 bits, which a device that has but one width cannot. Activations are not
rounded; that needs ranges, which exported files get and local training here does not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import UsageError
from .precision import FLOAT_BITS, TERNARY_BITS, check_bits

TERNARY_THRESHOLD = 0.7


def quantized(values: Mapping[str, Tensor], bits: int) -> Mapping[str, Tensor]:
    """The values as a device of this width holds them, differentiable with respect to `values`.

    With 32 bits they are `values` itself. Tensors of less than two dimensions are the given ones.
    Rounding what is rounded changes nothing. A channel with a value that is no number, or infinite,
    has no number at all. UsageError for a width that is not allowed.
    """
    check_bits("bits", bits)
    if bits == FLOAT_BITS:
        return values
    return {name: _rounded(v, bits) if is_rounded(v) else v for name, v in values.items()}


def rounded(values: Mapping[str, Tensor], widths: Mapping[str, int]) -> Mapping[str, Tensor]:
    """The values, of which those named are rounded to so many bits each.

    UsageError for a name that is no tensor of two dimensions or more among them, or a width that is
    not allowed.
    """
    for name in widths:
        if name not in values or not is_rounded(values[name]):
            raise UsageError(f"widths: {name!r} is no kernel of this network")
    return {n: quantized({n: v}, widths[n])[n] if n in widths else v for n, v in values.items()}


def least_bits(kernel_shape: tuple[int, ...]) -> int:
    """The width that a kernel (outputs, inputs, …) has at least in a file of 4 bits: 4, or 8.

    Kernels over one channel keep 8: those of depthwise convolutions, for which LiteRT has none of 4, and
    that of a convolution over gray images, which a TFLite file holds as one. They are a small part of
    the bytes and would lose most.
    """
    return 8 if len(kernel_shape) > 2 and kernel_shape[1] == 1 else 4


def is_rounded(value: Tensor) -> bool:
    """Whether a tensor is one of those that few bits change."""
    return value.dim() >= 2


def _rounded(weight: Tensor, bits: int) -> Tensor:
    held = weight.detach()
    found = _ternary(held) if bits == TERNARY_BITS else _uniform(held, 2 ** (bits - 1) - 1)
    # Exactly zero is added, so that the levels stay exact; its gradient is the straight-through one.
    return found.add_(weight - held)


def _uniform(weight: Tensor, levels: int) -> Tensor:
    """Nearest of `levels` levels on either side of zero."""
    largest, unit = _largest(weight)
    # A share of the largest weight, and not steps times a scale: the last level is then that weight,
    # bit for bit, which makes a second rounding find the same levels.
    return (weight / unit).mul_(levels).round_().div_(levels).mul_(largest)


def _ternary(weight: Tensor) -> Tensor:
    largest, unit = _largest(weight)
    dims = _within_channel(weight)
    share = weight.abs() / unit
    kept = share > TERNARY_THRESHOLD * share.mean(dims, keepdim=True)
    # The mean of those kept, as what they lack of the largest: exact where they are all alike.
    lacking = (1 - share).mul_(kept).sum(dims, keepdim=True)
    lacking /= kept.sum(dims, keepdim=True).clamp_(min=1)
    return weight.sign().mul_(kept).mul_(largest * (1 - lacking))


def _largest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitude of each output channel; and the same to divide by, 1 where it is 0."""
    largest = weight.abs().amax(_within_channel(weight), keepdim=True)
    return largest, torch.where(largest > 0, largest, 1)


def _within_channel(weight: Tensor) -> tuple[int, ...]:
    return tuple(range(1, weight.dim()))
