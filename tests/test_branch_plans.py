"""What divides a run among branches, by itself: coalitions, balanced copies, configurations."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.server.branches.axis import axis_of
from fedofa.server.branches.balance import TOLERANCE, balanced, followed, temperature, unevenness
from fedofa.server.branches.distances import of_labels, of_table, read_table
from fedofa.server.branches.planner import plan
from fedofa.server.config import parse_config
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.randomness import array_stream, stream
from fleets import small_config
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

Floats = NDArray[np.float64]


def apart(devices: int, distance: float) -> Floats:
    found: Floats = distance * (1 - np.eye(devices))
    return found


def planted(seed: int, noise: float, groups: int = 3, devices: int = 12) -> Floats:
    """Distance 0 within a group and 1 between, with noise in [0, `noise`] taken off or added."""
    rng = array_stream(seed, "planted")
    group = np.arange(devices) % groups
    found = (group[:, None] != group[None, :]).astype(float)
    found = np.abs(found - np.triu(rng.uniform(0, noise, found.shape), 1))
    half: Floats = np.triu(found, 1)
    return half + half.T


def objective(coalitions: list[list[int]], n: list[int], distances: Floats, c: float) -> float:
    """The card's formula, term by term."""
    total, m = 0.0, sum(n)
    for members in coalitions:
        for i in members:
            alpha = {j: n[j] / sum(n[k] for k in members) for j in members}
            few = sum(a**2 / (n[j] / m * m) for j, a in alpha.items())
            total += c * math.sqrt(few) + sum(a * distances[i, j] for j, a in alpha.items())
    return total / len(n)


def partitions(devices: list[int]) -> list[list[list[int]]]:
    """Every way to divide a few devices."""
    if not devices:
        return [[]]
    first, rest = devices[0], partitions(devices[1:])
    return [
        grown
        for found in rest
        for grown in (
            [[first], *found],
            *([*found[:at], [first, *found[at]], *found[at + 1 :]] for at in range(len(found))),
        )
    ]


def test_devices_whose_data_are_alike_are_one_coalition() -> None:
    assert len(plan([100] * 9, apart(9, 0.0), c=10).coalitions) == 1


def test_devices_whose_data_have_nothing_in_common_stay_alone() -> None:
    found = plan([1000] * 9, apart(9, 1.0), c=10)
    assert len(found.coalitions) == 9
    assert found.mean == found.alone < found.together


@pytest.mark.parametrize("c", [10, 40])
def test_planted_groups_are_found(c: float) -> None:
    for seed in range(5):
        found = plan([400] * 12, planted(seed, 0.2), c=c, seed=seed)
        assert sorted(map(sorted, found.coalitions)) == [[i, i + 3, i + 6, i + 9] for i in range(3)]


def test_a_small_c_lets_nobody_share() -> None:
    assert len(plan([400] * 12, planted(0, 0.2), c=0.1).coalitions) == 12


@given(seed=st.integers(0, 10_000), c=st.sampled_from([0.5, 3.0, 10.0]))
def test_the_plan_is_the_best_of_all_divisions_or_close(seed: int, c: float) -> None:
    rng = array_stream(seed, "any")
    n = [int(size) for size in rng.integers(1, 500, 5)]
    half = np.triu(rng.uniform(0, 1, (5, 5)), 1)
    distances = half + half.T
    found = plan(n, distances, c, seed=seed)
    mine = objective([list(members) for members in found.coalitions], n, distances, c)
    assert found.mean == pytest.approx(mine)
    best = min(objective(one, n, distances, c) for one in partitions(list(range(5))))
    assert mine <= best * 1.05 + 1e-9
    assert mine <= min(found.alone, found.together) + 1e-9
    assert sorted(i for members in found.coalitions for i in members) == list(range(5))


def test_a_coalition_that_must_hold_a_strong_device_does() -> None:
    able = [i < 2 for i in range(12)]  # of two of the three groups
    assert len(plan([400] * 12, planted(0, 0.2), c=10).coalitions) == 3
    found = plan([400] * 12, planted(0, 0.2), c=10, able=able)
    assert all(any(able[i] for i in members) for members in found.coalitions)
    assert len(found.coalitions) == 2


def test_what_makes_no_sense_to_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="no device can train the largest"):
        plan([5, 5], apart(2, 0.5), c=1, able=[False, False])
    with pytest.raises(UsageError, match="symmetric"):
        plan([5, 5], np.array([[0.0, 0.2], [0.3, 0.0]]), c=1)
    with pytest.raises(UsageError, match="from 0 to 1"):
        plan([5, 5], apart(2, 1.5), c=1)
    with pytest.raises(UsageError, match="at least one example"):
        plan([5, 0], apart(2, 0.5), c=1)


def test_distances_of_labels_are_total_variation() -> None:
    found = of_labels([[10, 0, 0], [0, 5, 5], [4, 4, 0], [2, 0, 0]])
    assert found[0].tolist() == [0.0, 1.0, 0.5, 0.0]
    assert (found == found.T).all()


