"""What local training minimizes."""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits_bc: Tensor, labels_b: Tensor, smoothing: float, shift_c: Tensor | None = None
) -> Tensor:
    """Cross-entropy with label smoothing, mean over the batch, of logits moved by `shift_c`."""
    moved_bc = logits_bc if shift_c is None else logits_bc + shift_c
    return functional.cross_entropy(moved_bc, labels_b, label_smoothing=smoothing)


def logit_shift(labels_n: Tensor, classes: int, strength: float) -> Tensor | None:
    """τ·log π of a device's labels, (classes,), to be added to its logits; None where τ = 0.

    Logit adjustment (Menon et al. 2021) with the device's own label frequencies, as calibration of
    local training (FedLC, Zhang et al. 2022): logits learn what tells classes apart and not how
    frequent they are on this device, and a class that it lacks is hardly pushed down. Deviation:
    half an example is counted in each class, so that a missing one has a finite logarithm.
    """
    if strength == 0:
        return None
    counts_c = torch.bincount(labels_n, minlength=classes).float() + 0.5
    return strength * torch.log(counts_c / counts_c.sum())


def distillation(student_bc: Tensor, teacher_bc: Tensor) -> Tensor:
    """KL(teacher ‖ student), mean over the batch; no gradient flows into the teacher.

    In-place distillation (Yu & Huang 2019): the teacher is the largest subnet of the same step.
    """
    target = functional.log_softmax(teacher_bc.detach(), dim=1)
    return functional.kl_div(
        functional.log_softmax(student_bc, dim=1), target, log_target=True, reduction="batchmean"
    )


def accuracy_count(logits_bc: Tensor, labels_b: Tensor) -> int:
    """How many of the batch are classified rightly."""
    return int((torch.argmax(logits_bc, dim=1) == labels_b).sum())
