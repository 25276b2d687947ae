"""The optimizer of local training that a recipe names."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from ..protos.recipe import Recipe
from ..supernet.optimizers import Adam, Sgd


class Optimizer(Protocol):
    """Changes leaves by their gradients."""

    def step(self) -> None:
        """One update of every leaf that has a gradient; then the gradients are gone."""


def local_optimizer(recipe: Recipe, leaves: Iterable[Tensor], lr: float) -> Optimizer:
    """SGD with the recipe's momentum and weight decay, or Adam with its weight decay."""
    if recipe.optimizer == "adam":
        return Adam(list(leaves), lr, recipe.weight_decay)
    return Sgd(list(leaves), lr, recipe.momentum, recipe.weight_decay)
