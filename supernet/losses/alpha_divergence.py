"""Adaptive α-divergence for in-place distillation (AlphaNet, Wang et al. 2021).

With the teacher's probabilities p (no gradient flows into it) and the student's q, per example

    D_α(p ‖ q) = (Σ_i q_i (p_i / q_i)^α - 1) / (α (α - 1)),

KL(p ‖ q) where α = 1 and KL(q ‖ p) where α = 0. A negative α punishes a student that is surer than
its teacher, a positive one a student that is less sure. Of D at α_min and at α_max, each example
takes the larger value. The gradient is that of -Σ_i q̄_i ρ_i log q_i with q̄ and ρ taken as constants,

    ρ = (p / q)^α / α   (p / q where α = 1, log(p / q) where α = 0),

where (p / q)^α is cut to at most β in value and gradient: without that a single wrong and sure
prediction has a gradient of any size. Where α is 0 or 1 nothing needs to be cut.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def adaptive_divergence(
    student_bc: Tensor, teacher_bc: Tensor, alpha_min: float, alpha_max: float, clip: float
) -> Tensor:
    """Mean over the batch of the larger of D at α_min and α_max; the gradient as stated above."""
    log_q_bc = functional.log_softmax(student_bc, dim=1)
    log_p_bc = functional.log_softmax(teacher_bc.detach(), dim=1)
    low_b = divergence(log_q_bc, log_p_bc, alpha_min, clip)
    high_b = divergence(log_q_bc, log_p_bc, alpha_max, clip)
    return torch.where(low_b > high_b, low_b, high_b).mean()


def divergence(log_q_bc: Tensor, log_p_bc: Tensor, alpha: float, clip: float) -> Tensor:
    """D_α of each example, (B,), from log-probabilities; (p / q)^α at most `clip`."""
    log_ratio_bc = log_p_bc - log_q_bc.detach()
    q_bc = log_q_bc.detach().exp()
    if alpha == 0:
        value_b = -(q_bc * log_ratio_bc).sum(1)
        pull_bc = q_bc * log_ratio_bc
    elif alpha == 1:
        pull_bc = log_p_bc.exp()
        value_b = (pull_bc * log_ratio_bc).sum(1)
    else:
        # Cut before the exponential: it may lie beyond what a float holds.
        power_bc = (alpha * log_ratio_bc).clamp(max=math.log(clip)).exp()
        value_b = ((q_bc * power_bc).sum(1) - 1) / (alpha * (alpha - 1))
        pull_bc = q_bc * power_bc / alpha
    surrogate_b = -(pull_bc * log_q_bc).sum(1)
    return surrogate_b + (value_b - surrogate_b).detach()
