"""A fleet's plan: nothing breaks a bound, nobody is forgotten, and few artifacts cost little."""

import itertools
import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from fedofa.protos.manifest import FILE_NAMES
from fedofa.specialize.fleet import candidates as search_of_candidates
from fedofa.specialize.fleet import plan as plan_of_fleet
from fedofa.specialize.fleet.candidates import Accuracies, candidates
from fedofa.specialize.fleet.climb import Climb
from fedofa.specialize.fleet.columns import (
    VALUE_BYTES,
    Columns,
    energy,
    file_bytes,
    latency,
    operator,
)
from fedofa.specialize.fleet.demand import LEAST, MOST, Bound, Demand
from fedofa.specialize.fleet.misses import miss, overshoots
from fedofa.specialize.fleet.opening import Market, opened
from fedofa.specialize.fleet.plan import Artifact, Placed, Plan, plan_fleet
from fedofa.specialize.fleet.settle import settled
from fedofa.specialize.fleet.shares import Hosted, divided
from fedofa.specialize.fleet.table import Table, table_of
from fedofa.specialize.predictors.contract import Sample
from fedofa.specialize.predictors.linear import fit
from fedofa.specialize.search.gate import Gate
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.space import Arch, Space
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DIGITS
from toy_search import ALL, TOY, linear_truth, macs_of

KINDS = ("onnx_fp32", "tflite_int8")
NAMES = ("macs", "file_bytes", "latency_ms", "energy_mj")
numbers = st.integers(1, 6).map(float)


@st.composite
def tables(draw: st.DrawFn, most: int = 9) -> Table:
    count = draw(st.integers(1, most))
    columns = {
        name: np.array(draw(st.lists(numbers, min_size=count, max_size=count)))
        for name in (*NAMES, "operator:hswish")
    }
    columns["operator:hswish"] = np.maximum(columns["operator:hswish"] - 4, 0)
    columns |= {f"file_bytes:{kind}": columns["file_bytes"] for kind in KINDS}
    accuracy = np.array(draw(st.lists(numbers, min_size=count, max_size=count))) / 10
    return table_of(ALL[:count], accuracy, columns)


@st.composite
def fleets(draw: st.DrawFn, most: int = 7) -> list[Demand]:
    found = []
    for place in range(draw(st.integers(1, most))):
        names = draw(st.sets(st.sampled_from(NAMES), max_size=3))
        found.append(
            Demand(
                f"device-{place}",
                draw(st.sampled_from(KINDS)),
                tuple(
                    Bound(name, draw(numbers), name, draw(st.sampled_from([1.0, 0.7, 1.1])))
                    for name in sorted(names)
                ),
                draw(st.sampled_from([frozenset[str](), frozenset({"operator:hswish"})])),
                draw(st.sampled_from([1.0, 2.5])),
            )
        )
    return found


def keeps(demand: Demand, columns: dict[str, float]) -> bool:
    """The bounds as a person reads them, one by one."""
    spent = all(columns[b.column] * b.factor <= b.limit for b in demand.bounds)
    return spent and all(columns[name] == 0 for name in demand.lacks)


def row(table: Table, place: int) -> dict[str, float]:
    return {name: float(values[place]) for name, values in table.columns.items()}


def fitting(table: Table, demand: Demand) -> list[int]:
    return [at for at in range(len(table.archs)) if keeps(demand, row(table, at))]


@given(tables(), fleets(), st.integers(1, 5))
def test_a_plan_keeps_every_bound_and_forgets_nobody(
    table: Table, demands: list[Demand], most: int
) -> None:
    plan = plan_fleet(table, demands, most)
    assert len(plan.artifacts) <= most
    assert plan == plan_fleet(table, demands, most)
    for one in plan.placed:
        artifact = plan.artifacts[one.artifact]
        assert artifact.kind == one.demand.kind
        assert keeps(one.demand, dict(artifact.columns))
        best = max(float(table.accuracy[at]) for at in fitting(table, one.demand))
        assert one.best == best >= artifact.accuracy
    assert (plan.losses >= 0).all()
    assert {one.artifact for one in plan.placed} == set(range(len(plan.artifacts)))
    for refused in plan.refused:
        assert not fitting(table, refused.demand)
    for demand in plan.unserved:
        assert fitting(table, demand)
        assert not any(
            keeps(demand, dict(a.columns)) for a in plan.artifacts if a.kind == demand.kind
        )
    named = [d.device for d in (*(p.demand for p in plan.placed), *plan.unserved)]
    named += [one.demand.device for one in plan.refused]
    assert sorted(named) == sorted(d.device for d in demands)


