"""The search methods by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..predictors.contract import Fit
from .bandit import Bandit
from .contract import Method
from .evolution import Evolution
from .linas import Linas
from .mutation import Mutation
from .policy_gradient import PolicyGradient
from .predicted import Predicted
from .preselect import Preselect
from .random_search import RandomSearch
from .soft_sampler import SoftSampler

METHODS: Mapping[str, Callable[[Fit], Method]] = MappingProxyType(
    {
        "random": lambda _: RandomSearch(),
        "mutation": lambda _: Mutation(),
        "evolution": lambda _: Evolution(),
        "predicted": lambda fit: Predicted(fit),
        "linas": lambda fit: Linas(fit),
        "policy": lambda _: PolicyGradient(),
        "bandit": lambda _: Bandit(),
        "soft": lambda fit: SoftSampler(fit),
        "preselect": lambda _: Preselect(),
    }
)
"""Name → how to make it; those that predict are given the way to fit a predictor."""
