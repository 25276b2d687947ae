"""Asynchronous training: a version when enough updates are in, and none waits for the slowest."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.client.app import app as honest_app
from fedofa.client.device import of_node
from fedofa.protos.device import PARTITION_KEY
from fedofa.protos.flower import Values, from_record
from fedofa.protos.messages import DeviceProfile, TrainReply, TrainRequest
from fedofa.server.aggregation.catalogue import AggregationConfig
from fedofa.server.config import parse_config
from fedofa.server.ledger_chain import lines
from fedofa.server.ledger_entries import Round, entry_of, unseal
from fedofa.server.ledger_report import by_device, verdict
from fedofa.server.local_grid import FIRST_NODE
from fedofa.server.samplers.sandwich import Sandwich
from fedofa.server.shelf import Shelf
from fedofa.supernet.axes import regions
from fedofa.supernet.errors import RunError, UsageError
from fedofa.supernet.randomness import array_stream
from fedofa.supernet.weights import digest, initial, shapes_of, split
from fleets import (
    SPEEDS,
    Clients,
    PacedGrid,
    Run,
    VirtualClock,
    grid_of,
    raising,
    run_of,
    sending,
    small_config,
    small_fleet,
    with_nan,
)
from flwr.app import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CALM = {"steps": 1, "lr_schedule": "constant"}
PLAIN = {"recipe": CALM, "sampler": {"kind": "cover"}, "server": {"optimizer": "none"}}
NEVER = 1e9


class AskedTwice(BaseException):
    """Whatever a client raises becomes its reply; this does not."""


@dataclass
class Quick:
    """Devices that send back at once what they got, a little changed; remembers both by round."""

    tricks: Mapping[str, Any] = field(default_factory=dict)
    sent: dict[tuple[str, int], Values] = field(default_factory=dict)
    back: dict[tuple[str, int], tuple[TrainReply, Values]] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)

    def __call__(self, message: Message, context: Any) -> Message:
        name = of_node(context.node_config, context.run_config).name
        if message.metadata.message_type != "train":
            reply = honest_app(message=message, context=context)
            self.examples[name] = from_record(DeviceProfile, reply.content)[0].examples
            return reply
        body, values = from_record(TrainRequest, message.content)
        assert values is not None
        if (name, body.round) in self.sent:
            raise AskedTwice(name, body.round)
        self.sent[name, body.round] = values
        noise = array_stream(name, body.round).standard_normal(len(values), np.float32)
        changed = values + np.float32(0.01) * noise
        answer = TrainReply(
            run=body.run, round=body.round, device=name, arch=body.arch, tensors=body.tensors,
            examples=self.examples[name], steps=1, loss=1.0, train_macs=1, seconds=0.0,
        )  # fmt: skip
        self.back[name, body.round] = answer, changed
        trick = self.tricks.get(name)
        return trick(answer, changed, message) if trick else _plain(answer, changed, message)


_plain = sending()


def paced(
    folder: Path, paces: Sequence[float], app: Any = None, *, ledger: bool = True, **sections: Any
) -> Run:
    """A run in virtual time whose devices take so many seconds each; the first two are big."""
    config = small_config(**{**PLAIN, **sections})
    devices = small_fleet(folder, ["big", "big", *["small"] * (len(paces) - 2)])
    (folder / "profile.toml").write_text(f"{SPEEDS}share_labels = true\n")
    clock = VirtualClock()
    grid = grid_of(devices, app or Quick(), paces=paces, clock=clock)
    run = Run(folder, config, grid, clock, keeps_ledger=ledger)
    if ledger:
        run.training.begin()
    return run


def asynchronous(**fields: Any) -> dict[str, Any]:
    return {"mode": "async", "rounds": 6, "deadline_s": 60.0, "keep_checkpoints": 99, **fields}


def entries(folder: Path) -> list[Round]:
    found = [unseal(line) for line in lines(folder / "ledger.jsonl")]
    every = [entry_of(sealed.body) for sealed in found if sealed is not None]
    return [entry for entry in every if isinstance(entry, Round)]


# ── the synchronous run as a special case ────────────────────────────────────────────────────────

SAME: list[tuple[dict[str, Any], Any]] = [
    ({"recipe": {"steps": 2}, "server": {"optimizer": "momentum"}}, None),
    (
        {
            "recipe": CALM,
            "sampler": {"kind": "spread_sandwich", "coverage_floor": 2},
            "server": {"optimizer": "adam"},
            "aggregation": {"weights": "disco", "clip": 2.0},
        },
        {"dev-0": raising, "dev-3": sending(with_nan)},
    ),
]


@pytest.mark.parametrize(("sections", "tricks"), SAME, ids=["honest", "with bad clients"])
@pytest.mark.parametrize("concurrency", [4, None])
def test_with_everybody_at_work_and_a_buffer_for_all_it_is_the_synchronous_run_bit_for_bit(
    tmp_path: Path, sections: dict[str, Any], tricks: Any, concurrency: int | None
) -> None:
    choices = [{"deadline_s": 60.0}, asynchronous(buffer=4, concurrency=concurrency)]
    runs = []
    for place, fields in enumerate(choices):
        app = Clients(tricks or {})
        folder, limits = tmp_path / str(place), {**fields, "rounds": 3}
        paces = [(3.0, 1.0, 2.0, 1.5)[(at + place) % 4] for at in range(4)]
        runs.append(paced(folder, paces, app, **{**sections, "round": limits}).start())
    one, other = (run.training for run in runs)
    assert digest(one.weights) == digest(other.weights)
    assert digest(one.optimizer.state) == digest(other.optimizer.state)
    assert digest(one.coverage.ages) == digest(other.coverage.ages)
    assert one.selection.notes == other.selection.notes
    left, right = (entries(tmp_path / place) for place in "01")
    for mine, theirs in zip(left, right, strict=True):
        assert {a.version for a in mine.assigned.values()} == {None}
        assert {a.version for a in theirs.assigned.values()} == {theirs.round - 1}
        assert mine.accepted == theirs.accepted
        assert (mine.refused, mine.missing) == (theirs.refused, theirs.missing)
        assert (mine.before, mine.after, mine.coverage) == (
            theirs.before, theirs.after, theirs.coverage,
        )  # fmt: skip


def test_whatever_came_first_weights_are_worked_out_in_order_of_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over the devices of a version, as FedDisco's, must not be rounded by arrival."""
    seen: list[list[str]] = []
    weigh = AggregationConfig.weigh

    def watched(self: AggregationConfig, holders: Any) -> Any:
        seen.append([holder.name for holder in holders])
        return weigh(self, holders)

    monkeypatch.setattr(AggregationConfig, "weigh", watched)
    limits = asynchronous(buffer=4, rounds=1)
    paced(tmp_path, (4.0, 3.0, 2.0, 1.0), ledger=False, round=limits).start()
    assert seen == [["dev-0", "dev-1", "dev-2", "dev-3"]]