@given(tables(), fleets())
def test_with_an_artifact_for_each_nothing_is_lost(table: Table, demands: list[Demand]) -> None:
    plan = plan_fleet(table, demands, len(demands))
    assert not plan.losses.any()
    assert not plan.unserved
    assert len(plan.artifacts) <= plan.distinct <= len(demands)


@given(tables(), fleets())
def test_a_front_loses_nothing_for_devices_that_bound_its_columns(
    table: Table, demands: list[Demand]
) -> None:
    front = table.front({"macs"}.union(*(demand.columns for demand in demands)))
    for demand in demands:
        whole, part = fitting(table, demand), fitting(front, demand)
        assert bool(whole) == bool(part)
        if whole:
            assert table.accuracy[whole[0]] == front.accuracy[part[0]]
            assert front.fitting([demand])[:, 0].argmax() == part[0]


# ── which few to open ────────────────────────────────────────────────────────────────────────────


@st.composite
def markets(draw: st.DrawFn) -> list[Market]:
    found = []
    for _ in range(draw(st.integers(1, 2))):
        candidates, groups = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        cells = st.lists(st.booleans(), min_size=groups, max_size=groups)
        fits = np.array(draw(st.lists(cells, min_size=candidates, max_size=candidates)))
        accuracy = draw(st.lists(numbers, min_size=candidates, max_size=candidates))
        counts = np.array(draw(st.lists(numbers, min_size=groups, max_size=groups)))
        weights = counts * np.array(draw(st.lists(numbers, min_size=groups, max_size=groups)))
        found.append(Market(fits, np.array(sorted(accuracy, reverse=True)), counts, weights))
    return found


