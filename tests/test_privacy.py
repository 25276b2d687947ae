"""Differential privacy: clipping, noise, the merge, what it spends, and configurations refused."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.privacy.local_noise import noised
from fedofa.protos.noise import (
    GaussianNoise,
    clipped,
    fixed_point_range,
    longest,
    norm_of,
    share_std,
)
from fedofa.server.aggregation.placement import Frame
from fedofa.server.aggregation.update import Merged, Update
from fedofa.server.privacy.accountant import LEAST_NOISE, Accountant, noise_for
from fedofa.server.privacy.adaptive_bound import AdaptiveBound, sum_noise
from fedofa.server.privacy.config import AdaptiveConfig, PrivacyConfig, SecureConfig
from fedofa.server.privacy.private_mean import PrivateMean, Release, cover, released
from fedofa.supernet.axes import Regions
from fedofa.supernet.errors import UsageError
from fedofa.supernet.weights import shapes_of, size_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

SHAPES = {"w": (6, 4), "b": (6,)}
SILENT = Release(0.0)


def seeded(seed: int = 0) -> GaussianNoise:
    return GaussianNoise(np.random.default_rng(seed).bytes)


def rows(*taken: int) -> Regions:
    """The region of a subnet that takes these output channels."""
    first = tuple(taken)
    return {"w": (first, slice(0, 4)), "b": (first,)}


ALL, HALF, ONE = rows(0, 1, 2, 3, 4, 5), rows(0, 1, 2), rows(0)


def update(where: Regions, delta: Any, **changes: Any) -> Update:
    flat = np.broadcast_to(np.float32(delta), size_of(shapes_of(where))).astype(np.float32)
    return Update("phone", flat, where, **{"weight": 1.0, **changes})


def merge(
    updates: Sequence[Update],
    assigned: Sequence[Regions],
    bound: float = 1e9,
    release: Release = SILENT,
    seed: int = 0,
) -> Merged:
    fold = PrivateMean(SHAPES, assigned, bound, release, seeded(seed))
    for one in updates:
        fold.add(one)
    return fold.result()


# Clipping and noise


@given(
    arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(1e-3, 1e3),
)
def test_no_clipped_change_is_longer_than_the_bound(delta: Any, bound: float) -> None:
    found = clipped(delta, bound)
    assert found.dtype == np.float32
    assert norm_of(found) <= bound
    if norm_of(delta) <= bound:
        assert np.array_equal(found, delta)
    else:
        assert norm_of(found) == pytest.approx(bound, rel=1e-6)
        assert np.allclose(found * norm_of(delta), delta * bound, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_cannot_be_clipped(bad: float) -> None:
    with pytest.raises(ValueError, match="no finite numbers"):
        clipped(np.array([1.0, bad], np.float32), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_is_a_number_above_zero(bound: float) -> None:
    with pytest.raises(ValueError, match="bound = "):
        clipped(np.ones(2, np.float32), bound)


def test_noise_is_normal_with_the_standard_deviation_asked_for() -> None:
    draw = seeded().draw(200_001, 3.0)
    assert draw.shape == (200_001,)
    assert abs(draw.mean()) < 3.0 * 4 / math.sqrt(len(draw))
    assert draw.std() == pytest.approx(3.0, rel=0.01)
    for z in (-2.0, -1.0, 0.0, 0.5, 3.0):
        expected = 0.5 * math.erfc(-z / math.sqrt(2))
        assert (draw < 3.0 * z).mean() == pytest.approx(expected, abs=0.005)
    # Box and Muller's two halves are independent of each other.
    assert abs(np.corrcoef(draw[:100_000], draw[100_001:])[0, 1]) < 0.015


def test_noise_of_production_is_not_the_same_twice() -> None:
    assert not np.array_equal(GaussianNoise().draw(8, 1.0), GaussianNoise().draw(8, 1.0))
    assert np.array_equal(seeded(3).draw(7, 1.0), seeded(3).draw(7, 1.0))


def test_the_shares_of_the_least_covered_value_make_up_the_whole_noise() -> None:
    """Values that more devices cover have more noise, not less."""
    bound, z, sharers, size = 2.0, 1.5, 4, 60_000
    share = share_std(bound, z, sharers)
    for devices in (4, 9):
        noise = seeded(devices)
        total = sum(
            noised(np.zeros(size, np.float32), bound, share, noise).astype(float)
            for _ in range(devices)
        )
        expected = z * bound * math.sqrt(devices / sharers)
        assert np.std(total) == pytest.approx(expected, rel=0.02)
        assert expected >= z * bound


def test_a_share_goes_onto_the_clipped_change() -> None:
    found = noised(np.full(10_000, 5.0, np.float32), 1.0, 1e-6, seeded())
    assert norm_of(found) == pytest.approx(1.0, rel=1e-3)
    assert np.array_equal(noised(found, 0.5, 0.0, seeded()), clipped(found, 0.5))


def test_what_a_device_sends_lies_on_a_grid_that_is_coarser_than_floats() -> None:
    found = noised(np.full(10_000, 1 / 3, np.float32), 100.0, 1.0, seeded())
    assert (found.astype(float) * 2**20 % 1 == 0).all()


def test_no_noised_change_is_longer_than_what_the_server_accepts() -> None:
    for size in (1, 50, 10_000):
        found = noised(np.full(size, 5.0, np.float32), 2.0, 1.5, seeded())
        assert norm_of(found) < longest(2.0, 1.5, size)


def test_the_range_for_secure_sums_holds_every_noised_value() -> None:
    std = share_std(1.0, 2.0, 3)
    found = noised(np.full(100_000, 1.0, np.float32), 1.0, std, seeded())
    assert np.abs(found).max() < fixed_point_range(1.0, std)


# The merge


def test_each_value_is_divided_by_how_many_were_assigned_to_cover_it() -> None:
    found = merge([update(ALL, 6.0), update(HALF, 3.0), update(ONE, 3.0)], [ALL, HALF, ONE])
    assert found.delta["b"].tolist() == [4.0, 4.5, 4.5, 6.0, 6.0, 6.0]
    assert found.delta["w"][:, 1].tolist() == [4.0, 4.5, 4.5, 6.0, 6.0, 6.0]
    assert found.trained == {"w": True, "b": True}


def test_a_client_that_drops_out_shortens_the_step_and_changes_no_denominator() -> None:
    found = merge([update(ALL, 6.0)], [ALL, HALF, ONE])
    assert found.delta["b"].tolist() == [2.0, 3.0, 3.0, 6.0, 6.0, 6.0]
    nobody = merge([], [HALF])
    assert nobody.delta["b"].tolist() == [0.0] * 6
    assert isinstance(nobody.trained["b"], torch.Tensor)
    assert nobody.trained["b"].tolist() == [True] * 3 + [False] * 3


def test_drawn_clients_are_divided_by_how_many_are_expected() -> None:
    found = merge([update(ALL, 6.0)], [ALL] * 4, release=Release(0.0, rate=0.25))
    assert found.delta["b"].tolist() == [6.0] * 6


def test_the_number_of_examples_has_no_influence() -> None:
    plain = merge([update(ALL, 1.0), update(ALL, 5.0)], [ALL, ALL])
    heavy = merge([update(ALL, 1.0, weight=1e6), update(ALL, 5.0)], [ALL, ALL])
    assert torch.equal(plain.delta["w"], heavy.delta["w"])


@given(st.data())
def test_one_client_moves_the_sum_by_at_most_the_bound(data: st.DataObject) -> None:
    some = st.sets(st.integers(0, 5), min_size=1).map(lambda taken: rows(*sorted(taken)))
    regions = data.draw(st.lists(some, min_size=1, max_size=6))
    bound = data.draw(st.floats(0.01, 10))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    updates = [
        Update("x", rng.normal(0, 3, size_of(shapes_of(where))).astype(np.float32), where, 1.0)
        for where in regions
    ]
    counts = Frame(SHAPES).tensors(cover(Frame(SHAPES), regions))
    with_all, without = merge(updates, regions, bound), merge(updates[1:], regions, bound)
    moved = [
        ((with_all.delta[name] - without.delta[name]).double() * counts[name]).norm() ** 2
        for name in with_all.delta
    ]
    assert math.sqrt(float(sum(moved))) <= bound * (1 + 1e-5)


def test_the_noise_of_a_value_falls_with_how_many_cover_it() -> None:
    assigned = [ALL, HALF, HALF, ONE]
    release = Release(noise_std=2.0)
    found = torch.stack([merge([], assigned, 1.0, release, s).delta["w"] for s in range(2000)])
    stds = found.std(dim=0).mean(dim=1)
    assert stds.tolist() == pytest.approx([0.5, 2 / 3, 2 / 3, 2.0, 2.0, 2.0], rel=0.03)
    assert float(found.mean().abs()) < 0.05


def test_a_value_that_nobody_was_assigned_to_gets_no_noise() -> None:
    found = merge([update(ONE, 1.0)], [ONE], release=Release(5.0))
    assert found.delta["b"][1:].tolist() == [0.0] * 5
    assert found.delta["b"][0] != 1.0


def test_a_value_of_too_few_keeps_its_bytes() -> None:
    found = merge([update(ALL, 1.0), update(HALF, 1.0)], [ALL, HALF], release=Release(5.0, 1.0, 2))
    assert isinstance(found.trained["b"], torch.Tensor)
    assert found.trained["b"].tolist() == [True] * 3 + [False] * 3
    assert found.delta["b"][3:].tolist() == [0.0] * 3
    none = merge([update(ONE, 1.0)], [ONE], release=Release(5.0, 1.0, 2))
    assert none.delta == {}
    assert none.trained == {"w": False, "b": False}


def test_what_is_published_lies_on_a_grid_that_is_coarser_than_floats() -> None:
    """Low bits of float noise tell what it hides (Mironov 2012)."""
    frame = Frame(SHAPES)
    total = torch.full((frame.size,), 1 / 3, dtype=torch.float64)
    found = released(frame, total, torch.ones(frame.size), Release(1.0), seeded())
    assert (found.delta["w"] * 2**20 % 1 == 0).all()
    assert (found.delta["w"] != 0).all()


def test_updates_within_the_bound_are_counted_for_the_next_one() -> None:
    fold = PrivateMean(SHAPES, [ONE] * 3, 1.0, SILENT, seeded())
    for size in (0.1, 0.4, 3.0):
        fold.add(update(ONE, size))
    assert fold.below == 2


def test_an_update_that_others_scaled_is_refused() -> None:
    with pytest.raises(ValueError, match="fleet's bound"):
        merge([update(ALL, 1.0, scale=0.5)], [ALL])


# A bound that follows a quantile


def test_the_bound_finds_the_quantile() -> None:
    norms = np.random.default_rng(0).lognormal(0.0, 0.5, 200)
    bound, noise = AdaptiveBound(50.0, quantile=0.7, count_noise=10.0), seeded()
    for _ in range(120):
        bound = bound.after(int((norms <= bound.value).sum()), len(norms), len(norms), noise)
    assert (norms <= bound.value).mean() == pytest.approx(0.7, abs=0.07)


def test_wild_noise_moves_the_bound_by_no_more_than_a_share_can() -> None:
    wild = AdaptiveBound(1.0, quantile=0.5, step=0.2, count_noise=1e9)
    assert {round(wild.after(5, 10, 10, seeded(s)).value, 6) for s in range(20)} == {
        round(math.exp(-0.1), 6),
        round(math.exp(0.1), 6),
    }


def test_clients_that_do_not_report_leave_the_share_where_it_is() -> None:
    quiet = AdaptiveBound(1.0, quantile=0.5, count_noise=1e-9)
    assert quiet.after(0, 0, 10, seeded()).value == pytest.approx(1.0)


def test_sum_and_count_together_spend_what_the_multiplier_says() -> None:
    z, count = 1.1, 8.0
    split = sum_noise(z, count)
    assert split > z
    # Two Gaussian mechanisms: squared mean-to-noise ratios add up.
    assert (1 / split) ** 2 + (1 / count) ** 2 == pytest.approx(1 / z**2)
    for too_little in (0.6, 1.1):
        with pytest.raises(UsageError, match=r"privacy\.adaptive\.count_noise = .*1\.1"):
            sum_noise(z, too_little)


def sum_and_count(updates: Sequence[Update], bound: float) -> tuple[np.ndarray, float]:
    """What one round noises: the clipped sum, and how far the count is from half of the replies.

    Both as they are published, with noise that does not show.
    """
    fold = PrivateMean(SHAPES, [ALL] * len(updates), bound, SILENT, seeded())
    for one in updates:
        fold.add(one)
    below, clients = fold.below, 10 * len(updates)
    quiet = AdaptiveBound(1.0, quantile=0.5, step=1.0, count_noise=1e-9)
    count = -math.log(quiet.after(below, len(updates), clients, seeded()).value) * clients
    mean = fold.result().delta
    values = np.concatenate([mean[name].numpy().reshape(-1) for name in SHAPES])
    return values.astype(np.float64) * len(updates), count


@given(
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=6),
    st.floats(0.5, 4.0),
    st.floats(1.05, 20.0),
)
def test_no_neighbour_is_told_by_more_than_the_multiplier_says(
    sizes: list[float], z: float, factor: float
) -> None:
    """Every neighbour of a round: one device with no change, which replies all the same.

    The noise of sum and count is normal and independent: what tells two runs apart is their
    distance in standard deviations, both together, and 1/z is what the accountant counts.
    """
    bound, count_noise = 2.0, z * factor
    everybody = [update(ALL, size) for size in (*sizes, 10.0)]
    total, count = sum_and_count(everybody, bound)
    sum_std = sum_noise(z, count_noise) * bound
    told = []
    for place in range(len(everybody)):
        others = [*everybody]
        others[place] = update(ALL, 0.0)
        other_total, other_count = sum_and_count(others, bound)
        apart = np.linalg.norm(total - other_total) / sum_std
        told.append(math.hypot(apart, (count - other_count) / count_noise))
    # The device whose update is cut is told by all that is accounted, and nobody by more.
    assert max(told) == pytest.approx(1 / z, rel=1e-4)


# The accountant


def exact_delta(mu: float, epsilon: float) -> float:
    """δ(ε) of a Gaussian mechanism of mean-to-noise ratio μ: Balle and Wang 2018, theorem 8."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    low, high = phi(mu / 2 - epsilon / mu), phi(-mu / 2 - epsilon / mu)
    return low - math.exp(epsilon) * high