# ── stragglers ───────────────────────────────────────────────────────────────────────────────────


def test_a_device_ten_times_slower_does_not_hold_up_the_versions(tmp_path: Path) -> None:
    paces = (1.0, 10.0, 1.0, 1.0, 1.0)
    limits = asynchronous(buffer=3, rounds=12)
    run = paced(tmp_path / "async", paces, Clients(), round=limits).start()
    waiting = paced(
        tmp_path / "sync", paces, Clients(), round={"rounds": 3, "deadline_s": 60.0}
    ).start()
    assert run.training.round == 12
    assert run.grid.clock.now < 15  # type: ignore[attr-defined]
    assert waiting.grid.clock.now > 30  # type: ignore[attr-defined]
    assert [event["accepted"] for event in run.events("round")] == [3] * 12
    slow = {e.round: e for e in entries(tmp_path / "async") if "dev-1" in e.assigned}
    (late,) = slow.values()
    assert late.assigned["dev-1"].version == 0
    assert late.round >= 8
    assert "dev-1" in late.accepted
    assert verdict(tmp_path / "async")["ok"]
    assert run.exchange.busy() == {FIRST_NODE + 1}  # it was asked again, and owes the reply now


def test_an_update_is_merged_as_a_change_of_what_was_sent_and_counts_less_when_that_is_old(
    tmp_path: Path,
) -> None:
    app, power = Quick(), 0.7
    limits = asynchronous(buffer=2, concurrency=3, staleness_power=power)
    run = paced(tmp_path, (1.0, 2.9, 1.0, 1.7, 5.3), app, round=limits).start()
    space, stale = run.training.space, 0
    shas = {
        hashlib.sha256(values.tobytes()).hexdigest(): key for key, (_, values) in app.back.items()
    }
    before = initial(space, 0)
    for entry in entries(tmp_path):
        total = {name: np.zeros(value.shape) for name, value in before.items()}
        count = {name: np.zeros(value.shape) for name, value in before.items()}
        for name, update in entry.accepted.items():
            device, asked_in = shas[update.sha256]
            body, values = app.back[device, asked_in]
            staleness = entry.round - asked_in
            stale += staleness > 0
            weight = body.examples * (1 + staleness) ** -power
            assert device == name
            assert entry.assigned[name].version == asked_in - 1
            assert update.weight == pytest.approx(weight)
            where = regions(space, space.arch(body.arch))
            moved: Any = values - app.sent[device, asked_in]
            change = split(moved, shapes_of(where))
            for tensor, region in where.items():
                total[tensor][region] += weight * change[tensor].numpy()
                count[tensor][region] += weight
        after = run.store.read(entry.round).weights
        for tensor, value in after.items():
            mean = total[tensor] / np.maximum(count[tensor], 1e-30)
            expected = before[tensor].numpy() + mean
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=2e-6)
        before = after
    assert stale >= 3
    told = sum(2 * event["staleness"] for event in run.events("round"))
    assert told == pytest.approx(
        sum(
            entry.round - 1 - (entry.assigned[name].version or 0)
            for entry in entries(tmp_path)
            for name in entry.accepted
        )
    )