def worth(markets: Sequence[Market], places: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Devices served, and weighted accuracy above that of the least accurate candidate."""
    low = min(float(m.accuracy.min()) for m in markets)
    served = value = 0.0
    for number, market in enumerate(markets):
        for group in range(len(market.count)):
            mine = [market.accuracy[c] for n, c in places if n == number and market.fits[c, group]]
            served += market.count[group] if mine else 0
            value += market.weight[group] * (max(mine, default=low) - low)
    return float(served), float(value)


@given(markets(), st.integers(1, 3))
def test_few_candidates_are_within_the_classical_bound_of_the_best_ones(
    found: list[Market], most: int
) -> None:
    places = [(n, c) for n, m in enumerate(found) for c in range(len(m.accuracy))]
    subsets = [s for k in range(1, most + 1) for s in itertools.combinations(places, k)]
    chosen = opened(found, most)
    assert len(set(chosen)) == len(chosen) <= most
    served, value = worth(found, chosen)
    most_served = max(worth(found, subset)[0] for subset in subsets)
    assert served >= (1 - 1 / math.e) * most_served - 1e-9
    if all(m.fits.all() for m in found) and len(found) == 1:  # coverage decides nothing
        best = max(worth(found, subset)[1] for subset in subsets)
        assert value >= (1 - 1 / math.e) * best - 1e-9
    # No single swap that serves as many is better.
    for out, new in itertools.product(chosen, places):
        other = worth(found, [new if place == out else place for place in chosen])
        assert other <= (served, value + 1e-6)


@given(markets(), st.integers(1, 3))
def test_where_all_are_served_anyway_accuracy_is_within_the_bound(
    found: list[Market], most: int
) -> None:
    """The last candidate of each market fits everybody, and costs no place."""
    for market in found:
        market.fits[-1] = True
    chosen = opened(found, most + len(found))
    places = [(n, c) for n, m in enumerate(found) for c in range(len(m.accuracy))]
    best = max(
        worth(found, subset)[1] for subset in itertools.combinations(places, min(most, len(places)))
    )
    served, value = worth(found, chosen)
    assert served == sum(float(m.count.sum()) for m in found)
    assert value >= (1 - 1 / math.e) * best - 1e-9


def test_what_no_device_looks_up_is_not_made() -> None:
    """Greed takes the middle one first; the two others serve everybody better then."""
    columns = {"macs": np.ones(3), "x": np.array([0.0, 1.0, 0.5]), "y": np.array([1.0, 0.0, 0.5])}
    table = table_of(ALL[:3], np.array([0.9, 0.9, 0.8]), columns)
    demands = [Demand(name, "onnx_fp32", (Bound(name, 0.5, name),)) for name in "xy"]
    plan = plan_fleet(table, demands, 3)
    assert {one.artifact for one in plan.placed} == set(range(len(plan.artifacts)))
    assert len(plan.artifacts) == 2
    assert not plan.losses.any()


def test_a_swap_repairs_what_greed_chose_first() -> None:
    """The middle one is best alone; with two, the outer ones are perfect."""
    fits = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=bool)
    fits = np.vstack([fits, np.ones((1, 4), dtype=bool)])
    ones = np.ones(4)
    market = Market(fits, np.array([0.9, 0.9, 0.8, 0.7, 0.1]), ones, ones)
    assert opened([market], 1) == [(0, 2)]
    assert opened([market], 2) == [(0, 0), (0, 1)]


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_the_most_of_a_column_is_the_last_number_that_keeps_the_bound(
    limit: float, factor: float
) -> None:
    most = Bound("latency_ms", limit, "macs", factor).most
    assert most * factor <= limit < math.nextafter(most, math.inf) * factor


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_is_a_number_above_zero(value: float) -> None:
    for change in ({"limit": value}, {"factor": value}):
        with pytest.raises(UsageError, match="macs"):
            Bound(**{"name": "macs", "limit": 1.0, "column": "macs", "factor": 1.0, **change})


@given(tables(), fleets(1))
def test_what_is_nearest_overshoots_as_the_gate_has_it(table: Table, demands: list[Demand]) -> None:
    demand = demands[0]
    if fitting(table, demand):
        return
    found = miss(table, demand)
    if found.lacking:
        assert not found.broken
        assert set(found.lacking) <= demand.lacks
        return
    limits = {bound.name: bound.limit for bound in demand.bounds}
    spent = {b.name: table.columns[b.column] * b.factor for b in demand.bounds}
    gate = Gate(limits, {name: float(values.max()) for name, values in spent.items()})
    runs = [
        a for a in range(len(table.archs)) if all(table.columns[n][a] == 0 for n in demand.lacks)
    ]
    one_by_one = [gate.overshoot({n: float(v[at]) for n, v in spent.items()}) for at in runs]
    assert found.overshoot == pytest.approx(min(one_by_one))
    assert overshoots(gate, spent)[runs] == pytest.approx(one_by_one)
    assert found.broken
    alone = [any(spent[name][at] <= limit for at in runs) for name, limit in limits.items()]
    assert found.contradict == all(alone)


# ── gateways ─────────────────────────────────────────────────────────────────────────────────────


@given(tables(), fleets(4), st.integers(2, 14).map(float), st.integers(1, 6).map(float))
def test_the_models_of_a_gateway_keep_its_budget_together(
    table: Table, demands: list[Demand], limit: float, memory: float
) -> None:
    columns = {**table.columns, "peak_activation_bytes": table.columns["latency_ms"]}
    table = table_of(table.archs, table.accuracy, columns)
    limits = {"file_bytes": limit, "energy_mj": 2 * limit, "peak_activation_bytes": memory}
    shared = {
        "file_bytes": ("file_bytes", 1.0),
        "energy_mj": ("energy_mj", 1.1),
        "peak_activation_bytes": ("peak_activation_bytes", 1.0),
    }
    hosted = [Hosted(demand, shared) for demand in demands]
    # Memory is not shared, so what does not fit in it fits nowhere; of the others all are hosted.
    small = table.columns["peak_activation_bytes"] <= memory
    own = {d.device: [at for at in fitting(table, d) if small[at]] for d in demands}
    able = [demand for demand in demands if own[demand.device]]
    least = {
        name: sum(min(table.columns[column][at] * factor for at in own[d.device]) for d in able)
        for name, (column, factor) in shared.items()
    }
    try:
        shares, refused = divided("hub", limits, hosted, [table] * len(demands))
    except UsageError:
        # Columns disagree here on what is smallest, so only sums beyond each bound are sure.
        assert any(least[name] > limits[name] for name in shared) or len(table.archs) > 1
        return
    assert [one.device for one in shares] == [one.device for one in able]
    assert len(refused) == len(demands) - len(able)
    assert all(least[name] <= limits[name] * (1 + 1e-9) for name in ("file_bytes", "energy_mj"))
    demands = able
    plan = plan_fleet(table, shares, 2)
    assert not plan.refused  # each share holds at least the model's smallest
    placed = [plan.artifacts[one.artifact].columns for one in plan.placed]
    for name, (column, factor) in shared.items():
        spent = [each[column] * factor for each in placed]
        if name == "peak_activation_bytes":
            assert max(spent, default=0.0) <= memory
        else:
            assert math.fsum(spent) <= limits[name] * (1 + 1e-9)
    added = [set(share.bounds) - set(d.bounds) for share, d in zip(shares, demands, strict=True)]
    assert all(set(d.bounds) <= set(share.bounds) for share, d in zip(shares, demands, strict=True))
    # Whatever they are given later, they cannot exceed it: their shares do not.
    for name in ("file_bytes", "energy_mj"):
        parts = [bound.limit for mine in added for bound in mine if bound.column == shared[name][0]]
        assert math.fsum(parts) <= limits[name] * (1 + 1e-9)


def plain_climb(
    weights: Sequence[float], accuracy: Sequence[Any], spent: Sequence[Any], fits: Sequence[Any],
    chosen: list[int],
) -> None:  # fmt: skip
    """As it is described: of all steps of all models the best that fits, anew after each."""
    while True:
        total = np.sum([mine[place] for mine, place in zip(spent, chosen, strict=True)], axis=0)
        best, step = 0.0, None
        for number, now in enumerate(chosen):
            gain = weights[number] * (accuracy[number] - accuracy[number][now])
            more = spent[number] - spent[number][now]
            can = (gain > 0) & ((total + more) <= 1).all(axis=1) & fits[number]
            worth = np.where(can, gain / np.maximum(more.sum(axis=1), 1e-9), 0.0)
            if worth.max() > best:
                best, step = float(worth.max()), (number, int(worth.argmax()))
        if step is None:
            return
        chosen[step[0]] = step[1]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 12), st.integers(1, 3), st.integers(0, 10**6))
def test_remembered_steps_are_those_of_working_out_all_of_them(
    models: int, candidates: int, bounds: int, seed: int
) -> None:
    """Few different numbers, so that steps tie, and bounds of which a step may free some."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([1.0, 2.5], models).tolist()
    accuracy = [np.sort(rng.integers(1, 9, candidates) / 10)[::-1] for _ in range(models)]
    spent = [rng.integers(1, 6, (candidates, bounds)) / (4.0 * models) for _ in range(models)]
    fits = [rng.random(candidates) < 0.8 for _ in range(models)]
    begin = rng.integers(0, candidates, models).tolist()
    chosen = list(begin)
    plain_climb(weights, accuracy, spent, fits, chosen)
    found = list(begin)
    Climb(weights, accuracy, spent, fits).up(found)
    assert found == chosen


def test_what_fits_a_model_of_a_gateway_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], Table.fitting

    def counted(table: Table, demands: Sequence[Demand]) -> Any:
        asked.extend(demands)
        return real(table, demands)

    monkeypatch.setattr(Table, "fitting", counted)
    accuracy, macs = np.linspace(0.9, 0.5, 20), np.linspace(20.0, 1.0, 20)
    table = table_of(ALL[:20], accuracy, {"macs": macs})
    hosted = [Hosted(Demand(f"m{k}", "onnx_fp32", ()), {"macs": ("macs", 1.0)}) for k in range(8)]
    divided("hub", {"macs": 90.0}, hosted, [table] * 8)
    assert [one.device for one in asked] == [one.demand.device for one in hosted]