def moments_epsilon(q: float, sigma: float, rounds: int, delta: float) -> float:
    """ε by the moments accountant (Abadi et al. 2016), by its binomial sum for whole orders."""

    def log_moment(order: int) -> float:
        terms = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + k * math.log(q) + (order - k) * math.log1p(-q) + k * (k - 1) / (2 * sigma**2)
            for k in range(order + 1)
        ]  # fmt: skip
        return float(np.logaddexp.reduce(terms))

    return min(
        (rounds * log_moment(order) + math.log(1 / delta)) / (order - 1) for order in range(2, 200)
    )


@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (5.0, 12), (0.7, 3), (20.0, 400)])
def test_full_participation_is_accounted_exactly(z: float, rounds: int) -> None:
    epsilon = Accountant(z, 1e-5).epsilon_after(rounds)
    assert exact_delta(math.sqrt(rounds) / z, epsilon) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("sigma", "epochs", "published"),
    [
        # Bu et al. 2020, "Deep Learning with Gaussian Differential Privacy", figure 4: MNIST in
        # batches of 256 of 60000, by the moments accountant.
        (1.3, 20, 1.34),
        (0.7, 70, 8.68),
    ],
)
def test_poisson_sampling_spends_less_than_the_published_bounds(
    sigma: float, epochs: int, published: float
) -> None:
    q, rounds = 256 / 60000, epochs * 60000 // 256
    # Theirs minimizes over broken orders too.
    assert moments_epsilon(q, sigma, rounds, 1e-5) == pytest.approx(published, rel=0.035)
    found = Accountant(sigma, 1e-5, q).epsilon_after(rounds)
    # The truth lies below the bound, and above the limit of infinitely many rounds (same paper).
    limit = q * math.sqrt(rounds * (math.exp(sigma**-2) - 1))
    assert exact_delta(limit, found) < 1e-5
    assert 0.7 * published < found < published


