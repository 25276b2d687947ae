"""What local training minimizes, against formulas written down once more."""

import math

import numpy as np
import pytest
import torch
from fedofa.client.training import LocalTask, train
from fedofa.protos.recipe import Recipe
from fedofa.supernet.axes import regions, take
from fedofa.supernet.losses.accuracy import right_ones
from fedofa.supernet.losses.alpha_divergence import adaptive_divergence, divergence
from fedofa.supernet.losses.cross_entropy import cross_entropy
from fedofa.supernet.losses.distillation import distillation
from fedofa.supernet.losses.logit_adjustment import logit_shift
from fedofa.supernet.losses.proximal import add_proximal
from fedofa.supernet.losses.surgery import project
from fedofa.supernet.weights import initial
from hypothesis import given
from hypothesis import strategies as st
from strategies import DIGITS
from torch import Tensor

SKEWED = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)


def logits(seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(6, 5, generator=generator, dtype=torch.float64)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_cross_entropy_is_its_formula() -> None:
    student, labels, smoothing = logits(0), torch.tensor([0, 1, 2, 3, 4, 0]), 0.1
    target = np.full((6, 5), smoothing / 5)
    target[range(6), labels] += 1 - smoothing
    q = np.exp(student.numpy()) / np.exp(student.numpy()).sum(1, keepdims=True)
    expected = -(target * np.log(q)).sum(1).mean()
    assert float(cross_entropy(student, labels, smoothing)) == pytest.approx(expected)


def test_equal_frequencies_change_nothing() -> None:
    labels = torch.arange(4).repeat(5)
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    shift = logit_shift(labels, 4, 1.0)
    torch.testing.assert_close(
        cross_entropy(logits, labels, 0.0, shift), cross_entropy(logits, labels, 0.0)
    )


def test_no_strength_is_no_shift() -> None:
    assert logit_shift(SKEWED, 3, 0.0) is None


def test_frequencies_alone_teach_an_adjusted_model_nothing() -> None:
    def pull(strength: float) -> float:
        bias = torch.zeros(3, requires_grad=True)
        shift = logit_shift(SKEWED, 3, strength)
        loss = cross_entropy(bias.expand(100, 3), SKEWED, 0.0, shift)
        return float(gradient(loss, bias).abs().max())

    assert pull(0.0) == pytest.approx(0.6 - 1 / 3, abs=1e-6)
    assert pull(1.0) < 0.01


def test_a_missing_class_is_shifted_far_but_finitely() -> None:
    shift = logit_shift(SKEWED, 4, 1.0)
    assert shift is not None
    assert shift.isfinite().all()
    assert shift[3] == pytest.approx(np.log(0.5 / 102))


def test_training_with_adjustment_hardly_pushes_down_a_class_that_the_device_lacks() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 1, 8, 8)).astype(np.float32)
    y = rng.integers(0, 9, 64)  # nobody has a 9 here
    arch = DIGITS.smallest()

    def moved(strength: float) -> float:
        values = {k: v.clone() for k, v in take(initial(DIGITS, 0), regions(DIGITS, arch)).items()}
        before = values["head.classifier.bias"][9].item()
        recipe = Recipe(steps=8, students="none", logit_adjustment=strength)
        train(LocalTask(DIGITS, arch, recipe, 0.1, (0, 1, "d")), values, x, y)
        return abs(values["head.classifier.bias"][9].item() - before)

    assert moved(1.0) < 0.2 * moved(0.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_distillation_has_the_gradient_of_a_tempered_cross_entropy_on_soft_labels(
    temperature: float,
) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = distillation(student, teacher, temperature)
    p = (teacher.detach() / temperature).softmax(1)
    soft = -(p * (student / temperature).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(
        gradient(loss, student), gradient(temperature**2 * soft, student), rtol=1e-10, atol=1e-12
    )
    entropy = -(p * p.log()).sum(1).mean()
    assert loss.item() == pytest.approx(temperature**2 * (soft.item() - entropy.item()))


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = distillation(student, teacher) + adaptive_divergence(student, teacher, -1.0, 1.0, 5.0)
    assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None


def closed_form(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """D_α of each example, differentiable as it stands."""
    p, q = teacher.softmax(1), student.softmax(1)
    if alpha == 1:
        return (p * (p / q).log()).sum(1)
    if alpha == 0:
        return (q * (q / p).log()).sum(1)
    return ((q * (p / q) ** alpha).sum(1) - 1) / (alpha * (alpha - 1))


def uncut(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    return divergence(student.log_softmax(1), teacher.log_softmax(1), alpha, math.inf)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0, 0.0, 1.0])
def test_the_gradient_of_the_alpha_divergence_is_that_of_its_closed_form(alpha: float) -> None:
    for seed in range(5):
        student, teacher = logits(seed).requires_grad_(), logits(seed + 50)
        mine, theirs = uncut(student, teacher, alpha), closed_form(student, teacher, alpha)
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            gradient(mine.mean(), student), gradient(theirs.mean(), student), rtol=0, atol=1e-12
        )


def test_alpha_1_is_distillation_by_kl_however_low_the_cut() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    kl = distillation(student, teacher)
    cut = divergence(student.log_softmax(1), teacher.log_softmax(1), 1.0, 0.1).mean()
    torch.testing.assert_close(cut, kl)
    torch.testing.assert_close(gradient(cut, student), gradient(kl, student))


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (-2.0, 3.0), (0.5, 2.0), (0.0, 1.0)])
@pytest.mark.parametrize("sure", [50.0, 5000.0])
def test_gradients_are_finite_for_predictions_as_sure_and_wrong_as_can_be(
    alphas: tuple[float, float], sure: float
) -> None:
    student = torch.tensor([[sure, -sure, 0.0], [-sure, sure, sure]], requires_grad=True)
    loss = adaptive_divergence(student, student.detach().flip(1), *alphas, 5.0)
    assert loss.isfinite()
    found = gradient(loss, student)
    assert found.isfinite().all()
    if 0.0 not in alphas:  # KL(q ‖ p) is not cut: its gradient grows with the logits, no faster
        assert float(found.abs().max()) <= 5.0


