"""The server's own examples in a run: what is refused, what is learned, what is trained on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.protos.messages import TrainReply
from fedofa.server.config import RunConfig
from fedofa.server.operate import train_job
from fedofa.server.proxy import FEW_A_CLASS, Proxy
from fedofa.server.proxy_loss import sandwich
from fedofa.server.samplers.assigned import Assigned
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.weights import digest
from fleets import Clients, Run, grid_of, run_of, sending, small_config, small_fleet
from flwr.app import Message
from strategies import DIGITS

RESERVED = "fedofa.client.datasets:digits_reserved"
PROXY: dict[str, Any] = {"data": RESERVED, "arguments": {"reserved": 64}, "batch_size": 32}
LAW: dict[str, Any] = {"rule": "fedlaw", "law_epochs": 4}


def config_of(**changes: Any) -> RunConfig:
    fields = {"aggregation": LAW, "proxy": PROXY, "recipe": {"steps": 2}}
    return small_config(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"proxy": None}, "aggregation.rule = fedlaw learns weights on examples of the server"),
        ({"aggregation": {}}, r"\[proxy\] is not used"),
        ({"aggregation": {"law_lr": 0.1}}, "aggregation.law_lr = 0.1 is used with rule = fedlaw"),
        ({"aggregation": {"rule": "median", "law_epochs": 3}}, "rule is median"),
        ({"server": {"optimizer": "adam"}}, "server.optimizer = adam.*allowed: none, momentum"),
        ({"server": {"optimizer": "yogi"}}, "server.optimizer = yogi"),
        ({"server": {"optimizer": "none", "shrink": 0.9}}, "server.shrink = 0.9.*law_shrink"),
        ({"share": "local-bn"}, r"\[proxy\] with share: devices keep .* and \d+ more"),
        (
            {"share": {"head.*": {"policy": "keep_local", "aggregate_after": 1}}},
            r"\[proxy\] with share",
        ),
        ({"privacy": {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0}}, "rule = fedlaw with"),
        ({"proxy": {**PROXY, "batch_size": 1}}, "proxy.batch_size = 1"),
        ({"proxy": {**PROXY, "tune_lr": 0}}, "proxy.tune_lr = 0"),
        ({"proxy": {**PROXY, "dat": "x"}}, r"unknown key 'dat' in \[proxy\]; did you mean 'data'"),
        ({"aggregation": {**LAW, "law_lr": float("nan")}}, "aggregation.law_lr = nan"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config_of(**changes)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ({"data": "nowhere:load"}, "cannot import nowhere"),
        ({"data": "fedofa.client.datasets:digits_test", "arguments": {}}, "returned Examples"),
        ({"arguments": {"reserved": 5000}}, "reserved = 5000; allowed"),
        ({"arguments": {"reserved": 1}}, "1 training examples; at least 2"),
        ({"arguments": {"size": 5}}, "takes no argument 'size'"),
        ({"data_root": "/no/such/folder"}, "data folder /no/such/folder does not exist"),
        (
            {"data": "synthetic:load", "arguments": {"shape": "3,8,8", "classes": 10}},
            r"\[proxy\]: examples of shape \(3, 8, 8\); the space needs \(1, 8, 8\)",
        ),
        (
            {"data": "synthetic:load", "arguments": {"shape": "1,8,8", "classes": 4}},
            r"\[proxy\]: 4 classes; the space has 10",
        ),
    ],
)
def test_examples_that_are_not_of_the_task_are_refused_before_there_is_a_run(
    proxy: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = config_of(proxy={**PROXY, **proxy})
    with pytest.raises(UsageError, match=words):
        train_job(tmp_path, config, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_examples_of_another_form_than_the_devices_are_refused_before_a_round(
    tmp_path: Path,
) -> None:
    other = {"data": "synthetic:load", "arguments": {"shape": "1,8,8", "classes": 10}}
    run = run_of(tmp_path, config_of(proxy={**PROXY, **other}))
    with pytest.raises(UsageError, match=r"\[proxy\]: data of another form than device dev-0's"):
        run.start()
    assert run.training.round == 0
    assert run.events("no_update") == []


def test_too_few_examples_are_said_once() -> None:
    few = Proxy.of(config_of(), DIGITS)
    assert few is not None
    assert "[proxy]: 64 examples, of class '" in few.few
    many = Proxy.of(config_of(proxy={**PROXY, "arguments": {"reserved": 1000}}), DIGITS)
    assert many is not None
    assert many.few == ""
    assert FEW_A_CLASS * 10 < 1000


def noise(body: TrainReply, values: Any, message: Message) -> Message:
    """A device that sends what it was sent, with noise of 30 times an honest change."""
    rng = np.random.default_rng(body.round)
    return sending(lambda v: v + 0.3 * rng.normal(size=v.shape).astype(np.float32))(
        body, values, message
    )


def test_a_device_that_sends_noise_is_given_less_weight(tmp_path: Path) -> None:
    config = config_of(
        aggregation={**LAW, "law_epochs": 20, "law_lr": 0.05, "law_shrink": False},
        round={"rounds": 1, "max_update_ratio": 1e6},
        recipe={"steps": 10},
    )
    run = run_of(tmp_path, config, Clients({"dev-2": noise})).start()
    said = [event["note"] for event in run.events("aggregation_note")]
    assert len(said) == 2
    assert "(dev-2) to" in said[0]
    assert float(said[0].split("times ")[1].split()[0]) < 0.4
    assert "[proxy]: 64 examples" in said[1]


class Killed(BaseException):
    """Ends the server's process in the middle of a round."""