def test_poisson_sampling_spends_what_another_library_says() -> None:
    """Opacus tests its accountant (privacy random variables, error 0.01) with this figure."""
    assert Accountant(1.5, 1e-5, 0.04).epsilon_after(2249) == pytest.approx(6.7774, abs=0.012)


def test_no_round_spends_nothing_and_more_rounds_spend_more() -> None:
    for account in (Accountant(1.1, 1e-5), Accountant(1.1, 1e-5, 0.01)):
        spent = [account.epsilon_after(rounds) for rounds in (0, 1, 10, 100)]
        assert spent[0] == 0.0
        assert spent == sorted(spent)
    assert Accountant(1.1, 1e-5, 0.01).epsilon_after(100) < Accountant(1.1, 1e-5).epsilon_after(1)


@pytest.mark.parametrize("account", [Accountant(5.0, 1e-5), Accountant(1.0, 1e-5, 0.05)])
def test_the_most_rounds_fit_and_one_more_does_not(account: Accountant) -> None:
    most = account.most_rounds(3.0)
    assert most > 1
    assert account.epsilon_after(most) <= 3.0 < account.epsilon_after(most + 1)
    assert account.most_rounds(1e-9) == 0


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_the_noise_for_a_budget_is_the_least_that_keeps_it(rate: float) -> None:
    noise = noise_for(2.0, 40, rate, 1e-5)
    assert Accountant(noise, 1e-5, rate).epsilon_after(40) <= 2.0
    assert Accountant(noise * 0.999, 1e-5, rate).epsilon_after(40) > 2.0


