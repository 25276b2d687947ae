"""The rules of aggregation against dense oracles, their neutral knobs, and what liars can do."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedofa.server.aggregation import spool as spool_module
from fedofa.server.aggregation.bit_aware import BitAwareMean
from fedofa.server.aggregation.catalogue import AggregationConfig
from fedofa.server.aggregation.clipping import Clipping, size_of_change
from fedofa.server.aggregation.krum import Krum, least_updates, scores
from fedofa.server.aggregation.order_statistics import Median, TrimmedMean, tolerated
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.server.aggregation.spool import Spool
from fedofa.server.aggregation.update import Fold, Update
from fedofa.server.config import parse_config
from fedofa.supernet.errors import UsageError
from fedofa.supernet.weights import Shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import SHAPES, agree, dense, folded, lying, mean_of, updates, whole

NEUTRAL: dict[str, Callable[[], Fold]] = {
    "trimmed mean that trims nothing": lambda: TrimmedMean(SHAPES, 0.0),
    "clipping far above all": lambda: Clipping(OverlapMean(SHAPES), SHAPES, 1e9, ()),
    "clipping with a former bound far above all": lambda: Clipping(
        OverlapMean(SHAPES), SHAPES, 1e9, [1.0]
    ),
    "krum that tolerates nobody": lambda: Krum(SHAPES, 0, None),
    "bit-aware without low bits": lambda: BitAwareMean(SHAPES, 4),
    "float64 sums": lambda: OverlapMean(SHAPES, torch.float64),
    "the default": lambda: AggregationConfig().fold(SHAPES, {}),
}
RULES: dict[str, Callable[[], Fold]] = {
    **NEUTRAL,
    "mean": lambda: OverlapMean(SHAPES),
    "trimmed mean": lambda: TrimmedMean(SHAPES, 0.25),
    "median": lambda: Median(SHAPES),
    "krum": lambda: Krum(SHAPES, 1, None),
    "clipped trimmed mean": lambda: Clipping(TrimmedMean(SHAPES, 0.25), SHAPES, 1.0, ()),
}


@pytest.mark.parametrize("rule", NEUTRAL)
@given(found=updates())
@settings(max_examples=30)
def test_with_its_knob_neutral_a_rule_is_the_weighted_mean(rule: str, found: list[Update]) -> None:
    mine = folded(NEUTRAL[rule](), found)
    agree(mine, folded(OverlapMean(SHAPES), found))
    for name in ("w", "v"):
        mean, held = mean_of(found, name)
        if not held.any():
            assert mine.trained[name] is False
            continue
        assert np.array_equal(np.broadcast_to(np.asarray(mine.trained[name]), held.shape), held)
        np.testing.assert_allclose(mine.delta[name].numpy(), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@given(found=updates())
@settings(max_examples=30)
def test_what_nobody_trained_does_not_change_and_nobody_is_left_out_without_need(
    rule: str, found: list[Update]
) -> None:
    mine = folded(RULES[rule](), found)
    assert mine.trained["unused"] is False
    assert "unused" not in mine.delta
    for name in ("w", "v"):
        _, held = mean_of(found, name)
        mask = np.broadcast_to(np.asarray(mine.trained[name]), held.shape)
        assert not (mask & ~held).any()
        if name in mine.delta:
            assert not mine.delta[name].numpy()[~mask].any()
        if rule != "krum":
            assert np.array_equal(mask, held)


@pytest.mark.parametrize("rule", RULES)
@given(found=updates(), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_updates_does_not_matter(rule: str, found: list[Update], seed: int) -> None:
    shuffled = random.Random(seed).sample(found, len(found))
    agree(folded(RULES[rule](), found), folded(RULES[rule](), shuffled))


@given(updates(least=2), st.data())
@settings(max_examples=60)
def test_partial_sums_of_any_grouping_merge_to_the_flat_result(
    found: list[Update], data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(found), max_size=len(found)))
    for dtype in (torch.float64, torch.float32):
        flat = folded(OverlapMean(SHAPES, dtype), found)
        top, middle = OverlapMean(SHAPES, dtype), OverlapMean(SHAPES, dtype)
        for group in sorted(set(groups)):
            leaf = OverlapMean(SHAPES, dtype)
            for place, update in enumerate(found):
                if groups[place] == group:
                    leaf.add(update)
            (top if group == 0 else middle).add_partial(leaf.partial())
        top.add_partial(middle.partial())
        assert top.updates == len(found)
        # Sums of float64 are exact, to the last bit.
        agree(top.result(), flat, 0.0 if dtype == torch.float64 else 1e-5)


def test_a_partial_sum_of_another_supernet_is_refused() -> None:
    other = OverlapMean({"w": (2, 2)})
    with pytest.raises(ValueError, match="4 values; this supernet has 29"):
        OverlapMean(SHAPES).add_partial(other.partial())


@pytest.mark.parametrize(
    ("holders", "trim", "expected"),
    [(0, 0.2, 0), (1, 0.4, 0), (2, 0.4, 0), (3, 0.1, 1), (5, 0.2, 1), (6, 0.2, 2), (10, 0.49, 4),
     (20, 0.2, 4), (100, 0.07, 7)],
)  # fmt: skip
def test_how_many_liars_a_value_tolerates(holders: int, trim: float, expected: int) -> None:
    assert tolerated(holders, trim) == expected


@given(updates(least=3, most=9), st.data())
@settings(max_examples=80)
def test_up_to_the_claimed_number_of_liars_results_lie_between_honest_values(
    found: list[Update], data: st.DataObject
) -> None:
    trim = data.draw(st.sampled_from([0.1, 0.25, 0.4]))
    liars = data.draw(st.lists(st.integers(0, len(found) - 1), unique=True, max_size=3))
    lies = data.draw(
        st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=len(liars), max_size=len(liars))
    )
    given_updates = lying(found, liars, lies)
    trimmed, median = folded(TrimmedMean(SHAPES, trim), given_updates), Median(SHAPES)
    middle = folded(median, given_updates)
    honest = [k not in liars for k in range(len(found))]
    for name in trimmed.delta:
        changes, _ = dense(given_updates, name)
        held = ~np.isnan(changes)
        low = np.nanmin(np.where(held, changes, np.inf)[honest], axis=0, initial=np.inf)
        high = np.nanmax(np.where(held, changes, -np.inf)[honest], axis=0, initial=-np.inf)
        lying_holders = held[[not h for h in honest]].sum(axis=0)
        holders = held.sum(axis=0)
        for result, most in (
            (trimmed, np.vectorize(lambda n: tolerated(int(n), trim))(holders)),
            (middle, np.maximum(holders - 1, 0) // 2),
        ):
            promised = (holders > 0) & (lying_holders <= most)
            value = result.delta[name].numpy()[promised]
            assert (value >= low[promised].astype(np.float32)).all()
            assert (value <= high[promised].astype(np.float32)).all()


@given(updates(most=9), st.sampled_from([0.1, 0.3]))
@settings(max_examples=40)
def test_the_trimmed_mean_is_that_of_a_loop_over_values(found: list[Update], trim: float) -> None:
    mine, middle = folded(TrimmedMean(SHAPES, trim), found), folded(Median(SHAPES), found)
    for name in mine.delta:
        changes, weights = dense(found, name)
        for at in np.ndindex(*SHAPES[name]):
            values = changes[(slice(None), *at)]
            holders = np.flatnonzero(~np.isnan(values))
            if not len(holders):
                continue
            order = holders[np.argsort(values[holders])]
            drop = tolerated(len(order), trim)
            ends = values[order[drop]], values[order[len(order) - 1 - drop]]
            kept = [k for k in order if ends[0] <= values[k] <= ends[1]]
            share = weights[(kept, *at)]
            expected = float(share @ values[kept] / share.sum())
            assert float(mine.delta[name][at]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert float(middle.delta[name][at]) == pytest.approx(np.nanmedian(values), abs=1e-5)


def test_blocks_of_a_few_rows_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found = [
        replace(whole(f"c{k}", {"w": rng.normal(size=(5, 4)), "v": rng.normal(size=6)}), scale=0.5)
        for k in range(6)
    ]
    found.append(
        Update("c6", rng.normal(size=6).astype(np.float32), {"w": ((4, 0, 2), slice(1, 3))}, 2.0)
    )
    for rule in (lambda: TrimmedMean(SHAPES, 0.2), lambda: Krum(SHAPES, 1, None)):
        monkeypatch.setattr(spool_module, "BLOCK_VALUES", 1 << 20)
        one = folded(rule(), found)
        monkeypatch.setattr(spool_module, "BLOCK_VALUES", 30)
        agree(one, folded(rule(), found))
        assert one.suspects.keys() <= {u.device for u in found}


@given(updates(), st.integers(1, 60))
@settings(max_examples=60)
def test_blocks_hold_every_value_of_every_update_once(found: list[Update], most: int) -> None:
    kept = Spool(SHAPES)
    found = [replace(u, scale=0.5) if k % 2 else u for k, u in enumerate(found)]
    for update in found:
        kept.add(update)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "BLOCK_VALUES", most)
        blocks = list(kept.blocks())
    seen = {name: np.zeros(shape, int) for name, shape in SHAPES.items()}
    for block in blocks:
        assert block.values.size <= max(most, len(found))
        seen[block.name][block.region] += 1
        expected = dense(found, block.name)[0][(slice(None), *block.region)]
        np.testing.assert_allclose(block.values, expected, rtol=1e-6)
    for name, times in seen.items():
        assert (times == int(any(name in u.where for u in found))).all()


@pytest.mark.parametrize("shape", [(1, 4000), (1, 2, 2000), (2, 1, 2000, 1), ()])
def test_blocks_do_not_grow_with_the_clients_whatever_the_shape(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(spool_module, "BLOCK_VALUES", 5000)
    fold, size = TrimmedMean({"t": shape}, 0.1), int(np.prod(shape))
    for client in range(20):
        fold.add(whole(f"c{client}", {"t": np.arange(size).reshape(shape) + client}))
    assert all(block.values.size <= 5000 for block in fold._spool.blocks())
    # Of 20 consecutive numbers without the two lowest and highest: the mean is the middle.
    expected = np.arange(size).reshape(shape) + 9.5
    np.testing.assert_allclose(fold.result().delta["t"].numpy(), expected, rtol=1e-6)


def test_a_spool_gives_back_what_was_put_in() -> None:
    kept = Spool(SHAPES)
    found = [whole("a", {"v": np.arange(6)}), whole("b", {"w": np.ones((5, 4))}, weight=3.0)]
    for update in found:
        kept.add(update)
    for mine, other in zip(kept.updates(), found, strict=True):
        assert (mine.device, mine.weight) == (other.device, other.weight)
        assert np.array_equal(mine.delta, other.delta)
    kept.close()


def test_clipping_bounds_an_update_by_the_fleets_median() -> None:
    found = [
        whole(f"c{k}", {"v": np.full(6, size)}) for k, size in enumerate((1.0, 2.0, 3.0, 90.0))
    ]
    rule = Clipping(OverlapMean(SHAPES), SHAPES, 2.0, ())
    first = folded(rule, found)  # the median is 2.5, the bound 5
    assert first.delta["v"].tolist() == pytest.approx([(1 + 2 + 3 + 5) / 4] * 6)
    assert first.suspects == {"c3": "norm"}
    assert first.counted == {"c3": pytest.approx(5 / 90)}
    assert first.memory["median_sizes"] == pytest.approx([2.5])
    second = Clipping(OverlapMean(SHAPES), SHAPES, 2.0, first.memory["median_sizes"])
    assert folded(second, found).memory["median_sizes"] == pytest.approx([2.5, 2.5])


def test_names_give_no_say_in_the_bound() -> None:
    """Liars that are folded last, and change nothing, cannot bring the bound down."""
    medians: list[float] = []
    for _ in range(4):
        rule = Clipping(OverlapMean(SHAPES), SHAPES, 2.0, medians)
        for k in range(220):
            rule.add(whole(f"a{k}", {"v": np.full(6, 1.0)}))
        for k in range(210):
            rule.add(whole(f"z{k}", {"v": np.full(6, 1e-9)}))
        found = rule.result()
        medians = list(found.memory["median_sizes"])
        assert found.suspects == {}
    assert medians == pytest.approx([1.0] * 4)


def test_a_round_in_which_nothing_changed_sets_no_bound() -> None:
    still = [whole(f"c{k}", {"v": np.zeros(6)}) for k in range(3)]
    moved = [whole(f"c{k}", {"v": np.full(6, 1.0)}) for k in range(3)]
    first = folded(Clipping(OverlapMean(SHAPES), SHAPES, 2.0, ()), [*still, moved[0]])
    assert first.memory["median_sizes"] == []
    assert first.suspects == {}
    rule = Clipping(OverlapMean(SHAPES), SHAPES, 2.0, [1.0])
    assert folded(rule, still).memory["median_sizes"] == [1.0]


@given(updates(least=3), st.integers(0, 2), st.floats(10, 1e6))
@settings(max_examples=30)
def test_a_minority_cannot_lift_the_bound(found: list[Update], liar: int, by: float) -> None:
    """One liar of three or more: what comes of the round is bounded by honest clients' sizes."""
    honest = [u for k, u in enumerate(found) if k != liar]
    loud = [replace(u, delta=u.delta * np.float32(by)) if k == liar else u
            for k, u in enumerate(found)]  # fmt: skip
    medians: list[float] = []
    for _ in range(5):
        merged = folded(Clipping(OverlapMean(SHAPES), SHAPES, 1.0, medians), loud)
        medians = list(merged.memory["median_sizes"])
    most = max(size_of_change(u) for u in honest)
    assert max(medians, default=0.0) <= most * (1 + 1e-6)


