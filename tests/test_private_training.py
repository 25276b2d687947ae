"""Whole runs under differential privacy: noise where it belongs, budgets kept over everything."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.protos.messages import TrainReply
from fedofa.protos.noise import GaussianNoise, clipped, norm_of
from fedofa.protos.places import places
from fedofa.server.cli import app as command_line
from fedofa.server.config import RunConfig
from fedofa.server.jobs import Job
from fedofa.server.privacy.accountant import Accountant
from fedofa.server.privacy.rounds import SPENT
from fedofa.server.privacy.statement import promise
from fedofa.server.samplers.assigned import Forgetful
from fedofa.server.samplers.catalogue import FROM_OUTCOMES, SAMPLERS, WEIGHING, SamplerConfig
from fedofa.server.simulate import simulate
from fedofa.supernet.axes import layout, regions
from fedofa.supernet.errors import ArtifactError, RunError, UsageError
from fedofa.supernet.weights import digest, gather, initial, size_of
from fleets import (
    Clients,
    Run,
    grid_of,
    raising,
    run_of,
    sending,
    small_config,
    small_fleet,
    with_nan,
)
from typer.testing import CliRunner

BUDGET: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-3, "clip": 0.5}
CALM = {"steps": 2, "students": "none", "lr": 0.05, "lr_schedule": "constant"}


def private(privacy: Mapping[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A small private run; rounds may be added, since nothing hangs on how many there will be."""
    fields: dict[str, Any] = {
        "recipe": CALM,
        "sampler": {"kind": "tiers"},
        "server": {"optimizer": "none"},
        "aggregation": {"weights": "uniform"},
        "reputation": {"strikes": 0},
        "round": {"rounds": 1},
        "privacy": {**BUDGET, **(privacy or {})},
    }
    return small_config(**{**fields, **changes})


def run_in(folder: Path, config: RunConfig, app: Any = None) -> Run:
    run = run_of(folder, config, *([] if app is None else [app]))
    assert run.training.private is not None
    run.training.private.noise = GaussianNoise(np.random.default_rng(0).bytes)
    return run


def flat(weights: Mapping[str, Any]) -> Any:
    return np.concatenate([tensor.numpy().reshape(-1) for tensor in weights.values()])


def of_all(run: Run, updates: Mapping[Any, tuple[TrainReply, Any]], clip: float | None) -> Any:
    """Sum of the changes, clipped or not, and how many cover each value; float64, flat."""
    space = run.training.space
    before, shapes = initial(space, 0), {n: t.shape for n, t in layout(space).items()}
    total, covered = np.zeros(size_of(shapes)), np.zeros(size_of(shapes))
    for body, values in updates.values():
        where = regions(space, space.arch(body.arch))
        delta: Any = values - gather(before, where)
        at = places(shapes, where)
        total[at] += delta if clip is None else clipped(delta, clip)
        covered[at] += 1
    return total, covered


# What is published


def test_the_published_change_is_the_clipped_sum_and_noise_over_the_assigned(
    tmp_path: Path,
) -> None:
    clients = Clients()
    run = run_in(tmp_path, private(), clients).start()
    assert run.training.private is not None
    total, covered = of_all(run, clients.passed, 0.5)
    moved = flat(run.training.weights).astype(float) - flat(initial(run.training.space, 0))
    std = run.training.private.plan.sum_multiplier * 0.5
    assert set(np.unique(covered)) == {1.0, 3.0}
    for count in (1.0, 3.0):
        noise = (moved * covered - total)[covered == count]
        assert len(noise) > 500
        assert np.std(noise) == pytest.approx(std, rel=0.1)
        assert abs(np.mean(noise)) < 5 * std / math.sqrt(len(noise))
    (told,) = run.events("round")
    assert told["epsilon"] == pytest.approx(8.0, abs=1e-3)


def test_devices_noise_their_own_updates_and_the_server_adds_none(tmp_path: Path) -> None:
    plain, noised = Clients(), Clients()
    config = small_config(
        recipe=CALM, sampler={"kind": "tiers"}, server={"optimizer": "none"}, round={"rounds": 1}
    )
    run_of(tmp_path / "plain", config, plain).start()
    # Noise may move weights further than an update may that has none.
    config = private({"mode": "local", "clip": 0.01}, round={"rounds": 1, "max_update_ratio": 1e-4})
    run = run_in(tmp_path / "noised", config, noised).start()
    assert run.training.private is not None
    std, space = run.training.private.plan.sum_multiplier * 0.01, run.training.space
    for key, (body, values) in noised.passed.items():
        sent = gather(initial(space, 0), regions(space, space.arch(body.arch)))
        honest_change: Any = plain.passed[key][1] - sent
        own = values - sent - clipped(honest_change, 0.01)
        assert np.std(own) == pytest.approx(std, rel=0.1)
        assert abs(np.dot(own, honest_change)) < 5 * std * norm_of(honest_change)
    total, covered = of_all(run, noised.passed, None)
    moved = flat(run.training.weights).astype(float) - flat(initial(space, 0))
    assert moved * covered == pytest.approx(total, abs=1e-4)
    assert run.events("round")[0]["accepted"] == 3


