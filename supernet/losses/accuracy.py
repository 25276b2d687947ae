"""What no step can minimize, and everyone wants to know: right answers."""

import torch
from torch import Tensor


def right_ones(logits_bc: Tensor, labels_b: Tensor) -> Tensor:
    """Which of the batch are classified rightly: (B,), booleans."""
    return torch.argmax(logits_bc, dim=1) == labels_b
