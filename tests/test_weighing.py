"""Weights of clients: FedDisco's formula and its edges; strikes and quarantine."""

import json
import math
from itertools import pairwise

import pytest
from fedofa.protos.messages import DeviceProfile, MessageError
from fedofa.server.aggregation.weighing import (
    LEAST_EFFECTIVE,
    Holder,
    Weighed,
    by_discrepancy,
    by_examples,
    capped,
    discrepancy,
)
from fedofa.server.reputation import Reputation, ReputationConfig
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

HOLDERS = st.lists(
    st.tuples(
        st.floats(1, 1e4),
        st.one_of(
            st.none(),
            st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(lambda c: sum(c) > 0),
        ),
    ),
    min_size=1,
    max_size=8,
).map(lambda drawn: [Holder(f"c{k}", n, labels) for k, (n, labels) in enumerate(drawn)])


@given(HOLDERS)
def test_without_its_two_constants_it_is_the_number_of_examples(holders: list[Holder]) -> None:
    found, expected = by_discrepancy(holders, 0, 0).weights, by_examples(holders).weights
    effective = sum(expected.values()) ** 2 / sum(v**2 for v in expected.values())
    assert found == pytest.approx(expected)
    assert effective > 0


@given(HOLDERS, st.floats(0, 2), st.floats(0, 1))
def test_weights_are_a_share_of_all_examples_and_enough_clients_count(
    holders: list[Holder], a: float, b: float
) -> None:
    found = by_discrepancy(holders, a, b)
    total = sum(holder.examples for holder in holders)
    assert all(value >= 0 for value in found.weights.values())
    assert sum(found.weights.values()) == pytest.approx(total)
    if not found.note:
        effective = total**2 / sum(value**2 for value in found.weights.values())
        assert effective >= LEAST_EFFECTIVE * len(holders) * (1 - 1e-9)


def test_a_client_further_from_the_reference_weighs_less() -> None:
    even, odd = Holder("even", 30, [10, 10, 10]), Holder("odd", 30, [30, 0, 0])
    quiet = Holder("quiet", 30, None)
    found = by_discrepancy([even, odd, quiet], 0.5, 0.1).weights
    assert found["odd"] < found["quiet"] < found["even"]
    # Shares of the discrepancy: 0, ln 3 and the mean of both, together 1.5 ln 3.
    raw = {"even": 1 / 3 + 0.1, "odd": 1 / 3 - 0.5 / 1.5 + 0.1, "quiet": 1 / 3 - 0.25 / 1.5 + 0.1}
    assert found == pytest.approx({n: 90 * v / sum(raw.values()) for n, v in raw.items()})


def test_where_hardly_anybody_would_count_examples_do() -> None:
    holders = [Holder("even", 1, [10, 10]), *(Holder(f"c{k}", 1, [20, 0]) for k in range(5))]
    found = by_discrepancy(holders, 1.5, 0.0)
    assert "by examples" in found.note
    assert set(found.weights.values()) == {1}
    none = by_discrepancy([Holder("a", 5), Holder("b", 7)], 0.5, 0.1)
    assert none.weights == {"a": 5, "b": 7}
    assert "no device shares" in none.note


@pytest.mark.parametrize(("labels", "expected"), [([5, 5], 0), ([9, 0], math.log(2)), ([0, 7, 0, 0], math.log(4))])  # fmt: skip
def test_discrepancy_is_the_divergence_from_uniform(labels: list[int], expected: float) -> None:
    assert discrepancy(labels) == pytest.approx(expected)


def test_a_profile_whose_label_counts_are_not_its_examples_is_refused() -> None:
    fields = {
        "device": "d", "device_class": "c", "cores": 1, "memory_bytes": 1, "train_macs_per_s": 1.0,
        "infer_macs_per_s": 1.0, "budget": {}, "runtimes": [], "examples": 10,
        "validation_examples": 1, "input_shape": [1], "classes": ["a", "b"],
        "normalization": {"mean": [0.0], "std": [1.0]},
    }  # fmt: skip
    assert DeviceProfile.from_json(json.dumps({**fields, "labels": [4, 6]})).labels == (4, 6)
    for wrong in ([4, 5], [10], [-1, 11]):
        with pytest.raises(MessageError):
            DeviceProfile.from_json(json.dumps({**fields, "labels": wrong}))


