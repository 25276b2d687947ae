"""The proximal term of FedProx (Li et al. 2020): local weights stay near those that were received.

It adds μ/2·‖w - w_received‖² to the loss; its gradient is μ·(w - w_received), computed as such and
added to what the loss gave. All values that the device holds count, also those that a step's subnets
do not use.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def add_proximal(leaves: Mapping[str, Tensor], received: Mapping[str, Tensor], mu: float) -> None:
    """Add the term's gradient to each leaf's."""
    for name, leaf in leaves.items():
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        leaf.grad.add_(leaf, alpha=mu).sub_(received[name], alpha=mu)