def test_a_model_that_nothing_fits_leaves_the_gateway_to_the_others() -> None:
    table = table_of(ALL[:2], np.array([0.9, 0.5]), {"macs": np.array([9.0, 3.0])})
    demands = [Demand(n, "onnx_fp32", ()) for n in "ab"]
    demands.insert(1, Demand("greedy", "onnx_fp32", (Bound("macs", 2.0, "macs"),)))
    hosted = [Hosted(demand, {"macs": ("macs", 1.0)}) for demand in demands]
    shares, (refused,) = divided("hub", {"macs": 12.0}, hosted, [table] * 3)
    assert [share.device for share in shares] == ["a", "b"]
    assert [share.most["macs"] for share in shares] == pytest.approx([9.0, 3.0])
    assert refused.demand.device == "greedy"
    assert refused.miss is not None
    assert refused.miss.broken == ("macs 3 > 2",)


def test_what_a_gateway_has_left_over_is_divided_equally() -> None:
    table = table_of(ALL[:1], np.array([0.5]), {"macs": np.array([3.0])})
    hosted = [Hosted(Demand(n, "onnx_fp32", ()), {"macs": ("macs", 1.0)}) for n in "ab"]
    shares, _ = divided("hub", {"macs": 10.0}, hosted, [table] * 2)
    assert [share.most["macs"] for share in shares] == pytest.approx([5.0, 5.0])