MANY = {"w": (40, 30)}


@pytest.mark.parametrize(
    ("rule", "liars"),
    [
        (lambda: Median(MANY), 2),
        (lambda: Median(MANY), 5),
        (lambda: TrimmedMean(MANY, 0.2), 4),
        (lambda: TrimmedMean(MANY, 0.3), 6),
        (lambda: TrimmedMean(MANY, 0.45), 7),
    ],
    ids=["median, 2", "median, 5", "trim 0.2, 4", "trim 0.3, 6", "trim 0.45, 7"],
)
def test_who_lies_at_the_edge_is_named_and_nobody_who_is_only_dropped(
    rule: Callable[[], Fold], liars: int
) -> None:
    rng = np.random.default_rng(2)
    sizes = np.linspace(0.7, 1.8, 20 - liars)  # some change more than others
    alike = [
        whole(f"h{k:02d}", {"w": by * rng.normal(size=MANY["w"])}) for k, by in enumerate(sizes)
    ]
    for lies in (
        [np.full(MANY["w"], -10.0) for _ in range(liars)],
        [-10 + rng.normal(size=MANY["w"]) for _ in range(liars)],
        [20 * rng.choice([-1.0, 1.0], size=MANY["w"]) for _ in range(liars)],
    ):
        found = [*alike, *(whole(f"l{k}", {"w": lie}) for k, lie in enumerate(lies))]
        assert folded(rule(), found).suspects == {f"l{k}": "trimmed" for k in range(liars)}