def test_an_update_with_more_than_its_noise_is_refused(tmp_path: Path) -> None:
    clients = Clients({"dev-1": sending(lambda values: 1.5 * values)})
    run = run_in(tmp_path, private({"mode": "local", "clip": 0.01}), clients).start()
    (told,) = run.events("update_refused")
    assert (told["device"], told["code"]) == ("dev-1", "norm")


def test_a_bound_that_follows_the_updates_moves_and_is_kept(tmp_path: Path) -> None:
    adaptive = {"adaptive": {"count_noise": 5.0}, "clip": 50.0, "noise_multiplier": 3.0}
    run = run_in(tmp_path, private(adaptive))
    found = run.training.private
    assert found is not None
    found.noise = GaussianNoise(lambda size: b"\xff" * size)  # Box and Muller: zeros
    run.start()
    # Everybody's update is shorter, a share of 1 where a half is wanted.
    assert found.bound == pytest.approx(50.0 * math.exp(-0.2 * 0.5))
    again = run_in(tmp_path, private(adaptive, round={"rounds": 1}))
    assert again.training.resume()
    assert again.training.private is not None
    assert again.training.private.bound == found.bound


# What is spent


def test_every_round_says_what_is_spent_and_the_end_says_what_for(tmp_path: Path) -> None:
    config = private(
        {"noise_multiplier": 3.0},
        simulation={"clients": {"big": 2, "small": 1}},
        round={"rounds": 2},
    )
    simulate(Job("train", str(tmp_path), config.model_dump(mode="json")))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    account = Accountant(3.0, 1e-3)
    spent = [event["epsilon"] for event in events if event["event"] == "round"]
    assert spent == [account.epsilon_after(1), account.epsilon_after(2)]
    said = events[-1]["privacy"]
    assert (said["epsilon"], said["delta"], said["rounds"]) == (spent[-1], 1e-3, 2)
    assert "by the server" in said["mechanism"]
    assert said["adjacency"].startswith("zero-out")
    assert any("profiles" in words for words in said["not_covered"])


class FailingFirst:
    """The clients' app, but its first `often` training messages fail."""

    def __init__(self, often: int) -> None:
        self._left, self._clients = often, Clients()

    def __call__(self, message: Any, context: Any) -> Any:
        if message.metadata.message_type == "train" and self._left:
            self._left -= 1
            raise RuntimeError("asleep")
        return self._clients(message, context)


@pytest.mark.parametrize("mode", ["central", "local"])
def test_abandoned_rounds_count_and_the_run_ends_when_the_budget_does(
    mode: str, tmp_path: Path
) -> None:
    config = private({"mode": mode}, round={"rounds": 3, "min_replies": 2})
    run = run_in(tmp_path, config, FailingFirst(3)).start()
    account = run.training.private
    assert account is not None
    spent = [account.plan.accountant.epsilon_after(rounds) for rounds in (1, 2, 3)]
    assert [event["epsilon"] for event in run.events("round_abandoned")] == spent[:1]
    assert [event["epsilon"] for event in run.events("round")] == spent[1:]
    assert spent[-1] <= 8.0
    (told,) = run.events("budget_spent")
    assert (told["round"], told["rounds"]) == (2, 3)
    # What no checkpoint tells is in a file: the budget is still spent.
    again = run_in(tmp_path, config)
    assert again.training.resume()
    assert again.training.over


def test_abandoned_rounds_before_the_first_checkpoint_count_too(tmp_path: Path) -> None:
    config = private(round={"rounds": 9, "min_replies": 2})
    with pytest.raises(RunError, match="abandoned 3 times"):
        run_in(tmp_path, config, Clients({f"dev-{n}": raising for n in range(3)})).start()
    again = run_in(tmp_path, config)
    assert again.training.private is not None
    assert again.training.private.spent == 3