def test_weights_too_old_are_refused_without_a_strike(tmp_path: Path) -> None:
    app = Quick({"dev-3": sending(round=77)})
    limits = asynchronous(buffer=2, rounds=16, max_staleness=2)
    reputation = {"strikes": 2, "window": 10, "quarantine_rounds": 50}
    paces = (1.0, 4.5, 1.0, 1.0, 1.0)
    run = paced(tmp_path, paces, app, round=limits, reputation=reputation).start()
    refused = run.events("update_refused")
    assert {event["code"] for event in refused} == {"stale_round"}
    old = [event for event in refused if event["device"] == "dev-1"]
    assert len(old) >= 2
    assert "versions old; at most 2 count" in old[0]["reason"]
    # Whoever sends another round's number is put into quarantine, who is slow is not.
    assert {event["device"] for event in run.events("quarantined")} == {"dev-3"}
    strikes = {row["device"]: row["strikes"] for row in by_device(tmp_path)}
    assert strikes == {"dev-0": 0, "dev-1": 0, "dev-2": 0, "dev-3": 2, "dev-4": 0}


def test_who_does_not_answer_in_time_is_missing_and_asked_again_after_its_late_reply(
    tmp_path: Path,
) -> None:
    app = Quick()
    limits = asynchronous(buffer=2, rounds=20, deadline_s=5.0)
    run = paced(tmp_path, (1.0, 8.0, 1.0, 1.0), app, round=limits)
    run.grid.__class__ = Watched  # two requests to one device would be an error
    run.start()
    missed = run.events("no_update")
    assert {event["device"] for event in missed} == {"dev-1"}
    assert {event["reason"] for event in missed} == {"no reply within 5 s"}
    # Its answers come, late: it was at work for 8 s each time, and had no second request meanwhile.
    asked = [number for name, number in app.sent if name == "dev-1"]
    assert len(asked) >= 1
    assert len(missed) in (len(asked), len(asked) + 1)
    assert sum("dev-1" in entry.missing for entry in entries(tmp_path)) == len(missed)
    assert all("dev-1" not in entry.accepted for entry in entries(tmp_path))


