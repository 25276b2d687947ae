"""A search claims to have found something only where its interval is above zero."""

import json
import math

import numpy as np
import pytest
from fedofa.specialize.search.audit import (
    Arm,
    audit_one,
    audit_over_seeds,
    mean_interval,
    t95,
    wilson,
)
from fedofa.specialize.search.contract import Scored
from fedofa.supernet.errors import UsageError


def test_random_against_random_covers_zero_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        scores = [Scored(float(rng.normal(0.8, 0.03))) for _ in range(7)]
        # The choice is itself a random subnet: its error is the subnets' spread.
        found = audit_one(Scored(scores[0].score, 0.03), scores[1:], None)
        covered += found.improvement.low <= 0 <= found.improvement.high
    assert 0.92 <= covered / 400 <= 0.995


def test_random_against_random_over_seeds_claims_hardly_ever() -> None:
    rng = np.random.default_rng(0)
    claims = sum(
        audit_over_seeds(
            Arm("p", rng.normal(0.8, 0.02, 8).tolist()), Arm("p", rng.normal(0.8, 0.02, 8).tolist())
        ).searched
        for _ in range(400)
    )
    assert claims / 400 < 0.05


def test_what_is_far_better_is_searched() -> None:
    random = [Scored(0.7 + 0.01 * at, 0.01) for at in range(6)]
    found = audit_one(Scored(0.9, 0.01), random, Scored(0.8, 0.01))
    assert found.searched
    assert found.improvement.value == pytest.approx(100 * (0.9 - 0.725) / 0.725)
    assert found.beats_random.value == 1
    assert found.over_largest is not None
    assert found.over_largest.value == pytest.approx(0.1)
    assert (found.seeds, found.random) == (1, 6)


def test_being_the_best_of_many_measured_ones_costs_an_allowance() -> None:
    random = [Scored(0.80, 0.01), Scored(0.81, 0.01), Scored(0.79, 0.01), Scored(0.80, 0.01)]
    alone = audit_one(Scored(0.83, 0.01), random, None)
    chosen = audit_one(Scored(0.83, 0.01), random, None, chosen_from=25)
    assert alone.searched
    assert not chosen.searched
    lower = alone.improvement.low - chosen.improvement.low
    assert lower == pytest.approx(100 / 0.8 * 0.01 * math.sqrt(2 * math.log(25)))


def test_of_a_single_random_subnet_nothing_can_be_said() -> None:
    found = audit_one(Scored(0.9, 0.01), [Scored(0.5, 0.01)], None)
    assert not found.searched
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["improvement"]["low"] is None


def test_the_claim_over_seeds_is_paired() -> None:
    """Seeds differ by far more than the gain, which every seed has."""
    base = [0.5, 0.7, 0.9, 0.6, 0.8]
    gains = [0.01, 0.012, 0.011, 0.009, 0.01]
    mine = [level + gain for level, gain in zip(base, gains, strict=True)]
    found = audit_over_seeds(Arm("p", mine), Arm("p", base), Arm("p", base))
    assert found.searched
    assert found.over_largest is not None
    assert found.over_largest.low > 0
    assert found.seeds == 5


def test_arms_that_do_not_compare_are_refused() -> None:
    with pytest.raises(UsageError, match="another protocol"):
        audit_over_seeds(Arm("a", [0.5]), Arm("b", [0.5]))
    with pytest.raises(UsageError, match="one of each"):
        audit_over_seeds(Arm("a", [0.5]), Arm("a", [0.5, 0.6]))
    with pytest.raises(UsageError, match="at least one random"):
        audit_one(Scored(0.5), [], None)
    with pytest.raises(UsageError, match="not above 0"):
        audit_one(Scored(0.5), [Scored(0.0)], None)


def test_intervals_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 5, 17, 30, 45, 400):
        assert t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)
    assert t95(0.5) == math.inf
    values = [0.1, 0.4, 0.2, 0.25]
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    for successes, trials in ((0, 5), (3, 7), (9, 9)):
        exact = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        found = wilson(successes, trials)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-3)
