"""In-place distillation by the Kullback-Leibler divergence, with a temperature.

The teacher is the largest subnet of the same step (Yu & Huang 2019; BigNAS, Yu et al. 2020), its
probabilities p taken as they are: no gradient flows into it. With logits divided by a temperature T
(Hinton et al. 2015) the loss is T²·KL(p ‖ q), mean over the batch.

T²·CE(p, q), the soft-label cross-entropy of DεpS (Annavajjala et al. 2024) and of structural pruning
by NAS (Klein et al. 2024), is this plus T² times the teacher's entropy: another value, the same
gradient.
"""

from torch import Tensor
from torch.nn import functional


def distillation(student_bc: Tensor, teacher_bc: Tensor, temperature: float = 1.0) -> Tensor:
    """T²·KL(teacher ‖ student) of logits, mean over the batch."""
    teacher_bc = teacher_bc.detach()
    if temperature != 1:
        student_bc, teacher_bc = student_bc / temperature, teacher_bc / temperature
    loss = functional.kl_div(
        functional.log_softmax(student_bc, dim=1),
        functional.log_softmax(teacher_bc, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return temperature**2 * loss if temperature != 1 else loss