def test_strikes_within_the_window_lead_to_quarantine_longer_each_time() -> None:
    reputation = Reputation(ReputationConfig(strikes=2, window=5, quarantine_rounds=3))
    assert reputation.strike("a", 1, "norm") is None
    assert reputation.strike("a", 1, "trimmed") is None  # one a round
    assert reputation.strike("a", 7, "norm") is None  # the first is forgotten
    assert reputation.reasons("a") == [(7, "norm")]
    assert reputation.strike("a", 8, "non_finite") == 12
    assert reputation.resting(11) == {"a"}
    assert reputation.resting(12) == frozenset()
    again = Reputation(reputation._config, reputation.memory)
    again.strike("a", 12, "norm")
    assert again.strike("a", 13, "norm") == 14 + 6
    assert again.resting(19) == {"a"}


def test_with_no_limit_nobody_rests_and_a_limit_out_of_reach_is_refused() -> None:
    reputation = Reputation(ReputationConfig(strikes=0))
    assert all(reputation.strike("a", r, "norm") is None for r in range(1, 30))
    with pytest.raises(ValidationError, match="cannot come together"):
        ReputationConfig(strikes=6, window=5)


WEIGHTS = st.lists(st.floats(0, 1e9), min_size=3, max_size=30).filter(lambda w: sum(w) > 0)


@given(WEIGHTS, st.floats(0.01, 1))
@example([1.0, 1.0, 5e-324], 0.375)
@example([1.0, 0.0, 0.0], 0.4)
def test_nobody_has_more_than_the_largest_share(weights: list[float], most: float) -> None:
    named = {f"c{k}": w for k, w in enumerate(weights)}
    found = capped(Weighed(named), most).weights
    total = sum(weights)
    assert sum(found.values()) == pytest.approx(total)
    assert max(found.values()) <= max(most, 1 / len(weights)) * total * (1 + 1e-9)
    # Whoever weighed more before does not weigh less now.
    order = sorted(named, key=lambda name: named[name])
    assert all(found[a] <= found[b] * (1 + 1e-9) for a, b in pairwise(order))


def test_a_device_that_claims_everything_has_half() -> None:
    named = {"liar": 1e9, **{f"c{k}": 100.0 for k in range(19)}}
    found = capped(Weighed(named), 0.5).weights
    assert found["liar"] == pytest.approx(sum(named.values()) / 2)
    assert len({found[f"c{k}"] for k in range(19)}) == 1
    pair = Weighed({"a": 9.0, "b": 1.0})
    assert capped(pair, 0.5) is pair


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_a_large_fleets_weights_still_follow_examples(count: int) -> None:
    """What ten times the examples are worth does not hang on how many others there are."""
    holders = [Holder(f"c{k}", 100.0 if k % 2 else 1000.0, [10, 10, 10]) for k in range(count)]
    found = by_discrepancy(holders, 0.5, 0.1).weights
    assert found["c0"] / found["c1"] > 2


def test_quarantine_does_not_end_a_run() -> None:
    config = ReputationConfig(strikes=1, quarantine_rounds=5)
    reputation = Reputation(config)
    for round_, name in enumerate("abc", start=1):
        reputation.strike(name, round_, "norm")
    fleet = {*"abcde"}
    assert reputation.release(fleet, 2, 4) == []
    assert reputation.release(fleet, 4, 4) == ["a", "b"]  # those soonest due
    assert reputation.resting(4) == {"c"}
    assert reputation.release(fleet, 9, 4) == []  # it would not help
    assert reputation.resting(4) == {"c"}