def test_a_gateway_gives_more_to_the_model_that_gains_more() -> None:
    table = table_of(ALL[:3], np.array([0.9, 0.8, 0.5]), {"macs": np.array([9.0, 4.0, 1.0])})
    models = [Demand("light", "onnx_fp32", ()), Demand("heavy", "onnx_fp32", (), weight=9.0)]
    hosted = [Hosted(model, {"macs": ("macs", 1.0)}) for model in models]
    plan = plan_fleet(table, divided("hub", {"macs": 10.0}, hosted, [table, table])[0], 9)
    got = {one.demand.device: plan.artifacts[one.artifact].columns["macs"] for one in plan.placed}
    assert got == {"light": 1.0, "heavy": 9.0}


def test_a_gateway_that_cannot_host_all_its_models_says_what_they_need() -> None:
    table = table_of(ALL[:1], np.array([0.5]), {"macs": np.array([3.0])})
    hosted = [Hosted(Demand(n, "onnx_fp32", ()), {"macs": ("macs", 1.0)}) for n in "abc"]
    with pytest.raises(UsageError, match=r"gateway hub: budget.macs = 8; its 3 models need .* 9"):
        divided("hub", {"macs": 8.0}, hosted, [table] * 3)


# ── files as they are ────────────────────────────────────────────────────────────────────────────


@given(tables(), fleets(), st.data())
def test_devices_settle_on_files_as_they_are(
    table: Table, demands: list[Demand], data: st.DataObject
) -> None:
    demands = [
        Demand(d.device, d.kind, (*d.bounds, Bound("file_bytes", 4.0, f"file_bytes:{d.kind}")))
        for d in demands
        if not any(bound.name == "file_bytes" for bound in d.bounds)
    ]
    plan = plan_fleet(table, demands, 4) if demands else Plan((), (), (), (), 0, {}, 0)
    made = data.draw(st.sets(st.sampled_from(range(len(plan.artifacts))))) if plan.artifacts else ()
    sizes = {at: data.draw(st.integers(1, 6)) for at in sorted(made)}
    placed, refused = settled(plan.artifacts, sizes, plan.placed)
    assert len(placed) + len(refused) == len(plan.placed)
    for one in (*placed, *(Placed(r.demand, -1, 0.0) for r in refused)):
        usable = [
            at
            for at, size in sizes.items()
            if plan.artifacts[at].kind == one.demand.kind
            and keeps(
                one.demand,
                {**plan.artifacts[at].columns, f"file_bytes:{one.demand.kind}": float(size)},
            )
        ]
        if one.artifact < 0:
            assert not usable
        else:
            assert one.artifact in usable
            best = max(plan.artifacts[at].accuracy for at in usable)
            assert plan.artifacts[one.artifact].accuracy == best <= one.best