def test_distances_come_from_a_file_that_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "distances.json"

    def read(table: object) -> Any:
        path.write_text(json.dumps(table))
        return read_table(str(path))

    table = read({"a": {"b": 0.25}, "c": {"a": 1, "b": 0.5}})
    assert of_table(table, ["b", "c", "a"]).tolist() == [[0, 0.5, 0.25], [0.5, 0, 1], [0.25, 1, 0]]
    with pytest.raises(UsageError, match="a and b have two"):
        read({"a": {"b": 0.25}, "b": {"a": 0.5}})
    with pytest.raises(UsageError, match="a and b have '1'"):
        read({"a": {"b": "1"}})
    with pytest.raises(UsageError, match="d and a have none"):
        of_table(table, ["a", "d"])
    with pytest.raises(UsageError, match="is expected"):
        read([1])
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(str(tmp_path / "none.json"))


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 40),
    copies=st.integers(1, 6),
    t=st.sampled_from([1.0, 10.0, 100.0]),
)
def test_probabilities_add_up_and_no_copy_gets_most(
    seed: int, rows: int, copies: int, t: float
) -> None:
    v_am = array_stream(seed, "values").uniform(0, 1, (rows, copies))
    p_am = balanced(v_am, t)
    np.testing.assert_allclose(p_am.sum(axis=1), 1)
    assert unevenness(p_am) < TOLERANCE
    np.testing.assert_allclose(p_am.mean(axis=0), 1 / copies, atol=0.04 / copies)
    assert (p_am >= 0).all()


def test_one_copy_gets_everything() -> None:
    assert (balanced(np.array([[0.3], [0.9]]), 100.0) == 1).all()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_conflicting_configurations_are_parted_by_noisy_feedback(noise: float) -> None:
    """A copy is good at what it was lately trained for, and each of two clusters spoils the other."""
    cluster, parted = np.arange(12) % 2, 0
    for seed in range(10):
        rng = array_stream(seed, "conflict", noise)
        v_am, skill = np.ones((12, 2)), np.full((2, 2), 0.5)
        for step in range(100):
            p_am = balanced(v_am, temperature(step / 99))
            for a in rng.integers(0, 12, 10):  # ten devices a round
                m = int(rng.random() >= p_am[a, 0])
                skill[:, m] = 0.95 * skill[:, m] + 0.05 * (np.arange(2) == cluster[a])
                right = 0.3 + 0.6 * skill[cluster[a], m] + rng.normal(0, noise)
                v_am[a, m] = followed(v_am[a, m], -math.log(min(max(right, 0.01), 1.0)))
        chosen = balanced(v_am, 100.0).argmax(axis=1)
        parted += adjusted_rand_score(cluster, chosen) > 0.8
    assert parted >= 8


def test_a_lie_about_the_loss_is_worth_no_more_than_the_truth_can_be() -> None:
    assert followed(0.5, -1e9) == followed(0.5, 0.0) == pytest.approx(0.55)
    assert followed(0.5, 1e9) == pytest.approx(0.45)


def test_configurations_are_those_that_subnets_have() -> None:
    space = preset("small")
    axis = axis_of(space, "s2.b2.kernel")
    assert axis.configurations == ((None,), (3,), (5,))
    both = axis_of(space, "s1.[db]*[hl]")  # s1.depth and the kernels of its blocks
    assert both.genes == ("s1.depth", "s1.b0.kernel", "s1.b1.kernel", "s1.b2.kernel")
    assert len(both.configurations) == 2 + 4 + 8
    rng, seen = stream(0, "archs"), set()
    for _ in range(300):
        arch = space.sample(rng)
        seen.add(both.of(arch))
        assert axis.configurations[axis.of(arch)] == (arch.get("s2.b2.kernel"),)
    assert seen == set(range(14))
    assert both.labels[0] == "s1.depth=1,s1.b0.kernel=3"


def test_the_axis_is_the_first_default_that_is_elastic() -> None:
    assert axis_of(preset("small"), None).genes == ("resolution",)
    depths = axis_of(preset("digits"), None)
    assert depths.genes == ("s0.depth", "s1.depth", "s2.depth")
    assert depths.configurations == tuple(product((1,), (1, 2), (1, 2)))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"branches": {"by": "coalition"}}, "branches.by"),
        ({"branches": {"by": "architecture"}}, "branches.copies is needed"),
        ({"branches": {"by": "coalitions", "copies": 2}}, "copies = 2 is used with"),
        ({"branches": {"by": "architecture", "copies": 2, "c": 1.0}}, "c = 1.0 is used with"),
        ({"branches": {"by": "architecture", "copies": 0}}, "copies"),
        ({"branches": {"by": "architecture", "copies": 2, "axis": "nothing"}}, "gives 0 conf"),
        ({"branches": {"by": "architecture", "copies": 2, "axis": "s0.depth"}}, "gives 1 conf"),
        ({"branches": {"by": "architecture", "copies": 2, "axis": "*"}}, "more than 64"),
        ({"branches": {"by": "coalitions", "kind": 1}}, "unknown key 'kind' in \\[branches\\]"),
        ({"branches": {"by": "coalitions"}, "name": "n" * 49}, "at most 48"),
        (
            {"branches": {"by": "architecture", "copies": 5}, "downlink": "int8"},
            "branches.copies = 5 with downlink: .* 4 copies at most",
        ),
        ({"branches": {"by": "coalitions"}, "round": {"enough_replies": 2}}, "enough_replies = 2"),
        (
            {"branches": {"by": "coalitions"}, "round": {"mode": "async", "buffer": 2}},
            "mode = async",
        ),
    ],
)
def test_a_branches_table_that_makes_no_sense_is_refused(
    sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        small_config(**sections)


def test_branches_and_privacy_are_refused_together() -> None:
    fields = {
        "classes": {"phone": {}},
        "aggregation": {"weights": "uniform"},
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0},
        "branches": {"by": "coalitions"},
    }
    with pytest.raises(UsageError, match=r"\[privacy\] with \[branches\]"):
        parse_config(fields)
