"""What local training minimizes, against what it is meant to do."""

import numpy as np
import pytest
import torch
from fedofa.client.training import LocalTask, train
from fedofa.protos.messages import Recipe
from fedofa.supernet.axes import regions, take
from fedofa.supernet.losses import cross_entropy, logit_shift
from fedofa.supernet.weights import initial
from strategies import DIGITS

SKEWED = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)


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
    def gradient(strength: float) -> float:
        bias = torch.zeros(3, requires_grad=True)
        shift = logit_shift(SKEWED, 3, strength)
        cross_entropy(bias.expand(100, 3), SKEWED, 0.0, shift).backward()  # type: ignore[no-untyped-call]
        assert bias.grad is not None
        return float(bias.grad.abs().max())

    assert gradient(0.0) == pytest.approx(0.6 - 1 / 3, abs=1e-6)
    assert gradient(1.0) < 0.01


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
        recipe = Recipe(steps=8, distill=False, logit_adjustment=strength)
        train(LocalTask(DIGITS, arch, recipe, 0.1, (0, 1, "d")), values, x, y)
        return abs(values["head.classifier.bias"][9].item() - before)

    assert moved(1.0) < 0.2 * moved(0.0)