def test_krum_leaves_out_liars_and_says_whom() -> None:
    rng = np.random.default_rng(1)
    honest = [whole(f"h{k}", {"w": 1 + 0.1 * rng.normal(size=(5, 4))}) for k in range(6)]
    liars = [whole(f"l{k}", {"w": -10 + 0.1 * rng.normal(size=(5, 4))}) for k in range(2)]
    part = Update("h6", np.ones(4, np.float32), {"w": (slice(0, 2), slice(0, 2))}, 1.0)
    found = folded(Krum(SHAPES, 2, None), [*liars, *honest, part])
    assert found.suspects == {"l0": "krum", "l1": "krum"}
    assert float((found.delta["w"] - 1).abs().max()) < 0.3
    alone = folded(Krum(SHAPES, 2, 1), [*liars, *honest, part])
    # Two that stand far away, and those that `keep` = 1 leaves out.
    assert list(alone.counted.values()) == [0.0] * 8
    few = folded(Krum(SHAPES, 2, None), honest[:4])
    assert few.notes == ("4 updates: only 0 of 2 liars are tolerated",)


def test_who_is_left_out_without_being_far_away_is_not_suspected() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        honest = [whole(f"h{k}", {"w": rng.normal(size=(5, 4))}) for k in range(7)]
        found = folded(Krum(SHAPES, 2, None), honest)
        assert found.suspects == {}
        assert list(found.counted.values()) == [0.0, 0.0]


