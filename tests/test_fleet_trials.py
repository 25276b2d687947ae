"""The benchmarks of unequal fleets: liars lie as they say, trials change what they name."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from fedofa.benchmarks import fleet_trials, trials
from fedofa.benchmarks.aggregate import RULES, bench_aggregate
from fedofa.benchmarks.fleet_trials import bench_heterogeneity, bench_robust
from fedofa.benchmarks.kept import Kept
from fedofa.benchmarks.liars import KINDS, LIES, Liars
from fedofa.benchmarks.trials import Trial, run_all, run_trial, with_proxy_data
from fedofa.client.partition import long_tail
from fedofa.protos.data import client_data
from fedofa.protos.device import DataSource
from fedofa.server.exchange import Answer, Request
from fedofa.supernet.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st
from test_accuracy_bench import TASK


def test_each_lie_is_what_its_name_says() -> None:
    sent, new = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert LIES["sign-flipped x10"](sent, new).tolist() == [-10] * 4
    assert LIES["scaled x1e6"](sent, new).tolist() == [1e6] * 4
    assert np.isnan(LIES["NaN"](sent, new)).tolist() == [False, False, True, False]
    assert LIES["wrong shape"](sent, new).shape == (2,)
    assert LIES["constant"](sent, new).tolist() == pytest.approx([0.1] * 4)


def test_only_liars_lie_and_a_replay_is_the_first_update_again() -> None:
    body: Any = object()
    liars = Liars("replay", frozenset({1}))
    for turn in range(3):
        values = np.full(2, turn, np.float32)
        honest = liars(Request(0, body), Answer(0, body, values))
        replayed = liars(Request(1, body), Answer(1, body, values))
        assert honest.values is values
        assert replayed.values is not None
        assert replayed.values.tolist() == [0, 0]


def test_old_values_come_under_a_fresh_header() -> None:
    body: Any = object()
    liars = Liars("old values", frozenset({1}))
    for turn in range(3):
        sent = np.full(2, 10.0 * turn, np.float32)
        header: Any = object()
        found = liars(Request(1, body, sent), Answer(1, header, sent + 1 + turn))
        assert found.body is header
        assert found.values is not None
        assert (found.values - sent).tolist() == [1, 1]


@given(
    st.lists(st.integers(0, 4), min_size=50, max_size=300).map(np.array),
    st.floats(1, 30),
    st.integers(0, 99),
)
def test_a_long_tail_keeps_the_first_class_and_thins_the_last(
    labels: Any, ratio: float, seed: int
) -> None:
    rows = long_tail(labels, ratio, seed)
    assert len(set(rows.tolist())) == len(rows)
    before, after = np.bincount(labels, minlength=5), np.bincount(labels[rows], minlength=5)
    present = np.flatnonzero(before)
    assert after[present[0]] == before[present[0]]
    assert after[present[-1]] == (
        max(1, round(before[present[-1]] / ratio)) if len(present) > 1 else before[present[0]]
    )
    with pytest.raises(UsageError, match=r"tail = 0\.5"):
        long_tail(labels, 0.5, 0)


@pytest.fixture
def on_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TASKS", MappingProxyType({"fashion": TASK}))


@pytest.mark.usefixtures("on_digits")
def test_a_trial_with_a_liar_ends_finite_and_names_it() -> None:
    sections = {
        "aggregation": {"rule": "trimmed_mean", "trim": 0.3, "clip": 2.0},
        "reputation": {"strikes": 0},
    }
    found = run_trial(
        Trial("lied to", sections, liars=("NaN", 1), budget_macs=2e8, low_bits=8), seed=0
    )
    assert found["finite"]
    assert found["named"].get("client-03") == found["rounds"]
    assert 0 < found["mean"] <= 1
    assert len(found["accuracy"]) == 4


def test_a_proxy_table_is_told_where_its_examples_are_and_others_get_none() -> None:
    source = TASK.source(3)
    plain = Trial("plain", {"server": {"shrink": 0.9}}, reserved=100)
    assert with_proxy_data(plain, source) == {"server": {"shrink": 0.9}}
    tuning = Trial("tuning", {"proxy": {"tune_epochs": 2}}, reserved=100)
    found = with_proxy_data(tuning, source)["proxy"]
    assert found.pop("tune_epochs") == 2
    data = client_data(DataSource(found["data"], found["data_root"], 0, 1, found["arguments"]))
    everybody = [
        client_data(
            DataSource(source.function, source.root, c, TASK.clients, {"seed": 3, "reserved": 100})
        )
        for c in range(TASK.clients)
    ]
    theirs = {x.tobytes() for one in everybody for p in (one.train, one.validation) for x in p.x}
    assert len(data.train) == 100
    assert not theirs & {x.tobytes() for x in data.train.x}


def test_tables_are_made_of_paired_differences() -> None:
    def made(given: Any) -> list[dict[str, Any]]:
        return [
            {
                "trial": trial.name, "seed": seed, "mean": 0.8 + 0.01 * seed - 0.1 * bool(trial.liars),
                "finite": True, "named": {"client-03": 9, "client-07": 1}, "train_macs": 1e12,
            }
            for trial in given for seed in (0, 1, 2)
        ]  # fmt: skip

    _, rows = bench_robust(made)
    assert {row["against clean mean"] for row in rows} == {"+0.00 ± 0.00", "-10.00 ± 0.00"}
    assert all(row["against its own clean"] == row["against clean mean"] for row in rows)
    one = next(row for row in rows if row["trial"] == "clip + trimmed mean: 1 NaN")
    assert (one["liars named"], one["others named"]) == ("3/3", 0)
    four = next(row for row in rows if row["trial"] == "clip + median: 4 constant")
    assert four["liars named"] == "3/12"
    assert all(any(kind in row["trial"] for row in rows) for kind in KINDS)
    _, others = bench_heterogeneity(made)
    assert {row["against plain"] for row in others} == {"", "+0.00 ± 0.00"}


def test_the_table_of_codecs_counts_bytes_both_ways() -> None:
    def made(given: Any) -> list[dict[str, Any]]:
        return [
            {
                "trial": trial.name, "seed": seed, "mean": 0.8, "rounds": 2,
                "bytes_sent": 3e6 if "downlink" in trial.sections else 1.2e7,
                "bytes_received": 1e6 if "codec" in trial.sections else 8e6,
            }
            for trial in given for seed in (0, 1)
        ]  # fmt: skip

    _, rows = fleet_trials.bench_codec(made)
    found = {row["codec"]: (row["fewer than none"], row["fewer down"]) for row in rows}
    assert found["none"] == ("1", "1.0")
    assert found["sparse"] == ("8", "1.0")
    assert found["none, int8 down"] == ("1", "4.0")
    assert found["qsgd, int8 down"] == ("8", "4.0")
    assert all(float(row["encode MB/s"]) > 0 for row in rows if row["codec"].startswith("sparse"))


@pytest.mark.usefixtures("on_digits")
def test_a_trial_with_a_codec_each_way_sends_less_each_way() -> None:
    coded = {"codec": "sparse", "downlink": "fedzip"}
    plain, both = (
        run_trial(Trial(name, sections, budget_macs=2e8), seed=0)
        for name, sections in (("plain", {}), ("both ways", coded))
    )
    assert both["bytes_sent"] < plain["bytes_sent"]
    assert 20 * both["bytes_received"] < plain["bytes_received"]


@pytest.mark.slow
def test_every_rule_is_timed_against_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = ("mean", "mean, messages")
    monkeypatch.setattr("fedofa.benchmarks.aggregate.COUNTS", (3,))
    monkeypatch.setattr("fedofa.benchmarks.aggregate.REPEATS", 1)
    monkeypatch.setattr(
        "fedofa.benchmarks.aggregate.RULES",
        MappingProxyType({name: RULES[name] for name in rules}),
    )
    rows = bench_aggregate()
    assert [row["rule"] for row in rows] == ["numpy running mean", *rules]
    assert all(row["cpu_s"] > 0 and row["GB_per_s"] > 0 for row in rows)
    assert all(2 <= row["supernets"] < 4 for row in rows[1:2])


def test_trials_that_ended_are_not_run_again_but_with_other_code(tmp_path: Path) -> None:
    path, trial = tmp_path / "results" / "found.jsonl", Trial("one", {"round": {"rounds": 2}})
    record = {"trial": "one", "seed": 3, "mean": 0.5, "cpu_seconds": 1.0}
    kept = Kept(path, "abc")
    assert kept.find(trial, 3) is None
    noted = kept.add(trial, record)
    with path.open("a") as file:
        file.write('{"trial": "cut sho')
    again = Kept(path, "abc")
    assert run_all([trial], [3], 1, again) == [noted]
    again.add(trial, {**record, "seed": 5})
    assert Kept(path, "abc").find(trial, 5)
    assert again.find(trial, 4) is None
    assert again.find(replace(trial, budget_macs=1e9), 3) is None
    assert Kept(path, "abcd").find(trial, 3) is None
    for unclear in ("", "abc+"):
        Kept(path, unclear).add(trial, {**record, "seed": 9})
        assert Kept(path, unclear).find(trial, 9) is None
    path.write_text("cut sho\n" + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UsageError, match=r"found\.jsonl, line 1 is no JSON"):
        Kept(path, "abc")


@pytest.mark.usefixtures("on_digits")
def test_a_trial_is_written_down_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    trial = Trial("short", budget_macs=1e7)
    kept = Kept(tmp_path / "found.jsonl", "abc")
    (found,) = run_all([trial], [0], 1, kept)
    again = Kept(tmp_path / "found.jsonl", "abc").find(trial, 0)
    assert again == {**found, "accuracy": list(found["accuracy"])}