def test_what_devices_were_asked_for_counts_though_the_server_was_killed(tmp_path: Path) -> None:
    config = private({"mode": "local"}, round={"rounds": 9})
    run = run_in(tmp_path, config)
    run.roll.gather()
    next(iter(run.training.requests(run.training.assignments(run.roll.fleet()))))
    again = run_in(tmp_path, config)
    assert again.training.private is not None
    assert again.training.private.spent == 1


def test_a_round_that_is_done_again_counts_again(tmp_path: Path) -> None:
    config = private({"noise_multiplier": 6.0}, round={"rounds": 2})
    run = run_in(tmp_path, config).start()
    (run.store.folder / "round-000002" / "weights.safetensors").write_bytes(b"damaged")
    again = run_in(tmp_path, config)
    assert again.training.resume()
    assert again.training.round == 1
    again.start()
    assert again.events("round")[-1]["epsilon"] == Accountant(6.0, 1e-3).epsilon_after(3)


def test_a_damaged_count_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / SPENT).write_text("{")
    with pytest.raises(ArtifactError, match=rf"{SPENT}.*start a new run"):
        run_of(tmp_path, private())


def test_a_resumed_run_goes_on_accounting_and_keeps_its_noise(tmp_path: Path) -> None:
    first = run_in(tmp_path, private({"noise_multiplier": 6.0}, round={"rounds": 2})).start()
    second = run_in(tmp_path, private({"noise_multiplier": 6.0}, round={"rounds": 3}))
    assert second.training.resume()
    second.start()
    account = Accountant(6.0, 1e-3)
    assert [e["epsilon"] for e in second.events("round")] == [
        account.epsilon_after(rounds) for rounds in (1, 2, 3)
    ]
    assert digest(first.training.weights) != digest(second.training.weights)


def test_rounds_beyond_the_budget_are_refused_also_where_the_noise_was_chosen(
    tmp_path: Path,
) -> None:
    first = run_in(tmp_path, private(round={"rounds": 2})).start()
    assert first.training.private is not None
    noise = first.training.private.plan.accountant.noise_multiplier
    longer = run_in(tmp_path, private(round={"rounds": 3}))
    words = rf"round\.rounds = 3: the run began with noise_multiplier = {noise:.4g}.*at most 2"
    with pytest.raises(UsageError, match=words):
        longer.training.resume()
    shorter = run_in(tmp_path, private(round={"rounds": 2}))
    assert shorter.training.resume()
    assert shorter.training.over


def test_another_promise_does_not_resume(tmp_path: Path) -> None:
    run_in(tmp_path, private({"noise_multiplier": 6.0})).start()
    for change in ({"epsilon": 9.0}, {"clip": 1.0}, {"mode": "local"}):
        other = run_in(tmp_path, private({"noise_multiplier": 6.0, **change}))
        with pytest.raises(RunError, match="another configuration"):
            other.training.resume()


def test_what_is_in_an_update_does_not_decide_whether_a_round_is_abandoned(
    tmp_path: Path,
) -> None:
    clients = Clients({f"dev-{n}": sending(with_nan) for n in range(3)})
    run = run_in(tmp_path, private(round={"rounds": 1, "min_replies": 3}), clients).start()
    (told,) = run.events("round")
    assert (told["accepted"], told["refused"]) == (0, 3)
    assert told["loss"] is None


def test_a_fleet_that_is_too_large_for_delta_is_refused(tmp_path: Path) -> None:
    devices = small_fleet(tmp_path, ["big"] * 11 + ["small"])
    run = Run(tmp_path, private({"delta": 0.09}), grid_of(devices))
    with pytest.raises(UsageError, match=r"privacy\.delta = 0\.09 with 12 clients"):
        run.start()
    assert run.events("round") == []


