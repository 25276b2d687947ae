"""The predictors that need nothing but measured subnets, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from . import gaussian, linear, network, trees
from .contract import Fit

PREDICTORS: Mapping[str, Fit] = MappingProxyType(
    {
        "linear": linear.fit,
        "trees": trees.fit,
        "gaussian": gaussian.fit,
        "network": network.fit,
    }
)