def test_krum_never_keeps_as_many_as_may_lie() -> None:
    honest = [whole(f"h{k}", {"w": np.full((5, 4), 1 + 0.01 * k)}) for k in range(4)]
    liar = whole("liar", {"w": np.full((5, 4), -1000.0)})
    found = folded(Krum(SHAPES, 1, 5), [*honest, liar])
    assert found.suspects == {"liar": "krum"}
    assert float((found.delta["w"] - 1).abs().max()) < 0.1


@pytest.mark.parametrize("rule", [OverlapMean, lambda s: TrimmedMean(s, 0.2), Median,
                                  lambda s: Krum(s, 1, None)])  # fmt: skip
def test_weights_too_small_for_float32_give_no_nan(rule: Callable[[Shapes], Fold]) -> None:
    found = folded(
        rule(SHAPES), [whole(f"c{k}", {"v": np.full(6, 1.0)}, weight=1e-60) for k in range(5)]
    )
    assert bool(found.delta["v"].isfinite().all())
    assert 0 <= float(found.delta["v"].max()) <= 1


def test_krums_scores_are_sums_of_distances_to_the_nearest() -> None:
    distance = np.asarray(
        [[0, 1, 2, 9, 9], [1, 0, 1, 9, 9], [2, 1, 0, 9, 9], [9, 9, 9, 0, 4], [9, 9, 9, 4, 0]], float
    )
    assert scores(distance, 1).tolist() == [3, 2, 3, 13, 13]
    assert least_updates(1) == 5


