"""Whole runs in one process: what goes wrong at one client stays there, and nothing is lost."""

import io
import json
import pickle
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.device import of_node
from fedofa.protos.device import DataSource
from fedofa.protos.messages import TrainReply
from fedofa.server.config import RunConfig
from fedofa.server.local_grid import FIRST_NODE
from fedofa.supernet.axes import layout, regions
from fedofa.supernet.errors import RunError, UsageError
from fedofa.supernet.weights import digest, initial, shapes_of, split
from fleets import (
    Clients,
    Run,
    grid_of,
    raising,
    run_of,
    sending,
    sending_record,
    small_config,
    small_fleet,
    with_bytes,
    with_nan,
)
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor


def npy_of_objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_a_runs_loss_falls_and_its_reports_say_what_happened(tmp_path: Path) -> None:
    config = small_config(round={"rounds": 4}, recipe={"steps": 16, "students": "none"})
    run = run_of(tmp_path, config).start()
    rounds = run.events("round")
    assert [event["round"] for event in rounds] == [1, 2, 3, 4]
    losses = [event["loss"] for event in rounds]
    assert losses[-1] < 0.8 * losses[0]
    for event in rounds:
        assert (event["accepted"], event["refused"], event["missing"]) == (3, 0, 0)
        assert event["train_macs"] > 0
        assert event["bytes_sent"] == event["bytes_received"] > 0
    assert rounds[-1]["coverage"] == 1.0  # dev-0 can hold the largest subnet
    assert rounds[-1]["oldest"] == 0
    assert {event["device"] for event in run.events("device_joined")} == {"dev-0", "dev-1", "dev-2"}
    assert run.store.rounds() == [3, 4]
    found = run.store.latest()
    assert found is not None
    assert digest(found.weights) == digest(run.training.weights)


def test_coverage_is_reported_where_nobody_holds_the_largest_subnet(tmp_path: Path) -> None:
    config = small_config(classes={"big": {"params": 4000}, "small": {"params": 3000}})
    run = run_of(tmp_path, config).start()
    first, second = run.events("round")
    assert 0.2 < first["coverage"] < 1.0
    assert first["oldest"] == 1
    assert second["oldest"] in (0, 1, 2)


def merged_by_hand(
    run: Run, before: Mapping[str, Tensor], updates: list[tuple[TrainReply, Any]]
) -> dict[str, np.ndarray]:
    """Mean over the clients that hold a weight, weighted by examples, in float64."""
    space, found = run.training.space, {}
    for name, tensor in layout(space).items():
        total, count = np.zeros(tensor.shape), np.zeros(tensor.shape)
        for body, values in updates:
            where = regions(space, space.arch(body.arch))
            if name in where:
                part = split(values, shapes_of(where))[name].numpy()
                total[where[name]] += body.examples * part.astype(np.float64)
                count[where[name]] += body.examples
        mean = total / np.maximum(count, 1)
        found[name] = np.where(count > 0, mean, before[name].numpy())
    return found


def assert_equal_to(weights: Mapping[str, Tensor], expected: Mapping[str, np.ndarray]) -> None:
    for name, value in weights.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6)


