"""How far a decoded update may be off, stage by stage."""

from collections.abc import Mapping

import numpy as np

from ...supernet.weights import Flat, Shapes
from .config import CodecConfig
from .gaps import Positions
from .levels import Levels, fit_levels, widened
from .strongest import Part, plan_of
from .wire import select

# Of float32 arithmetic on numbers up to the scale; and of what is smaller than any bfloat16.
_ROUNDING, _SMALLEST = 2.0**-20, 2.0**-132


def worst_error(delta: Flat, shapes: Shapes, config: CodecConfig) -> Mapping[str, float]:
    """Of each tensor the largest difference between a value and what arrives, whatever the seed.

    Of a value that is left out: the largest magnitude left out. Of one that is sent as it is: none.
    On uniform levels: the distance of neighbouring levels, or half of it with rounding to the
    nearest. On clusters: half the widest gap between levels from zero to the largest magnitude, or
    what the largest is beyond the last level. As a sign: the largest difference from the mean.
    """
    plan = plan_of(shapes, config)
    positions, counts, values = select(delta, plan)
    counts += [part.size for part in plan.whole]
    levels = None if config.levels == "float32" else fit_levels(values, counts, config)
    found, begin, along = {}, 0, 0
    for place, (part, count) in enumerate(zip((*plan.sparse, *plan.whole), counts, strict=True)):
        sent = np.abs(values[begin : begin + count])
        error = 0.0
        if place < len(plan.sparse):
            error = _left_out(delta, part, positions[begin : begin + count] - along)
            along += part.size
        if levels is not None and sent.size:
            error = max(error, _off_level(sent, place, levels, config))
        found[part.name], begin = error, begin + count
    return {name: found[name] for name in shapes}


def _left_out(delta: Flat, part: Part, sent: Positions) -> float:
    others = np.abs(delta[part.begin : part.end])
    others[sent] = 0
    return float(others.max(initial=0))


def _off_level(sent: Flat, place: int, levels: Levels, config: CodecConfig) -> float:
    scale, largest = float(widened(levels.scales)[place]), float(sent.max())
    if config.levels == "sign":
        used = sent[sent > 0].astype(np.float64)
        error = float(np.abs(used - scale).max(initial=0))
    elif config.levels == "uniform":
        error = scale / config.magnitudes() / (2 if config.rounding == "nearest" else 1)
    else:
        magnitudes = scale * np.concatenate([[0.0], levels.magnitudes(config).astype(np.float64)])
        reached = magnitudes[: np.searchsorted(magnitudes, largest) + 1]
        error = max(np.diff(reached).max(initial=0) / 2, largest - float(magnitudes[-1]))
    return error + _ROUNDING * largest + _SMALLEST