def test_devices_of_an_artifact_that_failed_move_to_the_next_that_fits() -> None:
    columns = {"macs": 1.0, "file_bytes:onnx_fp32": 5.0}
    artifacts = [Artifact("onnx_fp32", ALL[at], 0.9 - at / 10, columns) for at in range(3)]
    demand = Demand("a", "onnx_fp32", (Bound("file_bytes", 5.0, "file_bytes:onnx_fp32"),))
    placed = [Placed(demand, 0, 0.9)]
    assert settled(artifacts, {0: 5, 1: 5, 2: 5}, placed) == (placed, [])
    assert settled(artifacts, {0: 6, 1: 5, 2: 5}, placed)[0] == [Placed(demand, 1, 0.9)]
    assert settled(artifacts, {2: 5}, placed)[0] == [Placed(demand, 2, 0.9)]
    # A file may be smaller than was reckoned with: a device's own best is what it gets, at least.
    assert settled(artifacts, {0: 5, 1: 5}, [Placed(demand, 1, 0.8)])[0] == [Placed(demand, 0, 0.9)]
    (refused,) = settled(artifacts, {2: 6}, placed)[1]
    assert refused.miss is not None
    assert refused.miss.broken == ("file_bytes 6 > 5",)
    assert settled(artifacts, {}, placed)[1][0].miss is None


# ── candidates ───────────────────────────────────────────────────────────────────────────────────


def test_the_candidates_hold_every_devices_best_of_a_space_that_can_be_listed() -> None:
    truth = linear_truth(TOY, 3)
    samples = [Sample(arch, "all", truth(arch)) for arch in ALL[::7]]
    columns = Columns(TOY, {"file_bytes:tflite_int8": file_bytes("tflite_int8")})
    bounded = {"a": ("macs",), "b": ("file_bytes:tflite_int8", "params")}
    table = candidates(columns, Accuracies(fit, samples), bounded, seed=0)
    again = candidates(columns, Accuracies(fit, samples), bounded, seed=0)
    assert table.archs == again.archs
    assert {TOY.smallest(), TOY.largest(), *(s.arch for s in samples)} <= set(table.archs)
    predicted = fit(TOY, samples).predict(ALL).score
    level = Accuracies(fit, samples).level(Accuracies(fit, samples).scorer(TOY))
    for limit in np.quantile([macs_of(arch) for arch in ALL], [0.0, 0.1, 0.3, 0.6, 1.0]):
        best = max(p for p, arch in zip(predicted, ALL, strict=True) if macs_of(arch) <= limit)
        fits = table.columns["macs"] <= limit
        assert table.accuracy[fits].max() == pytest.approx(best + level)


