"""Sampling methods: within every budget, reproducible, and each what its paper says."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.batches import Step
from fedofa.client.students import Students
from fedofa.protos.recipe import Recipe
from fedofa.server.assignment import assign
from fedofa.server.coverage import Coverage
from fedofa.server.limits import Limits
from fedofa.server.samplers.assigned import Assigned, Client, Outcome, Round
from fedofa.server.samplers.budget_bins import BudgetBins
from fedofa.server.samplers.catalogue import SAMPLERS, SamplerConfig
from fedofa.server.samplers.delayed import Delayed
from fedofa.server.samplers.drawing import ladder
from fedofa.server.samplers.floor import Place, smallest_with, with_floor
from fedofa.server.samplers.importance import Importance
from fedofa.server.samplers.maxnet import MaxNet
from fedofa.server.samplers.preselect import saliency, score
from fedofa.supernet.axes import layout, regions, take
from fedofa.supernet.batch import Batch
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.mobilenet import MobileNetSpace, Stage
from fedofa.supernet.randomness import stream
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.weights import initial
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DIGITS, SMALL

BATCH = 16
TINY = MobileNetSpace(
    classes=2,
    in_channels=1,
    resolutions=(8,),
    stem_widths=(4, 8),
    stages=(Stage((4, 8), (1, 2), (1, 2), (3, 5)),),
    head_widths=(8,),
    divisor=4,
)
KINDS = sorted(SAMPLERS)


def limits(space: Space, share: float) -> Limits:
    """A MAC budget at a share of the way from the smallest to the largest subnet."""
    low, high = (cost(space, a).macs for a in (space.smallest(), space.largest()))
    return Limits(Budget(macs=round(low + share * (high - low))), BATCH)


def fleet(space: Space, *shares: float) -> list[Client]:
    return [
        Client(f"client-{place}", space, limits(space, share), 10 * (place + 1))
        for place, share in enumerate(shares)
    ]


def this_round(
    clients: list[Client], number: int = 1, rounds: int = 10, seed: int = 0, **fields: Any
) -> Round:
    return Round(clients[0].space, clients, number, rounds, seed, **fields)


def assigned(kind: str, this: Round, **settings: Any) -> dict[str, Assigned]:
    config = SamplerConfig(kind=kind, **settings)  # type: ignore[arg-type]
    return assign(config, this, Coverage(layout(this.space)).ages)


shares = st.lists(st.floats(0, 1), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@given(shares=shares, number=st.integers(1, 10), seed=st.integers(0, 5))
@settings(max_examples=8)
def test_every_method_keeps_to_every_clients_budget(
    kind: str, shares: list[float], number: int, seed: int
) -> None:
    clients = fleet(DIGITS, *shares)
    chosen = assigned(kind, this_round(clients, number, seed=seed))
    assert chosen.keys() == {client.name for client in clients}
    for client in clients:
        mine = chosen[client.name]
        assert client.fits(mine.arch)
        assert mine.weight > 0
        assert all(DIGITS.contains(mine.arch, student) for student in mine.students or ())


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_depends_on_seed_and_round_and_nothing_else(kind: str) -> None:
    clients = fleet(SMALL, 0.1, 0.5, 1.0)
    first = assigned(kind, this_round(clients, 4))
    random.seed(7)
    assert assigned(kind, this_round(clients, 4)) == first


def archs(space: Space) -> list[Arch]:
    rng = random.Random(0)
    return list(dict.fromkeys(space.sample(rng) for _ in range(4000)))


def test_uniform_draws_are_uniform_over_what_fits() -> None:
    clients = fleet(TINY, 0.3)
    drawn = Counter(
        assigned("uniform", this_round(clients, number)).popitem()[1].arch
        for number in range(1, 1201)
    )
    # Gene by gene uniform: architectures of fewer genes are likelier, in a known proportion.
    expected = {}
    for arch in archs(TINY):
        if clients[0].fits(arch):
            expected[arch] = np.prod([1 / len(g.options) for g in TINY.genes if g.name in arch])
    total = sum(expected.values())
    assert set(drawn) <= set(expected)
    chi = sum(
        (drawn[arch] - 1200 * p / total) ** 2 / (1200 * p / total) for arch, p in expected.items()
    )
    assert chi < 2 * len(expected) + 20


@pytest.mark.parametrize("space", [DIGITS, SMALL])
def test_the_ladder_is_nested_from_the_smallest_to_the_largest(space: Space) -> None:
    rungs = ladder(space)
    assert rungs[0] == space.smallest()
    assert rungs[-1] == space.largest()
    for lower, upper in pairwise(rungs):
        assert space.contains(upper, lower)
        assert cost(space, lower).macs < cost(space, upper).macs


def test_static_tiers_never_change_and_are_the_largest_rungs_that_fit() -> None:
    clients = fleet(SMALL, 0.0, 0.4, 1.0)
    found = [assigned("tiers", this_round(clients, number)) for number in (1, 2, 9)]
    assert found[0] == found[1] == found[2]
    rungs = ladder(SMALL)
    for client in clients:
        place = rungs.index(found[0][client.name].arch)
        assert place == len(rungs) - 1 or not client.fits(rungs[place + 1])


def test_nested_widths_list_every_rung_up_to_a_clients_own() -> None:
    clients = fleet(SMALL, 0.3)
    (mine,) = assigned("nested", this_round(clients)).values()
    assert mine.students == ladder(SMALL)[: len(mine.students)]
    assert mine.students[-1] == mine.arch


def test_a_rolled_window_takes_what_numpy_roll_takes() -> None:
    shared = initial(TINY, 0)
    small = TINY.smallest()
    for offset in range(9):
        mine = take(shared, Assigned(small, offset=offset).regions(TINY))
        weight = shared["head.classifier.weight"].numpy()
        assert np.array_equal(mine["head.classifier.weight"].numpy(), weight)
        stem = np.roll(shared["stem.conv.weight"].numpy(), -offset, axis=0)[:4]
        assert np.array_equal(mine["stem.conv.weight"].numpy(), stem)
        depthwise = shared["stages.0.0.depthwise.conv.weight"].numpy()[:, :, 1:4, 1:4]
        found = mine["stages.0.0.depthwise.conv.weight"].numpy()
        full = depthwise.shape[0]
        assert np.array_equal(found, np.roll(depthwise, -offset % full, axis=0)[: len(found)])


def test_rolling_windows_visit_every_channel_with_narrow_clients_alone() -> None:
    narrow = replace(TINY, stages=(Stage((4, 8), (1,), (2,), (3,)),))
    clients = fleet(narrow, 0.0)
    ages = {name: torch.zeros(t.shape, dtype=torch.bool) for name, t in layout(narrow).items()}
    for number in range(1, 17):
        (mine,) = assigned("rolling", this_round(clients, number)).values()
        for name, region in mine.regions(narrow).items():
            grid = np.ix_(*(list(range(9999))[i] if isinstance(i, slice) else i for i in region))
            ages[name].numpy()[grid] = True
    assert all(bool(seen.any(dim=0).all()) for seen in ages.values())
    assert bool(ages["stem.conv.weight"].all())


def test_the_sandwich_spread_over_clients_rotates() -> None:
    clients = fleet(SMALL, 1.0, 1.0, 1.0)
    largest = Counter[str]()
    for number in range(1, 7):
        chosen = assigned("spread_sandwich", this_round(clients, number))
        kinds = [a.arch for a in chosen.values()]
        assert kinds.count(SMALL.smallest()) == 1
        assert SMALL.largest() in kinds
        largest.update(name for name, a in chosen.items() if a.arch == SMALL.largest())
    assert set(largest.values()) == {2}


@pytest.mark.parametrize("kind", ["spread_sandwich", "maxnet"])
def test_only_those_who_can_hold_the_fleets_largest_subnet_play_the_largest(kind: str) -> None:
    clients = fleet(SMALL, 0.1, 0.2, 0.5, 1.0)
    for number in range(1, 9):
        chosen = assigned(kind, this_round(clients, number))
        assert chosen["client-3"].arch == SMALL.largest()
        boosted = [name for name, found in chosen.items() if found.weight > 1]
        assert boosted in ([], ["client-3"])


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_client_is_free_nothing_is_assigned(kind: str) -> None:
    nobody = Round(SMALL, [], 1, 10, 0)
    assert assigned(kind, nobody) == {}


def test_a_client_that_the_floor_moves_counts_like_any_other() -> None:
    clients = fleet(TINY, 1.0, 1.0, 0.2)
    ages = {name: torch.full_like(age, 50) for name, age in Coverage(layout(TINY)).ages.items()}
    this = this_round(clients, 1)
    boosted = {name: replace(found, weight=9.0) for name, found in assigned("tiers", this).items()}
    rolled = {name: replace(found, arch=TINY.smallest()) for name, found in boosted.items()}
    moved = with_floor(this, rolled, ages, 5)
    changed = [name for name in moved if moved[name] != rolled[name]]
    assert changed
    assert all(moved[name].weight == 1.0 for name in changed)


def test_the_ramp_begins_with_the_largest_and_ends_with_random_subnets() -> None:
    clients = fleet(SMALL, 1.0, 1.0, 1.0, 1.0)
    first = assigned("ramp", this_round(clients, 1))
    assert {a.arch for a in first.values()} == {SMALL.largest()}
    last = assigned("ramp", this_round(clients, 10))
    assert SMALL.largest() not in {a.arch for a in last.values()}


def test_the_largest_networks_share_of_the_merge_falls_from_beta_to_what_is_fair() -> None:
    clients = fleet(SMALL, 1.0, 0.2, 0.2)
    for number, share in ((1, 0.9), (10, None)):
        this = this_round(clients, number)
        chosen = MaxNet(share=0.9).assign(this)
        weights = {c.name: c.examples * chosen[c.name].weight for c in clients}
        most = max(clients, key=lambda c: cost(SMALL, chosen[c.name].arch).macs)
        fair = most.examples / sum(c.examples for c in clients)
        found = weights[most.name] / sum(weights.values())
        assert found == pytest.approx(fair if share is None else share)


def test_delayed_shrinking_trains_no_student_first_and_then_ever_more() -> None:
    weights = [Delayed(warm=0.5, ramp=2).student_weight(number, 10) for number in range(1, 11)]
    assert weights == [0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1]


def test_bins_of_cost_are_drawn_alike_until_one_changes_more() -> None:
    sampler = BudgetBins(bins=4, floor=0.05)
    assert sampler.probabilities({}) == pytest.approx([0.25] * 4)
    clients, last = fleet(SMALL, 1.0), 0.25
    this = this_round(clients)
    for _ in range(12):
        outcomes = [
            Outcome(Assigned(arch), 1.0, 10.0 if arch == SMALL.largest() else 1.0)
            for arch in (SMALL.largest(), SMALL.smallest())
        ]
        this = replace(this, memory=sampler.observe(this, outcomes))
        found = sampler.probabilities(this.memory)
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0.05
        assert last <= found[-1] <= 1 - 3 * 0.05
        last = found[-1]
    assert last > 0.4


def test_bins_of_cost_reach_the_dear_bins_that_uniform_draws_hardly_do() -> None:
    clients = fleet(SMALL, 1.0)
    sampler = BudgetBins(bins=5)
    found = {"uniform": Counter[int](), "budget_bins": Counter[int]()}
    for kind, seen in found.items():
        for number in range(1, 201):
            (mine,) = assigned(kind, this_round(clients, number)).values()
            seen[sampler.bin_of(SMALL, mine.arch)] += 1
    assert found["uniform"][4] < 10
    assert all(20 < found["budget_bins"][k] < 60 for k in range(5))


def test_importance_weights_make_up_for_the_draws() -> None:
    """The mean of weight times value over draws is the mean over uniform draws."""
    scores = {
        gene.name: {str(o): 1.0 + 3 * k for k, o in enumerate(gene.options)} for gene in TINY.genes
    }
    sampler = Importance(floor=0.2, clip=1e9)
    table = {gene.name: sampler.probabilities(gene, scores, 0.8) for gene in TINY.genes}
    for gene in TINY.genes:
        assert sum(table[gene.name]) == pytest.approx(1)
        assert min(table[gene.name]) >= 0.2 / len(gene.options)
    mean, uniform, total = 0.0, 0.0, 0.0
    for arch in archs(TINY):
        p, u = 1.0, 1.0
        for gene in TINY.genes:
            if gene.name in arch:
                p *= table[gene.name][gene.options.index(arch[gene.name])]
                u /= len(gene.options)
        value = cost(TINY, arch).macs
        mean += p * sampler.weight(TINY, arch, table) * value
        uniform, total = uniform + u * value, total + p
    assert total == pytest.approx(1)
    assert mean == pytest.approx(uniform)


def test_importance_follows_the_size_of_updates() -> None:
    sampler, this = Importance(), this_round(fleet(TINY, 1.0))
    outcomes = [
        Outcome(Assigned(TINY.largest()), 1.0, 9.0),
        Outcome(Assigned(TINY.smallest()), 1.0, 1.0),
    ]
    memory = sampler.observe(this, outcomes)
    gene = next(g for g in TINY.genes if g.name == "stem.width")
    low, high = sampler.probabilities(gene, memory["scores"], 1.0)
    assert high > 3 * low


def test_only_preselected_targets_are_trained() -> None:
    clients = fleet(SMALL, 0.1, 0.3, 0.6, 1.0)
    common = Recipe(students="random", learn="kl")
    found = assigned("preselect", this_round(clients), candidates=4)
    targets = {mine.arch for mine in found.values()}
    batch = Batch(torch.zeros(2, *SMALL.input_shape(SMALL.largest())), torch.zeros(2))
    lacking = 0
    for mine in found.values():
        recipe = mine.recipe(common)
        students = Students(SMALL, mine.arch, recipe, (0, 1, "d"))
        steps = [Step(epoch, epoch, batch) for epoch in range(20)]
        drawn = {arch for step in steps for arch in students.of(step, lambda _arch: 0.0)}
        assert drawn <= targets
        lacking += not mine.students
    assert lacking  # the weakest has no smaller target; it draws none at all


def test_preselected_targets_are_the_best_of_their_budget_and_stay() -> None:
    clients = fleet(DIGITS, 0.1, 0.5, 0.5)
    found = [assigned("preselect", this_round(clients, number), candidates=12) for number in (1, 5)]
    assert found[0] == found[1]
    assert found[0]["client-1"].arch == found[0]["client-2"].arch
    scores = saliency(DIGITS, 0)
    smaller, larger = DIGITS.smallest(), DIGITS.largest()
    assert 0 < score(DIGITS, smaller, scores) < score(DIGITS, larger, scores)
    rng = stream(0, "preselect")
    from fedofa.server.samplers.drawing import maximal_fit

    drawn = [maximal_fit(DIGITS, clients[0].fits, rng) for _ in range(12)]
    best = max(score(DIGITS, arch, scores) for arch in drawn)
    assert score(DIGITS, found[0]["client-0"].arch, scores) == best


def test_one_subnet_leaves_out_clients_that_cannot_hold_it() -> None:
    clients = fleet(DIGITS, 0.0, 1.0)
    weakest = assigned("single", this_round(clients))
    assert {a.arch for a in weakest.values()} == {DIGITS.smallest()}
    chosen = assigned("single", this_round(clients), arch=dict(DIGITS.largest()))
    assert chosen.keys() == {"client-1"}
    with pytest.raises(UsageError, match="no client can train it"):
        assigned("single", this_round(clients[:1]), arch=dict(DIGITS.largest()))


@pytest.mark.parametrize("kind", ["uniform", "tiers", "preselect", "cover", "rolling"])
def test_with_a_floor_no_weight_waits_longer_while_a_client_could_train_it(kind: str) -> None:
    clients = fleet(DIGITS, 0.2, 1.0)
    coverage = Coverage(layout(DIGITS))
    config = SamplerConfig(kind=kind, coverage_floor=4)  # type: ignore[arg-type]
    for number in range(1, 13):
        chosen = assign(config, this_round(clients, number, 12), coverage.ages)
        assert all(c.fits(chosen[c.name].arch) for c in clients)
        coverage.update(_trained(chosen))
        assert coverage.oldest() < 4


def _trained(chosen: dict[str, Assigned]) -> dict[str, Any]:
    marks = {name: torch.zeros(t.shape, dtype=torch.bool) for name, t in layout(DIGITS).items()}
    for mine in chosen.values():
        for name, region in mine.regions(DIGITS).items():
            grid = np.ix_(*(np.arange(9999)[i] if isinstance(i, slice) else i for i in region))
            marks[name].numpy()[grid] = True
    return marks


def test_a_weight_that_no_client_can_train_is_not_waited_for() -> None:
    clients = fleet(DIGITS, 0.1, 0.1)
    coverage = Coverage(layout(DIGITS))
    config = SamplerConfig(kind="cover", coverage_floor=2)
    for number in range(1, 6):
        chosen = assign(config, this_round(clients, number), coverage.ages)
        assert all(c.fits(chosen[c.name].arch) for c in clients)
        coverage.update(_trained(chosen))
    assert coverage.oldest() == 5


def test_the_smallest_architecture_with_a_weight_has_it_and_no_smaller_one_does() -> None:
    rng = random.Random(0)
    for name, tensor in layout(DIGITS).items():
        place = Place(name, tuple(rng.randrange(n) for n in tensor.shape))
        least = smallest_with(DIGITS, place)
        assert _has(least, place)
        for smaller in DIGITS.shrunk(least):
            grown = [smaller[g] <= least.get(g, smaller[g]) for g in smaller]
            assert not _has(smaller, place) or not all(grown)


def _has(arch: Arch, place: Place) -> bool:
    region = regions(DIGITS, arch).get(place.tensor)
    return region is not None and all(
        at in (range(i.start, i.stop) if isinstance(i, slice) else i)
        for i, at in zip(region, place.position, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_below_every_subnet_is_a_usage_error(kind: str) -> None:
    clients = [Client("poor", DIGITS, Limits(Budget(macs=1), BATCH))]
    with pytest.raises(UsageError, match=r"budget: a client can train no subnet"):
        assigned(kind, this_round(clients, 2))


def growing(clients: list[Client], rounds: int, elastic: float) -> list[dict[str, Arch]]:
    return [
        {
            name: found.arch
            for name, found in assigned(
                "growing", this_round(clients, number, rounds), elastic=elastic
            ).items()
        }
        for number in range(1, rounds + 1)
    ]


def test_growing_starts_with_the_weakest_clients_rung_and_ends_with_everybodys_own() -> None:
    clients = fleet(SMALL, 0.1, 0.4, 1.0)
    own = {name: found.arch for name, found in assigned("tiers", this_round(clients)).items()}
    every = growing(clients, 60, elastic=0.0)
    assert set(every[0].values()) == {own["client-0"]}
    assert every[-1] == own
    assert growing(clients, 1, elastic=0.0) == [own]
    for before, after in pairwise(every):
        for name in own:
            assert SMALL.contains(after[name], before[name])
            assert SMALL.contains(own[name], after[name])


def test_growing_spends_the_same_at_every_level() -> None:
    clients, spent = fleet(SMALL, 0.1, 0.4, 1.0), Counter[Arch]()
    for chosen in growing(clients, 400, elastic=0.0):
        spent[chosen["client-2"]] += sum(cost(SMALL, arch).macs for arch in chosen.values())
    assert len(spent) == 3
    assert max(spent.values()) < 1.1 * min(spent.values())


def test_a_fleet_of_equals_trains_its_rung_from_the_first_round_to_the_last() -> None:
    assert (
        len({arch for chosen in growing(fleet(SMALL, 0.5), 9, 0.0) for arch in chosen.values()})
        == 1
    )


@given(shares=shares, elastic=st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=10)
def test_growing_draws_its_share_of_maximal_subnets_of_no_more_macs(
    shares: list[float], elastic: float
) -> None:
    clients, drawn, total = fleet(SMALL, *shares), 0, 0
    plain, mixed = growing(clients, 20, 0.0), growing(clients, 20, elastic)
    for rungs, chosen in zip(plain, mixed, strict=True):
        for client in clients:
            rung, mine = rungs[client.name], chosen[client.name]
            most = cost(SMALL, rung).macs
            assert cost(SMALL, mine).macs <= most
            total, drawn = total + 1, drawn + (mine != rung)
            if mine != rung:
                for gene in mine:
                    larger = SMALL.step(mine, gene, 1)
                    assert (
                        larger is None or cost(SMALL, larger).macs > most or not client.fits(larger)
                    )
    assert drawn <= elastic * total + 3 * total**0.5


def test_growing_draws_as_many_random_subnets_as_it_is_told() -> None:
    clients = fleet(SMALL, 0.5, 0.6, 1.0)
    plain = growing(clients, 40, 0.0)

    def drawn(elastic: float) -> int:
        pairs = zip(plain, growing(clients, 40, elastic), strict=True)
        return sum(rungs[name] != chosen[name] for rungs, chosen in pairs for name in chosen)

    assert drawn(1.0) > 100  # of 120; a draw may be the rung itself
    assert 10 < drawn(0.25) < 50


def test_each_client_trains_the_largest_expansion_of_the_target_that_it_can_afford() -> None:
    clients = fleet(DIGITS, 0.02, 0.1, 0.3, 1.0)
    target = clients[1].largest(0)
    chosen = assigned("expanded", this_round(clients), arch=dict(target), most=4.0)
    assert chosen.keys() == {"client-1", "client-2", "client-3"}  # one cannot hold the target
    macs = {name: cost(DIGITS, one.arch).macs for name, one in chosen.items()}
    own = cost(DIGITS, target).macs
    for client in clients[1:]:
        one = chosen[client.name]
        assert client.fits(one.arch)
        assert DIGITS.contains(one.arch, target)
        larger = [a for a in DIGITS.grown(one.arch) if client.fits(a)]
        assert all(cost(DIGITS, arch).macs > 4 * own for arch in larger)  # nothing else fits
        assert one.students == (() if one.arch == target else (target,))
    assert chosen["client-1"].arch == target
    assert own < macs["client-2"] <= 4 * own
    assert macs["client-3"] <= 4 * own
    nothing_larger = assigned("expanded", this_round(clients), arch=dict(target), most=1.0)
    assert {one.arch for one in nothing_larger.values()} == {target}
    with pytest.raises(UsageError, match="no client can train it"):
        assigned("expanded", this_round(clients[:1]), arch=dict(target))


@pytest.mark.parametrize("kind", ["growing", "single"])
def test_what_is_decided_for_the_fleet_does_not_hang_on_who_is_free(kind: str) -> None:
    clients = fleet(SMALL, 0.1, 0.4, 1.0)
    settings = {"elastic": 0.0} if kind == "growing" else {}
    for number in range(1, 10):
        everybody = assigned(kind, this_round(clients, number), **settings)
        late = this_round(clients[2:], number, busy=clients[:2])
        assert assigned(kind, late, **settings)["client-2"] == everybody["client-2"]