def test_who_is_asked_for_a_version_is_assigned_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a method that divides roles, here the sandwich, would give all of them the same one."""
    seen: list[tuple[int, int, int]] = []
    assign = Sandwich.assign

    def watched(self: Sandwich, this: Any) -> Any:
        seen.append((this.number, len(this.clients), len(this.fleet)))
        return assign(self, this)

    monkeypatch.setattr(Sandwich, "assign", watched)
    limits = asynchronous(buffer=3, concurrency=2, rounds=3)
    sampler = {"kind": "spread_sandwich"}
    paced(tmp_path, [1.0] * 7, ledger=False, round=limits, sampler=sampler).start()
    # Two at work, and one more for each of the first two updates; then one is at work already.
    assert seen == [(1, 4, 7), (2, 3, 7), (3, 3, 7)]


# ── too few devices ──────────────────────────────────────────────────────────────────────────────


def test_where_no_more_can_come_a_version_has_fewer_updates(tmp_path: Path) -> None:
    run = paced(tmp_path, (1.0, 1.0, 1.0), round=asynchronous(buffer=9, rounds=2)).start()
    assert [event["accepted"] for event in run.events("round")] == [3, 3]


def test_versions_without_good_updates_are_abandoned_and_end_the_run(tmp_path: Path) -> None:
    app = Quick(dict.fromkeys(("dev-0", "dev-1", "dev-2"), sending(with_nan)))
    limits, reputation = asynchronous(buffer=2), {"strikes": 0}
    paces = (1.0, 1.0, 1.0)
    run = paced(tmp_path, paces, Forgetting(app), round=limits, reputation=reputation)
    before = digest(run.training.weights)
    with pytest.raises(RunError, match=r"round 1 was abandoned 3 times.*min_replies = 1"):
        run.start()
    assert digest(run.training.weights) == before
    assert run.store.rounds() == []
    assert verdict(tmp_path)["ok"]


def Forgetting(app: Quick) -> Any:
    """An abandoned version is asked for again: then a second request is right."""

    def again(message: Message, context: Any) -> Message:
        app.sent.clear()
        return app(message, context)

    return again


# ── coming and going ─────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """Ends the server's process."""


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_and_asks_anew(tmp_path: Path) -> None:
    def killing(body: TrainReply, values: Any, message: Message) -> Message:
        if body.round == 4:
            raise Killed
        return _plain(body, values, message)

    limits = asynchronous(buffer=2, concurrency=4)
    paces = (1.0, 1.2, 1.3, 5.0, 1.1)
    broken = paced(tmp_path, paces, Quick({"dev-2": killing}), round=limits)
    with pytest.raises(Killed):
        broken.start()
    done = broken.store.rounds()[-1]
    assert 3 <= done < 6
    app = Quick()
    again = paced(tmp_path, paces, app, ledger=False, round=limits)
    again = Run(tmp_path, again.config, again.grid, again.clock, keeps_ledger=True)
    assert again.training.resume()
    again.start()
    assert again.training.round == 6
    assert min(number for _, number in app.sent) == done + 1  # nobody works for the dead any more
    found = verdict(tmp_path)
    assert found["ok"], found
    assert (found["recorded"], found["unrecorded"]) == (6, 0)


def test_a_resumed_run_must_make_versions_of_the_same_size(tmp_path: Path) -> None:
    paces = (1.0, 1.0, 1.0)
    paced(tmp_path, paces, ledger=False, round=asynchronous(buffer=2, rounds=1)).start()
    for fields in ({"buffer": 3}, {"buffer": 2, "staleness_power": 1.0}):
        with pytest.raises(RunError, match="another configuration"):
            paced(tmp_path, paces, ledger=False, round=asynchronous(**fields)).training.resume()
    with pytest.raises(RunError, match="another configuration"):
        paced(tmp_path, paces, ledger=False, round={"rounds": 1}).training.resume()
    changed = asynchronous(buffer=2, concurrency=2, max_staleness=1)
    assert paced(tmp_path, paces, ledger=False, round=changed).training.resume()