def test_a_budget_that_no_noise_keeps_is_refused_and_a_huge_one_still_gets_noise() -> None:
    with pytest.raises(ValueError, match="no noise"):
        noise_for(1e-7, 10**6, 1.0, 1e-9)
    assert noise_for(1e4, 1, 1.0, 1e-5) == LEAST_NOISE


# Configurations

GOOD: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-3, "clip": 0.5}


def test_a_run_gets_the_noise_that_its_rounds_need() -> None:
    config = PrivacyConfig(**GOOD)
    plan = config.plan(50)
    assert plan.epsilon <= 8.0
    assert Accountant(plan.accountant.noise_multiplier * 0.999, 1e-3).epsilon_after(50) > 8.0
    assert plan.server_std(0.5, "central") == pytest.approx(plan.sum_multiplier * 0.5)
    assert plan.value_range(0.5, "central") == 0.5


def test_devices_that_add_the_noise_leave_none_to_the_server() -> None:
    config = PrivacyConfig(**GOOD, mode="local")
    shared, alone = config.plan(10, SecureConfig(least_cover=4)), config.plan(10)
    assert (shared.sharers, alone.sharers) == (4, 1)
    assert shared.server_std(0.5, "local") == 0.0
    assert shared.value_range(0.5, "local") > 0.5


