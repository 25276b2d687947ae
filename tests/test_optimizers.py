"""The devices' optimizers do what torch's own do, and cost no compiler."""

import subprocess
import sys

import pytest
import torch
from fedofa.client.optimizers import local_optimizer
from fedofa.protos.recipe import Recipe


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_local_optimizer_steps_exactly_as_torchs_own(name: str) -> None:
    recipe = Recipe(optimizer=name, momentum=0.9, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)]
    mine = [value.clone().requires_grad_() for value in start]
    theirs = [value.clone().requires_grad_() for value in start]
    ours = local_optimizer(recipe, mine, 0.1)
    if name == "sgd":
        reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01)
    else:
        reference = torch.optim.Adam(theirs, lr=0.1, weight_decay=0.01)
    for step in range(4):
        for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            # A leaf that no subnet of a step touched has no gradient and must not move.
            if place == 1 and step == 2:
                a.grad, b.grad = None, None
                continue
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        ours.step()
        reference.step()
        assert all(leaf.grad is None for leaf in mine)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)


def test_training_on_a_device_does_not_import_the_compiler() -> None:
    code = """
import sys, torch
from fedofa.client.optimizers import local_optimizer
from fedofa.protos.recipe import Recipe
leaf = torch.zeros(2, requires_grad=True)
leaf.grad = torch.ones(2)
local_optimizer(Recipe(), [leaf], 0.1).step()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
