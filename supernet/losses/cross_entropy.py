"""Cross-entropy with label smoothing (Szegedy et al. 2016).

With K classes, label y and smoothing s the target is t_k = (1 - s)·[k = y] + s / K, and the loss
-Σ_k t_k log q_k of the predicted probabilities q, mean over the batch.
"""

from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits_bc: Tensor, labels_b: Tensor, smoothing: float, shift_c: Tensor | None = None
) -> Tensor:
    """Mean over the batch, of logits moved by `shift_c` (see `logit_adjustment`)."""
    moved_bc = logits_bc if shift_c is None else logits_bc + shift_c
    return functional.cross_entropy(moved_bc, labels_b, label_smoothing=smoothing)
