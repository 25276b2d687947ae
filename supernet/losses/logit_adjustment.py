"""Logit adjustment for uneven labels (Menon et al. 2021; FedLC, Zhang et al. 2022, adds another margin).

Training minimizes the cross-entropy of logits + τ·log π, with π the frequencies of the device's own
labels: logits learn what tells classes apart and not how frequent they are on this device, and a
class that it lacks is hardly pushed down. Predictions use the logits alone.

Deviation: half an example is counted in each class, so that a missing one has a finite logarithm.
"""

import torch
from torch import Tensor


def logit_shift(labels_n: Tensor, classes: int, strength: float) -> Tensor | None:
    """τ·log π, (classes,), to be added to logits; None where the strength τ is 0."""
    if strength == 0:
        return None
    counts_c = torch.bincount(labels_n, minlength=classes).float() + 0.5
    return strength * torch.log(counts_c / counts_c.sum())