def test_the_quantile_is_paid_for_by_more_noise_on_the_sum() -> None:
    config = PrivacyConfig(**GOOD, adaptive=AdaptiveConfig(count_noise=5.0))
    plan = config.plan(20)
    assert plan.sum_multiplier > plan.accountant.noise_multiplier
    assert config.first_bound() == AdaptiveBound(0.5, 0.5, 0.2, 5.0)
    assert PrivacyConfig(**GOOD).first_bound() is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"delta": 0}, "delta"),
        ({"delta": 0.2}, "delta"),
        ({"clip": 0}, "clip"),
        ({"clip": None}, "clip"),
        ({"mode": "both"}, "mode"),
        ({"noise_multiplier": 0.01}, "noise_multiplier"),
        ({"rate": 0}, "rate"),
        ({"rate": 1.5}, "rate"),
        ({"least_cover": 0}, "least_cover"),
        ({"sigma": 1.0}, "sigma"),
        ({"adaptive": {}}, "adaptive.count_noise"),
        ({"adaptive": {"count_noise": 5.0, "quantile": 1.0}}, "adaptive.quantile"),
        ({"mode": "local", "rate": 0.5}, "privacy.rate = 0.5 with mode = local"),
        ({"mode": "local", "adaptive": {"count_noise": 5.0}}, "privacy.adaptive with mode = local"),
    ],
)
def test_a_configuration_that_promises_nothing_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError) as refusal:
        PrivacyConfig.model_validate({**GOOD, **changes})
    first = refusal.value.errors()[0]
    assert words in ".".join(map(str, first["loc"])) + first["msg"]


