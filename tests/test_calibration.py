"""Calibration against known values and scikit-learn; temperature and prior against their formulas."""

import math

import numpy as np
import pytest
import torch
from fedofa.protos.calibration import (
    TEMPERATURES,
    Calibration,
    Labels,
    best_temperature,
    log_probabilities,
    nll_by_temperature,
    prior_shift,
)
from fedofa.protos.inference import Floats
from fedofa.specialize.adjust import Adjustment, adjusted
from fedofa.supernet.errors import ExportError, UsageError
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torch import nn


def drawn(examples: int, classes: int, seed: int, sharpness: float = 1.0) -> tuple[Floats, Labels]:
    """Logits, and labels drawn by the probabilities of these times `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(examples, classes)).astype(np.float32)
    p = np.exp(log_probabilities(logits * np.float32(sharpness)))
    labels = (p.cumsum(1) > rng.random((examples, 1))).argmax(1)
    return logits, labels.astype(np.int64)


def test_likelihood_and_brier_score_are_those_of_scikit_learn() -> None:
    logits, labels = drawn(500, 2, seed=0)
    found = Calibration.of(logits, labels)
    p = np.exp(log_probabilities(logits))
    assert found.nll == pytest.approx(log_loss(labels, p), rel=1e-9)
    # Of two classes both terms are the same; scikit-learn counts one.
    assert found.brier == pytest.approx(2 * brier_score_loss(labels, p[:, 1]), rel=1e-9)


def test_a_confidence_that_never_changes_gives_the_gap_to_the_accuracy() -> None:
    """0.9 in 1,000 answers of which 600 are right: ECE 0.3, error √(0.6 · 0.4 / 1000)."""
    logits = np.log(np.tile([0.9, 0.1], (1000, 1))).astype(np.float32)
    labels = np.int64([0] * 600 + [1] * 400)
    found = Calibration.of(logits, labels)
    assert found.ece == pytest.approx(0.3, abs=1e-6)
    assert found.ece_error == pytest.approx(math.sqrt(0.24 / 1000))
    assert found.ece_by_chance == pytest.approx(math.sqrt(2 / math.pi * 0.09 / 1000), rel=1e-4)
    assert found.nll == pytest.approx(-0.6 * math.log(0.9) - 0.4 * math.log(0.1), rel=1e-6)
    assert found.brier == pytest.approx(0.6 * 0.02 + 0.4 * 1.62, rel=1e-6)


def test_of_a_calibrated_network_the_error_is_what_chance_gives() -> None:
    """Also against drawing the labels anew: mean and spread over 200 draws."""
    rng = np.random.default_rng(1)
    logits, _ = drawn(2000, 5, seed=2)
    p = np.exp(log_probabilities(logits))
    eces, errors = [], []
    for _ in range(200):
        labels = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
        found = Calibration.of(logits, labels)
        eces.append(found.ece)
        errors.append(found.ece_error)
    assert np.mean(eces) == pytest.approx(found.ece_by_chance, rel=0.1)
    # Folded at 0 bin by bin, an ECE near chance varies less than its right answers do.
    assert 0.4 * np.mean(errors) < np.std(eces) < np.mean(errors)


@given(st.integers(1, 40), st.integers(1, 39), st.integers(0, 9))
def test_sums_of_parts_are_those_of_all_examples(examples: int, cut: int, seed: int) -> None:
    logits, labels = drawn(examples, 4, seed)
    whole = Calibration.of(logits, labels)
    if cut < examples:
        parts = Calibration.of(logits[:cut], labels[:cut]) + Calibration.of(
            logits[cut:], labels[cut:]
        )
        assert (parts.counts, parts.right) == (whole.counts, whole.right)
        for name in ("nll", "brier", "ece", "ece_by_chance"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": (0, 3)}, "bin 1 of 2 has 3 right answers"),
        ({"right": (0, -1)}, "bin 1 of 2 has -1 right"),
        ({"confidence": (0.0, 2.5)}, "confidences of 2.5 in all from 2"),
        ({"confidence": (0.0, 0.9)}, "confidences of 0.9 in all from 2"),
        ({"confidence": (0.0, math.nan)}, "confidences of nan"),
        ({"counts": (0,)}, "of the same bins"),
        ({"nll_sum": math.inf}, "inf and 0.5 are no sums"),
        ({"nll_sum": -1.0}, "-1.0 and 0.5 are no sums"),
        ({"brier_sum": 4.5}, "4.5 are no sums"),
    ],
)
def test_sums_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    right: dict[str, object] = {
        "counts": (0, 2), "right": (0, 1), "confidence": (0.0, 1.5),
        "nll_sum": 1.0, "brier_sum": 0.5,
    }  # fmt: skip
    assert Calibration(**right).examples == 2  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        Calibration(**{**right, **change})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="2 and 15 bins"):
        Calibration(**right) + Calibration.of(*drawn(3, 2, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_temperature_is_found_by_sums_over_devices(sharpness: float) -> None:
    """Labels follow the logits times `sharpness`: its inverse is the temperature."""
    parts = [drawn(3000, 6, seed, sharpness) for seed in range(3)]
    sums = np.sum([nll_by_temperature(*part, TEMPERATURES) for part in parts], axis=0)
    found = best_temperature(sums.tolist(), TEMPERATURES)
    assert found == pytest.approx(1 / sharpness, rel=0.1)
    logits, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    before, after = (Calibration.of(logits / np.float32(t), labels) for t in (1.0, found))
    assert after.nll <= before.nll
    assert after.nll == pytest.approx(min(sums) / len(labels), rel=1e-5)
    if sharpness != 1:
        assert after.ece < before.ece / 2


def test_a_temperature_needs_one_finite_sum_each() -> None:
    for nll in ([1.0], [1.0, math.nan]):
        with pytest.raises(UsageError, match="a finite log-likelihood for each temperature"):
            best_temperature(nll, [1.0, 2.0])


def test_the_shift_is_the_difference_of_the_log_shares_up_to_a_constant() -> None:
    shift = prior_shift([80, 15, 5], [0.2, 0.3, 0.5], smoothing=0)
    want = np.log([0.2 / 0.8, 0.3 / 0.15, 0.5 / 0.05])
    np.testing.assert_allclose(np.diff(shift), np.diff(want), rtol=1e-12)
    assert sum(shift) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(prior_shift([7, 7, 7]), 0, atol=1e-12)
    assert all(math.isfinite(each) for each in prior_shift([100, 0]))


def test_a_shift_to_equal_shares_raises_the_rare_classes_recall() -> None:
    """Two normal classes, nine to one: the best boundary for equal shares is their middle."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-1, 1, 9000), rng.normal(1, 1, 1000)])
    labels = np.int64([0] * 9000 + [1] * 1000)
    # The exact logits of the posterior with shares of 0.9 and 0.1.
    logits = np.stack([-x + math.log(0.9), x + math.log(0.1)], 1).astype(np.float32)
    shifted = logits + np.float32(prior_shift([9000, 1000], smoothing=0))
    clear = np.abs(x) > 1e-4
    np.testing.assert_array_equal(shifted.argmax(1)[clear], (x > 0)[clear].astype(np.int64))

    def balanced(outputs: Floats) -> float:
        right = outputs.argmax(1) == labels
        return float((right[labels == 0].mean() + right[labels == 1].mean()) / 2)

    assert balanced(shifted) > balanced(logits) + 0.1


