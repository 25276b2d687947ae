"""What local training minimizes."""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits_bc: Tensor, labels_b: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with label smoothing, mean over the batch."""
    return functional.cross_entropy(logits_bc, labels_b, label_smoothing=smoothing)


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