def test_rounds_that_would_exceed_the_budget_are_refused_with_what_would_do() -> None:
    config = PrivacyConfig(**GOOD, noise_multiplier=1.0)
    most = Accountant(1.0, 1e-3).most_rounds(8.0)
    config.plan(most)
    with pytest.raises(UsageError) as refusal:
        config.plan(most + 1)
    needed = noise_for(8.0, most + 1, 1.0, 1e-3)
    text = str(refusal.value)
    assert text.startswith(f"privacy.epsilon = 8.0: {most + 1} rounds")
    assert f"at most {most} rounds, or noise_multiplier = {needed:.4g}" in text


def test_a_budget_that_not_even_one_round_keeps_says_what_noise_would() -> None:
    with pytest.raises(UsageError, match=r"1 rounds .* delta = 0\.001; noise_multiplier = \d"):
        PrivacyConfig(**{**GOOD, "epsilon": 0.1}, noise_multiplier=1.0).plan(1)
    with pytest.raises(UsageError, match=r"privacy\.epsilon = 1e-07: no noise"):
        PrivacyConfig(epsilon=1e-7, delta=1e-9, clip=1.0).plan(10**6)


def test_a_delta_that_allows_to_publish_somebody_is_refused() -> None:
    PrivacyConfig(**GOOD).check_clients(999)
    with pytest.raises(UsageError, match=r"privacy\.delta = 0\.001 with 1000 clients"):
        PrivacyConfig(**GOOD).check_clients(1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": 0.5}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"least_cover": 1}, "least_cover"),
        ({"most_cells": 0}, "most_cells"),
        ({"devices": 3}, "devices"),
    ],
)
def test_secure_sums_that_hide_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SecureConfig.model_validate(changes)


@pytest.mark.parametrize(("devices", "threshold"), [(3, 2), (4, 3), (20, 14), (100, 67)])
def test_the_threshold_is_a_share_of_the_round(devices: int, threshold: int) -> None:
    terms = SecureConfig(least_cover=2).terms(devices, 1.0)
    assert terms.threshold == threshold
    terms.check(devices)


def test_too_few_devices_for_a_secure_sum_are_refused() -> None:
    with pytest.raises(UsageError, match=r"secure\.least_cover = 3, .*: the round has 2 devices"):
        SecureConfig().terms(2, 1.0)