@pytest.mark.parametrize(
    "changes",
    [
        {"server": {"optimizer": "momentum", "momentum": 0.5}},
        {"aggregation": {"rule": "median"}, "proxy": {**PROXY, "tune_epochs": 1}},
    ],
    ids=["learned weights", "tuned weights"],
)
def test_a_run_that_was_interrupted_ends_with_the_bits_of_an_unbroken_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    def killing(body: TrainReply, values: Any, message: Message) -> Message:
        if body.round == 2:
            raise Killed
        return sending()(body, values, message)

    config = config_of(**changes)
    whole = run_of(tmp_path / "whole", config).start()
    broken = run_of(tmp_path / "broken", config, Clients({"dev-0": killing}))
    with pytest.raises(Killed):
        broken.start()
    again = run_of(tmp_path / "broken", config)
    assert again.training.resume()
    again.start()
    assert digest(again.training.weights) == digest(whole.training.weights)


def test_versions_learn_their_weights_as_rounds_do(tmp_path: Path) -> None:
    """With a buffer of all devices the asynchronous run is the synchronous one, bit for bit."""
    rounds = {"rounds": 1, "mode": "async", "buffer": 3, "concurrency": 3, "min_replies": 1}
    one = run_of(tmp_path / "sync", config_of(round={"rounds": 1})).start()
    other = run_of(tmp_path / "async", config_of(round=rounds)).start()
    assert digest(one.training.weights) == digest(other.training.weights)
    assert "fedlaw" in other.events("aggregation_note")[0]["note"]


def asked_of(run: Run, archs: list[Any]) -> list[Any]:
    fleet = run.roll.gather()
    members = list(fleet.members.values())
    return [run.training.asked(m, Assigned(a)) for m, a in zip(members, archs, strict=False)]


def tuned(tmp_path: Path, **changes: Any) -> tuple[Run, list[Any], Any]:
    proxy = {**PROXY, "tune_epochs": 3, "tune_lr": 0.05, **changes.pop("proxy", {})}
    config = config_of(aggregation={}, proxy=proxy, **changes)
    run = Run(tmp_path, config, grid_of(small_fleet(tmp_path)))
    space = run.training.space
    asked = asked_of(run, [space.smallest(), space.smallest()])
    proxied = run.training.proxy
    assert proxied is not None
    books = run.training.intake().books
    return run, asked, proxied.tuned(run.training.weights, asked, books)


def test_tuning_lowers_the_loss_and_moves_nothing_outside_the_rounds_subnets(
    tmp_path: Path,
) -> None:
    run, asked, after = tuned(tmp_path, share={"head.*": "freeze"})
    training = run.training
    assert training.proxy is not None
    loss = training.proxy._loss(asked, 1)
    assert loss.whole(after) < loss.whole(training.weights)
    where = Assigned(training.space.smallest()).regions(training.space)
    changed = 0
    for name, before in training.weights.items():
        moved = after[name] != before
        if name in where and not name.startswith("head."):
            changed += int(moved[where[name]].sum())
            moved = moved.clone()
            moved[where[name]] = False
        assert not moved.any(), name
    assert changed > 0


def test_tuning_that_diverges_does_not_count(tmp_path: Path) -> None:
    run, _, after = tuned(tmp_path, proxy={"tune_lr": 1e30})
    assert after is run.training.weights
    assert "diverged" in run.events("aggregation_note")[-1]["note"]


def test_the_sandwich_is_the_smallest_and_the_largest_that_were_trained() -> None:
    some = [DIGITS.smallest(), *(a for a in DIGITS.grown(DIGITS.smallest())[:3])]
    trained = [Assigned(arch) for arch in some]
    found = sandwich(DIGITS, trained[::-1])
    macs = [cost(DIGITS, one.arch).macs for one in found]
    assert len(found) == 2
    assert macs == [
        min(cost(DIGITS, a).macs for a in some),
        max(cost(DIGITS, a).macs for a in some),
    ]
    assert sandwich(DIGITS, [trained[0], trained[0]]) == (trained[0],)


def test_another_proxy_does_not_resume_but_another_folder_does(tmp_path: Path) -> None:
    prints = [
        run_of(tmp_path, config_of(proxy={**PROXY, **change})).training.fingerprint()
        for change in ({}, {"data_root": str(tmp_path)}, {"batch_size": 16})
    ]
    assert prints[0] == prints[1] != prints[2]