def test_low_bit_clients_count_where_they_agree_in_sign() -> None:
    high = whole("high", {"v": [1.0, -1.0, 2.0, 0.0, 1.0, 1.0]}, weight=1.0)
    low = whole("low", {"v": [3.0, 3.0, -4.0, 5.0, 3.0, 1.0]}, weight=1.0, bits=2)
    alone = Update("part", np.asarray([7.0], np.float32), {"w": (slice(0, 1), slice(0, 1))}, 1.0,
                   bits=4)  # fmt: skip
    found = folded(BitAwareMean(SHAPES, 4), [low, high, alone])
    assert found.delta["v"].tolist() == [2.0, -1.0, 2.0, 0.0, 2.0, 1.0]
    assert float(found.delta["w"][0, 0]) == 7.0  # no high-bit client has it
    assert int(torch.as_tensor(found.trained["w"]).sum()) == 1
    plain = folded(BitAwareMean(SHAPES, 4), [low, alone])
    assert plain.delta["v"].tolist() == [3.0, 3.0, -4.0, 5.0, 3.0, 1.0]
    assert "plain mean" in plain.notes[0]


@pytest.mark.parametrize("low_bits", [0, 4])
def test_float64_sums_are_the_same_in_any_order_also_with_low_bits(low_bits: int) -> None:
    rng = np.random.default_rng(1)
    found = [
        replace(
            whole(f"c{k}", {"w": rng.normal(size=(5, 4))}, float(rng.uniform(1, 100))),
            bits=4 if k % 2 else 32,
        )
        for k in range(40)
    ]
    config = AggregationConfig(accumulate="float64", low_bits=low_bits)
    results = {
        folded(config.fold(SHAPES, {}), [found[k] for k in rng.permutation(40)])
        .delta["w"].numpy().tobytes()
        for _ in range(20)
    }  # fmt: skip
    assert len(results) == 1


@given(updates(), st.lists(st.sampled_from([2, 4, 8, 32]), min_size=7, max_size=7))
@settings(max_examples=40)
def test_the_bit_aware_mean_is_that_of_a_loop_over_values(
    found: list[Update], bits: list[int]
) -> None:
    found = [replace(u, bits=b) for u, b in zip(found, bits, strict=False)]
    mine = folded(BitAwareMean(SHAPES, 4), found)
    low = [u.bits <= 4 for u in found]
    for name in mine.delta:
        changes, weights = dense(found, name)
        for at in np.ndindex(*SHAPES[name]):
            values, share = changes[(slice(None), *at)], weights[(slice(None), *at)].copy()
            high = [k for k, v in enumerate(values) if not low[k] and not np.isnan(v)]
            if high:
                mean = float(share[high] @ values[high] / share[high].sum())
                for k, value in enumerate(values):
                    if low[k] and np.sign(value) != np.sign(mean):
                        share[k] = 0
            if share.sum() > 0:
                expected = np.nansum(share * np.nan_to_num(values)) / share.sum()
                assert float(mine.delta[name][at]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"rule": "trimmed_mean", "trim": 0.5}, "aggregation.trim"),
        ({"rule": "mean", "trim": 0.1}, "used with rule = trimmed_mean only; rule is mean"),
        ({"rule": "krum"}, "aggregation.liars is needed"),
        ({"rule": "krum", "liars": 4}, "needs at least 11 updates a round"),
        ({"rule": "median", "disco_a": 1}, "used with weights = disco only"),
        ({"clip": 0.5}, "aggregation.clip"),
        ({"rule": "sum"}, "aggregation.rule"),
        ({"trimm": 1}, "did you mean 'trim'"),
    ],
)
def test_a_rule_that_cannot_hold_what_it_says_is_refused(
    table: dict[str, object], words: str
) -> None:
    fields = {"classes": {"phone": {}}, "aggregation": table, "round": {"min_replies": 10}}
    with pytest.raises(UsageError, match=words):
        parse_config(fields)