class Joining(PacedGrid):
    """The last two nodes come later; the last one never tells its profile."""

    def get_node_ids(self) -> Any:
        known = list(super().get_node_ids())
        return known if self.clock.now > 3 else known[:-2]

    def _is_done(self, message_id: str) -> bool:
        message = self._waiting.get(message_id)
        last = max(self._contexts)
        silent = message is not None and message.metadata.dst_node_id == last
        return not silent and super()._is_done(message_id)


def test_who_joins_later_is_asked_and_nobody_waits_for_a_silent_one(tmp_path: Path) -> None:
    run = paced(tmp_path, (1.0, 1.0, 1.0, 1.0, 1.0), round=asynchronous(buffer=2, rounds=30))
    run.grid.__class__ = Joining
    run.start()
    assert run.grid.clock.now < 25  # type: ignore[attr-defined]
    joined = [event["device"] for event in run.events("device_joined")]
    assert joined == ["dev-0", "dev-1", "dev-2", "dev-3"]
    assert any("dev-3" in entry.accepted for entry in entries(tmp_path))
    assert FIRST_NODE + 4 in run.exchange.busy()


class Moving(PacedGrid):
    """dev-1's node is gone after 2 s, its request never answered; it comes back as another node."""

    def get_node_ids(self) -> Any:
        old, new = FIRST_NODE + 1, max(self._contexts)
        return [n for n in super().get_node_ids() if n != (old if self.clock.now > 2 else new)]


def test_a_device_that_comes_back_as_another_node_waits_until_its_old_request_has_ended(
    tmp_path: Path,
) -> None:
    app = Quick()
    limits = asynchronous(buffer=2, rounds=40, deadline_s=25.0)
    run = paced(tmp_path, (1.0, NEVER, 1.0, 1.0, 1.0), app, round=limits)
    grid = run.grid
    grid.__class__ = Moving
    context = grid._contexts[max(grid._contexts)]
    context.node_config[PARTITION_KEY] = 1
    run.start()
    came = [entry for entry in entries(tmp_path) if "dev-1" in entry.assigned]
    assert "dev-1" in came[0].missing
    assert came[0].assigned["dev-1"].version == 0
    assert any("dev-1" in entry.accepted for entry in came[1:])
    assert verdict(tmp_path)["ok"]


# ── whatever the devices do ──────────────────────────────────────────────────────────────────────


class Watched(PacedGrid):
    """Counts who is at work."""

    most = 0

    def push_messages(self, messages: Any) -> Any:
        ids = super().push_messages(messages)
        training = [
            m.metadata.dst_node_id
            for m in self._waiting.values()
            if m.metadata.message_type == "train"
        ]
        assert len(training) == len(set(training)), "a device has two requests"
        self.most = max(self.most, len(training))
        return ids