@pytest.mark.parametrize(
    ("counts", "target", "message"),
    [
        ([5], None, "two classes and one label"),
        ([0, 0], None, "two classes and one label"),
        ([-1, 4], None, "two classes and one label"),
        ([1, 1], [1.0], "1 shares; the network has 2 classes"),
        ([1, 1], [0.0, 1.0], "each class's share must be above 0"),
        ([1, 1], [math.nan, 1.0], "each class's share must be above 0"),
        ([1, 1], [0.5, 0.6], "must add up to 1, these to 1.1"),
    ],
)
def test_shares_that_cannot_be_are_refused(
    counts: list[int], target: list[float] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prior_shift(counts, target)


def net(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias)).eval()


@pytest.mark.parametrize("bias", [True, False])
@given(st.floats(0.1, 20), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_folded_adjustment_gives_the_adjusted_logits(
    bias: bool, temperature: float, shift: list[float]
) -> None:
    module, adjustment = net(bias), Adjustment(temperature, tuple(shift))
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, found = module(x), adjusted(module, x[:1], adjustment)(x)
        want = logits / temperature + torch.tensor(shift)
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(adjustment.applied(logits), want)
        scaled = adjusted(module, x[:1], Adjustment(temperature))(x)
        assert torch.equal(scaled.argmax(1), logits.argmax(1))
        assert torch.equal(module(x), logits)  # the given network stays as it is


def test_no_adjustment_leaves_the_network_untouched() -> None:
    module = net()
    assert adjusted(module, torch.zeros(1, 5), Adjustment()) is module
    assert not Adjustment()
    assert Adjustment(2.0)
    assert Adjustment(1.0, (0.0, 1.0))


class TwiceRead(nn.Module):
    """Its last layer's output is not its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y * y


def test_an_adjustment_that_cannot_be_folded_is_refused() -> None:
    x = torch.zeros(1, 5)
    with pytest.raises(ExportError, match="does not give the logits"):
        adjusted(TwiceRead(), x, Adjustment(2.0))
    with pytest.raises(ExportError, match="no linear layer"):
        adjusted(nn.ReLU(), x, Adjustment(2.0))
    with pytest.raises(ExportError, match="2 shares; the network's last layer has 3 outputs"):
        adjusted(net(), x, Adjustment(1.0, (0.1, -0.1)))
    for wrong in ({"temperature": 0.0}, {"temperature": math.nan}, {"shift": (math.inf,)}):
        with pytest.raises(UsageError, match="a temperature above 0 and finite shifts"):
            Adjustment(**wrong)  # type: ignore[arg-type]
