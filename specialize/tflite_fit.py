"""Making a float TFLite model fit for int8: no bias and no scale out of the arithmetic's range.

A convolution adds its bias, an int32 in steps of (input step × the channel's weight step), and
rescales the sum to steps of the output. Training leaves channels whose weights are almost 0 beside
a bias that is not, and layers that are hardly ever active: then the bias does not fit into 32 bits
(the quantizer cuts it off, silently), or XNNPACK refuses the file because the rescaling exceeds
2^8. Both cost nothing to prevent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protos.inference import Ranges
from .tflite_file import CHANNEL_AXIS, code_of, weight_layers

BIAS_STEPS = 2.0**30
MAX_RESCALE = 2.0**7
WEIGHT_STEPS, ACTIVATION_STEPS = 127, 255
ACTIVATION_BITS = 8
"""Only beside those: with 16 bits the reference kernels compute, whose sums have 64."""


def fit(model: Any, ranges: Ranges, weight_steps: Sequence[int] | None = None) -> Ranges:
    """Raise weights in a model (in place) and return its ranges widened, where int8 needs it.

    `weight_steps` are those on either side of 0 of each layer's weights, 127 where not given. At most one weight per channel changes, by so little that the output moves by less than
    4e-5 of the channel's bias: under a hundredth of an int8 step.
    """
    graph, fitted = model.subgraphs[0], dict(ranges)
    for place, operator in enumerate(weight_layers(model)):
        axis = CHANNEL_AXIS[code_of(model, operator)]
        source, kernel, *rest = (graph.tensors[at] for at in operator.inputs if at >= 0)
        step = _width(fitted[source.name.decode()]) / ACTIVATION_STEPS
        least = np.zeros(kernel.shape[axis])
        if rest:
            bias = model.buffers[rest[0].buffer].data.view(np.float32)
            least = np.abs(bias) * (WEIGHT_STEPS / BIAS_STEPS / step)
        peak = _raise_weights(model.buffers[kernel.buffer], kernel.shape, axis, least)
        name = graph.tensors[operator.outputs[0]].name.decode()
        steps = WEIGHT_STEPS if weight_steps is None else weight_steps[place]
        needed = ACTIVATION_STEPS * step * peak / steps / MAX_RESCALE
        low, high = fitted[name]
        fitted[name] = low, high + max(0.0, needed - _width((low, high)))
    return fitted


def _width(bounds: tuple[float, float]) -> float:
    """Of the range with 0 in it, as quantizers take it."""
    return max(bounds[1], 0.0) - min(bounds[0], 0.0)


def _raise_weights(
    buffer: Any, shape: NDArray[np.int32], axis: int, least: NDArray[np.float64]
) -> float:
    """Raise each channel's largest weight to `least` where it is below; returns the largest."""
    weights = buffer.data.view(np.float32).reshape(shape).copy()
    channels = np.moveaxis(weights, axis, 0)
    flat = channels.reshape(len(channels), -1)
    rows, places = np.arange(len(flat)), np.abs(flat).argmax(axis=1)
    peaks = np.abs(flat[rows, places])
    low = peaks < least
    if low.any():
        signs = np.where(flat[rows, places] < 0, -1.0, 1.0)
        flat[rows[low], places[low]] = (signs * least)[low]
        channels[:] = flat.reshape(channels.shape)  # the flat form is a copy for axis 3
        buffer.data = weights.ravel().view(np.uint8)
    return float(np.maximum(peaks, least).max())