def test_each_example_takes_the_larger_divergence() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    low, high = (uncut(student, teacher, alpha) for alpha in (-1.0, 1.0))
    assert bool((low > high).any())
    assert bool((low < high).any())
    found = adaptive_divergence(student, teacher, -1.0, 1.0, math.inf)
    larger = torch.maximum(low, high).mean()
    torch.testing.assert_close(found, larger)
    torch.testing.assert_close(gradient(found, student), gradient(larger, student))


def test_powers_of_the_ratio_are_cut_in_value_and_gradient() -> None:
    student, teacher, alpha, most = logits(0).requires_grad_(), logits(1), -1.0, 1.5
    p, q = teacher.softmax(1).numpy(), student.detach().softmax(1).numpy()
    power = np.minimum((p / q) ** alpha, most)
    assert (power == most).any()
    found = divergence(student.log_softmax(1), teacher.log_softmax(1), alpha, most)
    expected = ((q * power).sum(1) - 1) / (alpha * (alpha - 1))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10)
    pull = q * power / alpha  # of -Σ pull · log q, through the softmax
    np.testing.assert_allclose(
        gradient(found.sum(), student).numpy(), q * pull.sum(1, keepdims=True) - pull, rtol=1e-9
    )


def gradients(seed: int, names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 4, generator=generator) for name in names}


def product(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return sum(float((first[n].double() * second[n].double()).sum()) for n in first if n in second)


@given(st.integers(0, 2**32 - 1), st.floats(-4, 4))
def test_after_surgery_the_teacher_does_the_target_no_harm(seed: int, lean: float) -> None:
    target, teacher = gradients(seed, "ab"), gradients(seed + 1, "abc")
    for name in target:  # from opposite to equal directions
        teacher[name] += lean * target[name]
    before = {name: value.clone() for name, value in teacher.items()}
    found = project(teacher, target)
    assert found == pytest.approx(product(before, target), rel=1e-5, abs=1e-4)
    size = math.sqrt(product(target, target) * product(before, before))
    if found >= 0:
        assert all(torch.equal(teacher[name], before[name]) for name in before)
    else:
        assert abs(product(teacher, target)) < 1e-6 * size
        removed = {name: before[name] - teacher[name] for name in target}
        angle = product(removed, target) / math.sqrt(
            product(removed, removed) * product(target, target)
        )
        assert angle == pytest.approx(-1, abs=1e-4)
    assert torch.equal(teacher["c"], before["c"])


def test_the_proximal_term_has_its_gradient_wherever_a_weight_has_moved() -> None:
    received, mu = gradients(0, "ab"), 0.3
    leaves = {name: (w + 1).requires_grad_() for name, w in received.items()}
    leaves["a"].grad = torch.full((3, 4), 2.0)  # b is in no subnet of this step
    term = sum((leaves[n] - received[n]).square().sum() for n in leaves) * mu / 2
    assert isinstance(term, Tensor)
    expected = dict(zip(leaves, torch.autograd.grad(term, list(leaves.values())), strict=True))
    add_proximal(leaves, received, mu)
    torch.testing.assert_close(leaves["a"].grad, expected["a"] + 2)
    torch.testing.assert_close(leaves["b"].grad, expected["b"])


def test_right_answers_are_counted() -> None:
    found = right_ones(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    assert found.tolist() == [True, False]
