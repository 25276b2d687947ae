"""The ways to divide a run among branches, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ...supernet.space import Space
from ..config import RunConfig
from .coalitions import Coalitions
from .config import BranchesConfig
from .copies import Copies
from .router import Router

ROUTERS: Mapping[str, Callable[[RunConfig, BranchesConfig, Space], Router]] = MappingProxyType(
    {"coalitions": Coalitions, "architecture": Copies}
)


def router_of(config: RunConfig, branches: BranchesConfig, space: Space) -> Router:
    """What a configuration's [branches] table names."""
    return ROUTERS[branches.by](config, branches, space)