# What is refused before anything starts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregation": {"rule": "median", "weights": "uniform"}}, "aggregation.rule = median"),
        ({"aggregation": {"clip": 2.0, "weights": "uniform"}}, "aggregation.clip = 2.0"),
        ({"aggregation": {}}, "aggregation.weights = examples"),
        ({"aggregation": {"weights": "disco"}}, "aggregation.weights = disco"),
        ({"aggregation": {"weights": "uniform", "size_power": 1}}, "aggregation.size_power = 1"),
        ({"sampler": {"kind": "importance"}}, "sampler.kind = importance"),
        ({"sampler": {"kind": "budget_bins"}}, "sampler.kind = budget_bins"),
        ({"sampler": {"kind": "maxnet"}}, "sampler.kind = maxnet"),
        ({"reputation": {}}, "reputation.strikes = 3"),
        ({"privacy": {**BUDGET, "rate": 0.5}}, "privacy.rate = 0.5"),
        ({"privacy": {**BUDGET, "mode": "local"}, "codec": "exact"}, "codec with privacy.mode"),
        ({"privacy": {**BUDGET, "least_cover": 3}}, "privacy.least_cover = 3"),
        ({"privacy": {**BUDGET, "delta": 0.09}, "round": {"min_clients": 12}}, "privacy.delta"),
        ({"privacy": {**BUDGET, "noise_multiplier": 0}}, "privacy.noise_multiplier = 0"),
        ({"privacy": {**BUDGET, "clip": None}}, "privacy.clip"),
        ({"privacy": {**BUDGET, "clipp": 1}}, "did you mean 'clip'"),
        (
            {"privacy": {**BUDGET, "adaptive": {"count_nois": 1}}},
            "[privacy.adaptive]; did you mean 'count_noise'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_that_would_break_the_promise_is_named(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        private(**changes)
    assert words in str(refusal.value)


def test_rounds_that_would_exceed_the_budget_are_refused_with_what_would_do() -> None:
    most = Accountant(2.0, 1e-3).most_rounds(8.0)
    private({"noise_multiplier": 2.0}, round={"rounds": most})
    words = rf"privacy\.epsilon = 8\.0: {most + 1} rounds .* at most {most} rounds, or noise_mul"
    with pytest.raises(UsageError, match=words):
        private({"noise_multiplier": 2.0}, round={"rounds": most + 1})


@pytest.mark.parametrize("kind", sorted(set(SAMPLERS)))
def test_only_refused_methods_remember_outcomes(kind: str) -> None:
    method = SAMPLERS[kind](SamplerConfig.model_validate({"kind": kind}), {})
    assert isinstance(method, Forgetful) == (kind not in FROM_OUTCOMES)


def test_only_refused_methods_weigh_updates(tmp_path: Path) -> None:
    run = run_of(tmp_path, small_config())
    run.roll.gather()
    this = run.training.selection._round(1, run.roll.fleet().members.values())
    for kind, make in SAMPLERS.items():
        config = SamplerConfig.model_validate({"kind": kind})
        chosen = make(config, run.training.coverage.ages).assign(this)
        if kind not in WEIGHING:
            assert {found.weight for found in chosen.values()} == {1.0}, kind


def test_a_configuration_comes_back_from_its_dump() -> None:
    config = private({"adaptive": {"count_noise": 5.0}})
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("mode", ["central", "local"])
def test_with_the_devices_that_are_needed_the_noise_is_as_long_as_the_step(mode: str) -> None:
    terms = {"mode": mode, "delta": 1e-9}
    config = private(terms)
    assert config.privacy is not None
    said = promise(config, config.privacy)
    assert said["verdict"].endswith(f"about {said['devices_needed']:,} devices are needed")
    for devices, fits in ((said["devices_needed"], True), (said["devices_needed"] // 2, False)):
        larger = private(terms, round={"rounds": 1, "min_clients": devices})
        found = promise(larger, config.privacy)
        assert (found["noise_to_step"] <= 1) is fits
        assert found["verdict"].endswith("this run can learn") is fits


def test_the_command_line_says_what_would_be_spent(tmp_path: Path) -> None:
    path = tmp_path / "fedofa.toml"
    table = "\n".join(f"{name} = {value}" for name, value in BUDGET.items())
    path.write_text(
        'aggregation.weights = "uniform"\nreputation.strikes = 0\n[classes.phone]\n'
        f"[round]\nrounds = 20\n[privacy]\n{table}\n"
    )
    found = CliRunner().invoke(command_line, ["privacy", "--config", str(path), "--json"])
    said = json.loads(found.stdout)
    assert 7.9 < said["epsilon"] <= 8.0
    assert said["most_rounds"] == 20
    assert Accountant(said["noise_multiplier"], 1e-3).epsilon_after(20) == said["epsilon"]
    assert said["devices_needed"] == math.ceil(said["clients"] * said["noise_to_step"])
    words = CliRunner().invoke(command_line, ["privacy", "--config", str(path)]).stdout
    # A terminal breaks lines where it likes; each item begins one.
    whole = " ".join(words.split())
    assert f"{said['devices_needed']:,} devices are needed" in whole
    assert "this run will learn nothing" in whole.splitlines()[0]
    starts = [line for line in words.splitlines() if line.startswith("  - ")]
    assert len(starts) == len(said["not_covered"])
    path.write_text("[classes.phone]\n")
    found = CliRunner().invoke(command_line, ["privacy", "--config", str(path)])
    assert isinstance(found.exception, UsageError)