MISBEHAVIOUR: list[tuple[str, Any, str, str]] = [
    ("raises", raising, "no_update", "the data folder is gone"),
    ("nan", sending(with_nan), "update_refused", "non_finite"),
    ("nan loss", sending(loss=float("nan")), "update_refused", "loss"),
    ("huge loss", sending(loss=1.7e308), "update_refused", "loss"),
    ("shape", sending(lambda v: v[:-1]), "update_refused", "shape"),
    ("broadcast", sending(lambda v: v[:1]), "update_refused", "shape"),
    ("dtype", sending(lambda v: v.astype(np.float64)), "update_refused", "dtype"),
    ("none", sending(lambda v: None), "update_refused", "dtype"),
    ("norm", sending(lambda v: v * 1e5), "update_refused", "norm"),
    ("huge", sending(lambda v: np.full_like(v, 3e38)), "update_refused", "norm"),
    ("stale", sending(round=0), "update_refused", "stale_round"),
    ("run", sending(run="other"), "update_refused", "stale_round"),
    ("device", sending(device="dev-0"), "update_refused", "device"),
    ("arch", sending(arch={}), "update_refused", "assignment_mismatch"),
    ("schema", sending(tensors=()), "update_refused", "schema"),
    ("weight", sending(examples=10**6), "update_refused", "bad_weight"),
    ("no weight", sending(examples=0), "update_refused", "bad_weight"),
    ("empty", sending_record(lambda _: RecordDict()), "no_update", "no body"),
    ("text", sending_record(lambda _: RecordDict({"body": ConfigRecord({"json": "["})})),
     "no_update", "TrainReply"),
    ("pickle", with_bytes(npy_of_objects().ljust(400)), "update_refused", "shape"),
    ("object", with_bytes(pickle.dumps(1), "object"), "no_update", "array"),
    ("bytes", with_bytes(bytes(7)), "no_update", "array"),
    ("nothing", with_bytes(b""), "update_refused", "shape"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("trick", "event", "words"), [m[1:] for m in MISBEHAVIOUR], ids=[m[0] for m in MISBEHAVIOUR]
)
def test_one_bad_client_neither_stops_nor_spoils_a_round(
    tmp_path: Path, trick: Any, event: str, words: str
) -> None:
    clients = Clients({"dev-1": trick})
    run = run_of(tmp_path, small_config(round={"rounds": 1}, recipe={"steps": 1}), clients)
    before = initial(run.training.space, 0)
    run.start()
    (report,) = run.events("round")
    assert report["accepted"] == 2
    assert report["refused"] + report["missing"] == 1
    (told,) = run.events(event)
    assert (told["device"], told["round"]) == ("dev-1", 1)
    assert words in (told.get("code") or told["reason"])
    assert told["reason"].count("\n") == 0
    assert_equal_to(
        run.training.weights, merged_by_hand(run, before, list(clients.passed.values()))
    )


def test_all_honest_updates_count_by_their_examples(tmp_path: Path) -> None:
    clients = Clients()
    run = run_of(tmp_path, small_config(round={"rounds": 1}), clients)
    before = initial(run.training.space, 0)
    run.start()
    updates = [clients.passed[1, f"dev-{k}"] for k in range(3)]
    assert len({body.examples for body, _ in updates}) > 1
    assert len({tuple(body.arch.items()) for body, _ in updates}) > 1
    assert_equal_to(run.training.weights, merged_by_hand(run, before, updates))


def test_every_round_assigns_anew(tmp_path: Path) -> None:
    clients = Clients()
    config = small_config(
        round={"rounds": 4},
        recipe={"steps": 1, "lr_schedule": "constant"},
        sampler={"kind": "cover"},
    )
    run_of(tmp_path, config, clients).start()
    for device in ("dev-1", "dev-2"):
        archs = {tuple(clients.passed[number, device][0].arch.items()) for number in range(1, 5)}
        assert len(archs) > 1


class Killed(BaseException):
    """Ends the server's process in the middle of a round."""


def killed_in_round(number: int, device: str) -> Any:
    def trick(body: TrainReply, values: Any, message: Message) -> Message:
        if body.round == number:
            raise Killed
        return sending()(body, values, message)

    return Clients({device: trick})


@pytest.mark.parametrize(
    ("number", "device", "optimizer"), [(1, "dev-0", "none"), (3, "dev-2", "adam")]
)
def test_a_run_that_was_interrupted_ends_with_the_bits_of_an_unbroken_one(
    tmp_path: Path, number: int, device: str, optimizer: str
) -> None:
    config = small_config(round={"rounds": 3}, recipe={"steps": 2}, server={"optimizer": optimizer})
    whole = run_of(tmp_path / "whole", config).start()
    broken = run_of(tmp_path / "broken", config, killed_in_round(number, device))
    with pytest.raises(Killed):
        broken.start()
    again = run_of(tmp_path / "broken", config)
    assert again.training.resume() is (number > 1)
    assert again.training.round == number - 1
    again.start()
    assert again.training.round == 3
    assert digest(again.training.weights) == digest(whole.training.weights)
    assert digest(again.training.optimizer.state) == digest(whole.training.optimizer.state)
    assert digest(again.training.coverage.ages) == digest(whole.training.coverage.ages)


def test_neither_the_order_of_nodes_nor_that_of_replies_changes_a_bit(tmp_path: Path) -> None:
    config = small_config(recipe={"steps": 2})
    found = set()
    for place, order in enumerate([(0, 1, 2), (2, 0, 1), (1, 2, 0)]):
        torch.manual_seed(place)
        random.seed(place)
        np.random.seed(place)
        run = run_of(tmp_path / str(place), config, order=order).start()
        found.add(digest(run.training.weights))
    assert len(found) == 1
    for place, polls in enumerate([{0: 2, 1: 1}, {1: 3, 2: 1}]):
        folder = tmp_path / f"uneven-{place}"
        arrival = {FIRST_NODE + node: count for node, count in polls.items()}
        run = Run(folder, config, grid_of(small_fleet(folder), polls=arrival)).start()
        found.add(digest(run.training.weights))
    assert len(found) == 1
    other = run_of(tmp_path / "seed", small_config(recipe={"steps": 2}, seed=1)).start()
    assert digest(other.training.weights) not in found


def test_too_few_good_updates_abandon_a_round_and_leave_every_weight(tmp_path: Path) -> None:
    config = small_config(round={"min_replies": 2, "rounds": 3}, recipe={"steps": 1})
    clients = Clients({"dev-0": raising, "dev-2": sending(with_nan)})
    run = run_of(tmp_path, config, clients)
    before = digest(run.training.weights)
    with pytest.raises(RunError, match=r"round 1 was abandoned 3 times.*min_replies = 2"):
        run.start()
    assert digest(run.training.weights) == before
    assert run.training.round == 0
    assert run.training.coverage.oldest() == 0
    assert run.store.rounds() == []
    assert [event["accepted"] for event in run.events("round_abandoned")] == [1, 1, 1]
    assert run.events("round") == []


def test_an_abandoned_round_is_done_again_and_the_run_goes_on(tmp_path: Path) -> None:
    calls = []

    def twice(body: TrainReply, values: Any, message: Message) -> Message:
        calls.append(body.round)
        return (raising if len(calls) <= 2 else sending())(body, values, message)

    config = small_config(round={"min_replies": 3, "rounds": 2}, recipe={"steps": 1})
    run = run_of(tmp_path / "a", config, Clients({"dev-1": twice})).start()
    assert calls == [1, 1, 1, 2]
    assert len(run.events("round_abandoned")) == 2
    whole = run_of(tmp_path / "b", config).start()
    assert digest(run.training.weights) == digest(whole.training.weights)


def test_a_late_client_is_not_waited_for_and_asked_again_only_when_it_has_answered(
    tmp_path: Path,
) -> None:
    config = small_config(round={"rounds": 3, "deadline_s": 0.7}, recipe={"steps": 1})
    slow = {FIRST_NODE + 1}
    grid = grid_of(small_fleet(tmp_path), slow=slow)
    run = Run(tmp_path, config, grid)
    run.roll.gather()
    counts = []
    for number in range(3):
        if number == 2:
            slow.clear()
        fleet = run.roll.fleet()
        assignments = run.training.assignments(fleet, run.exchange.busy())
        requests = run.training.requests(assignments)
        answers = run.exchange.ask(requests, TrainReply, config.round.deadline_s)
        report = run.training.finish_round(assignments, fleet, answers)
        assert report is not None
        counts.append((len(assignments), report.accepted, report.missing))
    assert counts == [(3, 2, 1), (2, 2, 0), (3, 3, 0)]
    (late,) = run.events("no_update")
    assert (late["device"], late["reason"]) == ("dev-1", "no reply within 0.7 s")


def test_a_fleet_that_is_late_as_a_whole_is_waited_for_and_not_given_up_at_once(
    tmp_path: Path,
) -> None:
    config = small_config(
        round={"rounds": 1, "deadline_s": 2.0, "min_replies": 2}, recipe={"steps": 1}
    )
    slow = {FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2}
    run = Run(tmp_path, config, grid_of(small_fleet(tmp_path), slow=slow))
    late = threading.Timer(3.0, slow.clear)
    late.start()
    try:
        run.start()
    finally:
        late.cancel()
        late.join()
    assert len(run.events("round_abandoned")) == 1
    assert run.training.round == 1


def test_a_class_without_a_client_is_a_usage_error_and_nothing_is_trained(tmp_path: Path) -> None:
    clients = Clients()
    config = small_config(classes={"big": {}, "small": {}, "watch": {}})
    run = run_of(tmp_path, config, clients)
    with pytest.raises(UsageError, match=r"class 'watch' has no client after 0\.3 s") as error:
        run.start()
    assert error.value.exit_code == 2
    assert clients.passed == {}
    assert run.store.rounds() == []


def test_too_few_clients_are_a_run_error(tmp_path: Path) -> None:
    run = run_of(tmp_path, small_config(round={"min_clients": 4}))
    with pytest.raises(RunError, match=r"3 of 4 clients.*dev-0, dev-1, dev-2"):
        run.start()


def left_out(folder: Path, config: RunConfig, classes: tuple[str, ...]) -> tuple[Run, str]:
    devices = small_fleet(folder, classes)
    run = Run(folder, config, grid_of(devices)).start()
    (told,) = run.events("device_left_out")
    return run, told["reason"]


def test_a_device_of_an_unknown_class_is_left_out_with_a_reason(tmp_path: Path) -> None:
    config = small_config(round={"rounds": 1}, recipe={"steps": 1})
    run, reason = left_out(tmp_path, config, ("big", "small", "toaster"))
    assert "dev-2" in reason
    assert "'toaster' is not in the config; known: big, small" in reason
    assert run.events("round")[0]["accepted"] == 2


def test_a_device_that_no_subnet_fits_is_left_out_with_a_reason(tmp_path: Path) -> None:
    devices = small_fleet(tmp_path)
    tiny = tmp_path / "tiny.toml"
    tiny.write_text(Path(str(devices[2].profile)).read_text() + "[budget]\nparams = 10\n")
    devices[2] = replace(devices[2], profile=str(tiny))
    run = Run(tmp_path, small_config(round={"rounds": 1}, recipe={"steps": 1}), grid_of(devices))
    run.start()
    (told,) = run.events("device_left_out")
    assert "device dev-2: no subnet fits" in told["reason"]
    assert "> 10" in told["reason"]


def test_a_device_whose_data_function_raises_is_left_out_with_its_own_words(
    tmp_path: Path,
) -> None:
    devices = small_fleet(tmp_path)
    devices[1] = replace(devices[1], source=DataSource("fedofa.client.datasets:mnist"))
    run = Run(tmp_path, small_config(round={"rounds": 1}, recipe={"steps": 1}), grid_of(devices))
    run.start()
    (told,) = run.events("device_left_out")
    assert "--data-root" in told["reason"]
    assert run.events("round")[0]["accepted"] == 2


def test_two_devices_of_one_name_are_not_both_let_in(tmp_path: Path) -> None:
    devices = small_fleet(tmp_path)
    devices[2] = replace(devices[2], name="dev-1")
    run = Run(tmp_path, small_config(round={"rounds": 1}, recipe={"steps": 1}), grid_of(devices))
    run.start()
    (told,) = run.events("device_left_out")
    assert "the name is taken" in told["reason"]


def with_profile(changes: dict[str, object]) -> Callable[[Message, Context], Message]:
    """The ClientApp, but dev-1's profile says this."""
    honest = Clients()

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        name = of_node(context.node_config, context.run_config).name
        if message.metadata.message_type != "query.profile" or name != "dev-1":
            return reply
        fields = json.loads(str(reply.content.config_records["body"]["json"]))
        text = json.dumps({**fields, **changes})
        return Message(RecordDict({"body": ConfigRecord({"json": text})}), reply_to=message)

    return app


@pytest.mark.parametrize(
    "change",
    [
        {"budget": {"mac": 1}},
        {"budget": {"macs": -1}},
        {"budget": {"macs": 0}},
        {"train_macs_per_s": float("inf")},
        {"train_macs_per_s": 1e-300, "memory_bytes": 1},
        {"examples": 10**400},
        {"examples": 0},
        {"memory_bytes": 1},
        {"input_shape": []},
        {"input_shape": [3, 8, 8]},
        {"device": "dev-0"},
        {"device": "../../x"},
        {"classes": ["a"]},
    ],
    ids=str,
)
def test_a_device_with_a_hostile_profile_is_left_out_and_the_others_train(
    tmp_path: Path, change: dict[str, object]
) -> None:
    run = run_of(
        tmp_path, small_config(round={"rounds": 1}, recipe={"steps": 1}), with_profile(change)
    ).start()
    (told,) = run.events("device_left_out")
    assert told["reason"]
    assert run.events("round")[0]["accepted"] == 2


def test_flowers_own_contract_gives_the_same_round(tmp_path: Path) -> None:
    """configure_train and aggregate_train, as Flower's loop would call them."""
    config = small_config(round={"rounds": 1}, recipe={"steps": 2})
    own = run_of(tmp_path / "own", config).start()
    flower = run_of(tmp_path / "flower", config)
    flower.roll.gather()
    messages = list(flower.strategy.configure_train(1, ArrayRecord(), ConfigRecord(), flower.grid))
    assert len({message.metadata.dst_node_id for message in messages}) == 3
    replies = flower.grid.send_and_receive(messages)
    arrays, metrics = flower.strategy.aggregate_train(1, replies)
    assert arrays is None
    assert metrics is not None
    assert metrics["accepted"] == 3
    assert digest(flower.training.weights) == digest(own.training.weights)