@given(
    paces=st.lists(st.sampled_from([0.5, 1.0, 1.3, 4.0, 12.0]), min_size=5, max_size=5),
    bad=st.sets(st.sampled_from(["dev-0", "dev-2", "dev-4"]), max_size=2),
    concurrency=st.sampled_from([None, 1, 2, 4]),
    buffer=st.integers(1, 4),
    max_staleness=st.sampled_from([None, 0, 2]),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_their_pace_devices_are_asked_in_order_and_counted_once(
    tmp_path_factory: pytest.TempPathFactory,
    paces: list[float],
    bad: set[str],
    concurrency: int | None,
    buffer: int,
    max_staleness: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    app = Quick({name: (raising, sending(with_nan))[k % 2] for k, name in enumerate(sorted(bad))})
    limits = asynchronous(
        buffer=buffer, concurrency=concurrency, max_staleness=max_staleness, rounds=5
    )
    run = paced(folder, paces, app, round=limits)
    run.grid.__class__ = Watched
    run.start()
    assert run.grid.most <= (concurrency or 5)  # type: ignore[attr-defined]
    assert verdict(folder)["ok"]
    seen: set[tuple[str, int | None]] = set()
    for entry in entries(folder):
        ended = {(name, assigned.version) for name, assigned in entry.assigned.items()}
        assert not ended & seen
        seen |= ended
        assert 1 <= len(entry.accepted) <= buffer
        assert not bad & entry.accepted.keys()
        ages = [entry.round - 1 - (entry.assigned[n].version or 0) for n in entry.accepted]
        assert max_staleness is None or max(ages) <= max_staleness
    for event in run.events("round"):
        assert event["accepted"] + event["refused"] + event["missing"] >= event["accepted"] >= 1


def test_what_was_sent_lies_on_disk_only_as_long_as_its_answer_is_out(tmp_path: Path) -> None:
    from fedofa.server import versions

    shelves: list[Shelf] = []
    made = versions.Versions.__init__

    def watched(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        shelves.append(self._shelf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions.Versions, "__init__", watched)
        limits = asynchronous(buffer=2, concurrency=3, rounds=8)
        paced(tmp_path, (1.0, 5.0, 1.0, 1.5, 1.0), ledger=False, round=limits).start()
    (shelf,) = shelves
    assert len(shelf) <= 3
    largest = 4 * sum(value.numel() for value in initial(small_config().build_space(), 0).values())
    assert shelf.most_bytes <= (3 + 2) * largest


def test_a_shelf_gives_back_what_was_put_there_and_uses_freed_places_again() -> None:
    shelf = Shelf(6)
    first, second = np.arange(6, dtype=np.float32), np.arange(3, dtype=np.float32)
    one, two = shelf.put(first), shelf.put(second)
    assert shelf.take(one).tolist() == first.tolist()
    three = shelf.put(second + 7)
    assert (len(shelf), shelf.most_bytes) == (2, 2 * 24)
    assert shelf.take(two).tolist() == second.tolist()
    assert shelf.take(three).tolist() == (second + 7).tolist()
    wrongs: list[Any] = [np.zeros(7, np.float32), np.zeros(2)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="do not fit"):
            shelf.put(wrong)
    assert len(shelf) == 0


# ── the configuration ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "fast"}, "round.mode = 'fast': .*'sync' or 'async'"),
        ({"mode": "async"}, "round.buffer is needed with round.mode = async"),
        ({"buffer": 3}, "round.buffer = 3 is used with round.mode = async only; .* is sync"),
        ({"concurrency": 3}, "round.concurrency = 3 is used with"),
        ({"max_staleness": 0}, "round.max_staleness = 0 is used with"),
        ({"staleness_power": 0.0}, "round.staleness_power = 0.0 is used with"),
        ({"mode": "async", "buffer": 3, "clients": 4}, "round.clients = 4 is used with .*sync"),
        ({"mode": "async", "buffer": 3, "enough_replies": 0.5}, "round.enough_replies = 0.5 is"),
        ({"mode": "async", "buffer": 0}, "round.buffer = 0"),
        ({"mode": "async", "buffer": 3, "concurrency": 0}, "round.concurrency = 0"),
        ({"mode": "async", "buffer": 3, "max_staleness": -1}, "round.max_staleness = -1"),
        ({"mode": "async", "buffer": 3, "staleness_power": -0.5}, "round.staleness_power = -0.5"),
        (
            {"mode": "async", "buffer": 3, "min_replies": 4},
            "round.buffer = 3: fewer than min_replies = 4",
        ),
    ],
)
def test_an_impossible_choice_is_refused_by_its_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_config({"classes": {"phone": {}}, "round": fields})
    assert "\n" not in str(error.value)


def test_an_asynchronous_configuration_comes_back_from_its_dump() -> None:
    fields = {"classes": {"phone": {}}, "round": asynchronous(buffer=3, max_staleness=4)}
    config = parse_config(fields)
    assert parse_config(config.model_dump(mode="json")) == config


def test_without_a_network_an_asynchronous_run_is_repeatable(tmp_path: Path) -> None:
    config = small_config(**PLAIN, round=asynchronous(buffer=1, concurrency=2))
    found = [run_of(tmp_path / k, config).start() for k in "ab"]
    assert digest(found[0].training.weights) == digest(found[1].training.weights)
    assert max(event["staleness"] for event in found[0].events("round")) > 0