@pytest.mark.parametrize("runtimes", [1, 12])
def test_measured_subnets_take_nothing_from_the_looks_beside_the_front(
    runtimes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten subnets or of hundreds that were measured, for one runtime or for many."""
    monkeypatch.setattr(search_of_candidates, "LOOKS", 400)
    monkeypatch.setattr(search_of_candidates, "LEAST_LOOKS", 100, raising=False)
    real = search_of_candidates.edits
    edited: list[Arch] = []

    def counted(space: Space, arch: Arch) -> Any:
        edited.append(arch)
        return real(space, arch)

    monkeypatch.setattr(search_of_candidates, "edits", counted)
    rng = Random(0)
    archs = list(dict.fromkeys(DIGITS.sample(rng) for _ in range(500)))
    spent = latency(lambda arch: float(sum(arch.values())))
    figures = {f"latency_ms:{k}": spent for k in range(runtimes)}
    bounded = {str(k): (f"latency_ms:{k}",) for k in range(runtimes)}
    found = []
    for count in (10, len(archs)):
        samples = [Sample(arch, "all", sum(arch.values()) / 1e4) for arch in archs[:count]]
        table = candidates(Columns(DIGITS, figures), Accuracies(fit, samples), bounded, seed=0)
        found.append(len(table.archs) - count)
        assert len(edited) >= runtimes
        edited.clear()
    most = max(400, 100 * runtimes)
    assert all(50 < new <= most + 2 for new in found)


def test_predicted_accuracies_are_on_the_level_of_the_measured_ones() -> None:
    truth = linear_truth(TOY, 1)
    samples = [Sample(arch, "all", truth(arch)) for arch in ALL[::5]]
    accuracies = Accuracies(fit, samples)
    score = accuracies.scorer(TOY)
    found = accuracies.level(score) + score([sample.arch for sample in samples])
    assert found.mean() == pytest.approx(np.mean([sample.accuracy for sample in samples]))


def test_too_few_measured_subnets_are_refused() -> None:
    samples = [Sample(arch, "all", 0.5) for arch in [*ALL[:9], ALL[0]]]
    with pytest.raises(UsageError, match="9 subnets were measured; a predictor needs at least 10"):
        Accuracies(fit, samples).scorer(TOY)


def test_columns_are_what_they_say() -> None:
    arch = TOY.largest()
    spent, plans = cost(TOY, arch), TOY.layers(arch)
    values = sum(plan.in_elements + plan.out_elements for plan in plans)
    figures = {
        "latency_ms:a": latency(lambda _: 0.002),
        "energy_mj:a": energy("onnx_fp32", 3.0, 5.0),
        "energy_mj:b": energy("tflite_int4", 3.0, 5.0),
        "operator:depthwise": operator("depthwise"),
        "operator:gelu": operator("gelu"),
    }
    found = Columns(TOY, figures).table([arch])
    assert found["macs"] == spent.macs
    assert found["latency_ms:a"] == 2.0
    # Picojoules are 1e-9 millijoules; a float value has four bytes, a weight of 4 bits half a byte.
    for name, moved in (("a", 4 * (spent.params + values)), ("b", spent.params / 2 + values)):
        assert found[f"energy_mj:{name}"] == pytest.approx(1e-9 * (3 * spent.macs + 5 * moved))
    assert found["operator:depthwise"] == sum(plan.kind == "depthwise" for plan in plans) > 0
    assert found["operator:gelu"] == 0
    assert VALUE_BYTES.keys() == FILE_NAMES.keys()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_latency_that_is_no_time_is_more_than_any_bound_allows(value: float) -> None:
    columns = Columns(TOY, {"latency_ms:phone": latency(lambda _: value)})
    (found,) = columns.some(["latency_ms:phone"])(TOY.smallest())
    assert Bound("latency_ms", MOST, "latency_ms:phone", LEAST).most < found < math.inf


def test_what_fits_is_looked_up_once_for_devices_of_equal_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mask of a front by devices would be gigabytes for a million of them."""
    asked, real = [], Table.fitting

    def counted(table: Table, demands: Sequence[Demand]) -> Any:
        asked.append(len(demands))
        return real(table, demands)

    monkeypatch.setattr(Table, "fitting", counted)
    table = table_of(ALL[:2], np.array([0.9, 0.5]), {"macs": np.array([4.0, 1.0])})
    demands = [
        Demand(f"d{k}", "onnx_fp32", (Bound("macs", 1.0 + k % 3, "macs"),)) for k in range(300)
    ]
    assert len(plan_fleet(table, demands, 2).placed) == 300
    assert asked == [3]
    monkeypatch.setattr(plan_of_fleet, "MOST_NEEDS", 2)
    with pytest.raises(UsageError, match="3 different sets of bounds; at most 2 are planned for"):
        plan_fleet(table, demands, 2)


@settings(deadline=None)
@given(st.integers(2, 60))
def test_many_devices_of_one_budget_are_one_group(count: int) -> None:
    table = table_of(ALL[:2], np.array([0.9, 0.5]), {"macs": np.array([4.0, 1.0])})
    demands = [
        Demand(f"d{place}", "onnx_fp32", (Bound("macs", 4.0 if place % 2 else 1.0, "macs"),))
        for place in range(count)
    ]
    plan = plan_fleet(table, demands, 1)
    assert [one.demand.device for one in plan.placed] == [d.device for d in demands]
    assert plan.losses.sum() == pytest.approx(0.4 * (count // 2))
