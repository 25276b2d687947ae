"""The chosen widths against every possible choice."""

from collections.abc import Mapping
from itertools import product

import pytest
from fedofa.specialize.mixed import Option, Plan, cheapest, measured_options
from fedofa.specialize.scheme import QuantScheme
from fedofa.supernet.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st

layer = st.lists(
    st.builds(
        Option,
        bits=st.sampled_from([4, 8, 32]),
        size_bytes=st.integers(1, 60),
        cost=st.integers(-3, 20).map(float),
    ),
    min_size=1,
    max_size=3,
)


@given(st.lists(layer, min_size=1, max_size=6), st.integers(1, 300))
def test_no_choice_within_the_budget_costs_less(layers: list[list[Option]], budget: int) -> None:
    every = [
        (sum(o.cost for o in choice), sum(o.size_bytes for o in choice))
        for choice in product(*layers)
    ]
    fitting = [found for found in every if found[1] <= budget]
    if not fitting:
        with pytest.raises(UsageError, match=f"at least {min(s for _, s in every)} bytes"):
            cheapest(layers, budget)
        return
    plan = cheapest(layers, budget)
    assert (plan.cost, plan.size_bytes) == min(fitting)
    assert len(plan.bits) == len(layers)
    assert any(
        tuple(o.bits for o in choice) == plan.bits
        and (sum(o.cost for o in choice), sum(o.size_bytes for o in choice)) == min(fitting)
        for choice in product(*layers)
    )


def test_sixty_layers_are_no_matter() -> None:
    layers = [[Option(4, 50 + k, 1.0 / (k + 1)), Option(8, 100 + 2 * k, 0.0)] for k in range(60)]
    plan = cheapest(layers, 7000)
    assert plan.size_bytes <= 7000
    assert set(plan.bits) == {4, 8}


def test_a_plan_gives_a_scheme_its_exceptions() -> None:
    plan = Plan((8, 4, 32, 4), 10, 0.5)
    assert plan.layers(8) == {1: 4, 2: 32, 3: 4}
    scheme = QuantScheme(weight_bits=8, layers=plan.layers(8))
    assert [scheme.bits(place) for place in range(4)] == [8, 4, 32, 4]


def test_without_layers_there_is_nothing_to_choose() -> None:
    for nothing in ([], [[]]):
        with pytest.raises(UsageError, match="at least one layer"):
            cheapest(nothing, 10)


def test_a_layers_cost_is_measured_with_the_others_as_they_are() -> None:
    asked: list[dict[int, int]] = []

    def cost(widths: Mapping[int, int]) -> float:
        asked.append(dict(widths))
        return 5.0 + sum((8 - bits) * (place + 1) for place, bits in widths.items())

    found = measured_options([10, 3], (8, 4), cost)
    assert asked == [{}, {0: 8}, {0: 4}, {1: 8}, {1: 4}]
    assert found == [
        [Option(8, 10, 0.0), Option(4, 5, 4.0)],
        [Option(8, 3, 0.0), Option(4, 2, 8.0)],
    ]
