"""What devices hold and are sent: equal bits on both sides, whatever is lost on the way."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.codec import held as on_device
from fedofa.client.codec.held import received
from fedofa.protos.codec.bounds import worst_error
from fedofa.protos.codec.config import PRESETS
from fedofa.protos.device import DataSource, Device
from fedofa.protos.flower import Values, from_record, to_record
from fedofa.protos.holding import RUNS_HELD, Held
from fedofa.protos.manifest import Normalization
from fedofa.protos.messages import DeviceProfile, MessageError, TrainReply, TrainRequest
from fedofa.server.config import RunConfig
from fedofa.server.exchange import Answer, Request
from fedofa.server.fleet import Member
from fedofa.server.intake import Asked
from fedofa.server.limits import Limits
from fedofa.server.outbox import HELD, Outbox
from fedofa.server.samplers.assigned import Assigned
from fedofa.server.sharing import Kept
from fedofa.server.shelf import Shelf
from fedofa.supernet.axes import Regions, Weights, layout
from fedofa.supernet.cost import Budget
from fedofa.supernet.randomness import array_stream, stream
from fedofa.supernet.space import Space
from fedofa.supernet.weights import Flat, gather, initial, shapes_of, size_of
from fleets import small_config
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from invariants import positions

CODECS = ("int8", "fedzip", "sparse", "sparsest")
ROUNDING = 2.0**-22
SOURCE = DataSource("none:none")

Full = Mapping[str, np.ndarray]


def config_of(codec: str, **fields: Any) -> RunConfig:
    return small_config(downlink={"name": codec, **fields})


def shelf_of(space: Space) -> Shelf:
    return Shelf(size_of({name: tensor.shape for name, tensor in layout(space).items()}))


def moved(weights: Weights, number: int, size: float = 0.01) -> Weights:
    """Weights a little further on."""
    noise = array_stream("moved", number)
    return {
        name: value + size * torch.from_numpy(noise.standard_normal(value.shape, np.float32))
        for name, value in weights.items()
    }


def gathered_from(full: Full, where: Regions) -> Flat:
    """By numpy's own indexing."""
    parts = [full[name][np.ix_(*map(positions, region))].ravel() for name, region in where.items()]
    return np.concatenate(parts).astype(np.float32)


def with_values(full: Full, where: Regions, flat: Flat) -> Full:
    copy, begin = {name: value.copy() for name, value in full.items()}, 0
    for name, region in where.items():
        grid = np.ix_(*map(positions, region))
        size = copy[name][grid].size
        copy[name][grid] = flat[begin : begin + size].reshape(copy[name][grid].shape)
        begin += size
    return copy


@dataclass
class Phone:
    """A device with a folder of its own, reached at a node; it says what it holds when it joins."""

    device: Device
    run: str
    space: Space
    node: int = 0
    member: Member = field(init=False)

    def __post_init__(self) -> None:
        self.join()

    def join(self) -> None:
        """Come as another node, with a profile told anew."""
        self.node += 1
        holds = on_device.held_states(self.device, self.run, self.space).all()
        self.member = Member(self.node, profile(self.device.name, holds), LIMITS, Budget())

    def takes(self, request: Request, where: Regions) -> tuple[Flat, tuple[Held, ...]]:
        """What it makes of a request, by way of Flower's records."""
        body, values = from_record(TrainRequest, to_record(request.body, request.values))
        return received(self.device, body, self.space, where, values)


LIMITS = Limits(Budget(), 1)


def profile(name: str, holds: tuple[Held, ...]) -> DeviceProfile:
    return DeviceProfile(
        device=name, device_class="big", cores=1, memory_bytes=1, train_macs_per_s=1.0,
        infer_macs_per_s=1.0, budget={}, runtimes=(), examples=1, validation_examples=0,
        input_shape=(1, 8, 8), classes=("a", "b"),
        normalization=Normalization(mean=(0.0,), std=(1.0,)), holds=holds,
    )  # fmt: skip


def reply_of(asked: Asked, holds: tuple[Held, ...]) -> TrainReply:
    return TrainReply(
        run="tiny", round=asked.number, device=asked.member.name, arch=dict(asked.assigned.arch),
        examples=1, steps=1, loss=1.0, train_macs=1, seconds=0.0, tensors=(), holds=holds,
    )  # fmt: skip


class Link(RuleBasedStateMachine):
    """A server and two devices between which anything may be lost, stopped, or done again.

    The oracle keeps, by digest, all shared weights as each state of a device has them: whole numpy
    arrays, filled by numpy's own indexing.
    """

    @initialize(codec=st.sampled_from(CODECS), on_disk=st.booleans())
    def begin(self, codec: str, on_disk: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedofa-test-"))
        self.config = config_of(codec)
        self.space = self.config.build_space()
        self.round, self.drawn = 0, 0
        self.history = [initial(self.space, 0)]
        self.full: dict[str, Full] = {}
        self.phones = [self.phone(place, on_disk) for place in range(2)]
        self.lost: set[str] = set()
        self.serve()

    def phone(self, place: int, on_disk: bool) -> Phone:
        # Devices without a folder keep their states by name, in a process that does many tests.
        name = f"{self.folder.name.replace('_', '-')}-{place}"
        memory = str(self.folder / name) if on_disk else None
        return Phone(Device(name, SOURCE, "big", memory=memory), self.config.name, self.space)

    def serve(self) -> None:
        self.outbox = Outbox(
            self.config, self.space, shelf_of(self.space), self.folder / "checkpoints"
        )

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    @rule(
        place=st.integers(0, 1),
        offset=st.integers(0, 5),
        fate=st.sampled_from(("well", "well", "well", "request lost", "reply lost", "fails")),
        counts=st.sampled_from((True, True, False)),
    )
    def ask(self, place: int, offset: int, fate: str, counts: bool) -> None:
        """A round that asks one device, or one that comes to nothing and is tried again."""
        self.drawn += 1
        arch = self.space.sample(stream("arch", self.drawn))
        phone, assigned = self.phones[place], Assigned(arch, offset if self.drawn % 3 == 0 else 0)
        where = assigned.regions(self.space)
        asked = Asked(phone.member, assigned, self.round + 1, 0.1, Kept(), None)
        weights = self.history[self.round]
        request = self.outbox.send(asked, weights)
        assert self.outbox.sent_bytes(asked) == array_of(request).nbytes
        answer: Answer[TrainReply] = Answer(phone.node, None, None, "lost", silent=True)
        took: Flat | None = None
        if fate != "request lost":
            try:
                took, holds = phone.takes(request, where)
            except MessageError:
                # Only what it lost without a word, and never a value that is wrong.
                assert phone.device.name in self.lost
                fate = "fails"
            else:
                self.lost.discard(phone.device.name)
                answer = Answer(phone.node, reply_of(asked, holds), None)
        if fate == "fails":
            answer = Answer(phone.node, None, None, "error 2: it failed")
        if fate == "reply lost":
            answer = Answer(phone.node, None, None, "lost", silent=True)
        thought = self.outbox.answered(asked, answer, weights)
        if took is not None:
            assert took.tobytes() == thought.tobytes()
            self.check(request, where, took, gather(weights, where))
        if counts:
            self.round += 1
            self.history[self.round :] = [moved(weights, self.drawn)]

    def check(self, request: Request, where: Regions, took: Flat, now: Flat) -> None:
        """Bits of plain values, the codec's error of others; the oracle has the same values."""
        assert isinstance(request.body, TrainRequest)
        holding = request.body.holding
        assert holding is not None
        before = (
            {n: np.full(t.shape, np.nan, np.float32) for n, t in layout(self.space).items()}
            if holding.base is None
            else self.full[holding.base.digest]
        )
        self.full[holding.digest] = with_values(before, where, took)
        if not is_difference(request):
            assert took.tobytes() == now.tobytes()
            return
        held = gathered_from(before, where)
        delta = np.where(np.isnan(held), np.float32(0), now - held)
        worst = worst_error(delta, shapes_of(where), holding.codec)
        begin = 0
        for name, error in worst.items():
            end = begin + int(np.prod(shapes_of(where)[name]))
            off = np.abs(took[begin:end].astype(np.float64) - now[begin:end]).max()
            assert off <= error + ROUNDING * np.abs(now[begin:end]).max(), name
            begin = end

    @rule(place=st.integers(0, 1), loses=st.booleans())
    def a_device_restarts(self, place: int, loses: bool) -> None:
        if loses:
            self.forget(self.phones[place])
        self.phones[place].join()
        self.lost.discard(self.phones[place].device.name)

    @rule(place=st.integers(0, 1))
    def a_device_loses_its_memory_without_a_word(self, place: int) -> None:
        self.forget(self.phones[place])
        self.lost.add(self.phones[place].device.name)

    def forget(self, phone: Phone) -> None:
        if phone.device.memory is not None:
            shutil.rmtree(phone.device.memory, ignore_errors=True)
        states = on_device.held_states(phone.device, self.config.name, self.space)
        states._files._states.clear()

    @rule(back=st.integers(0, 3))
    def the_server_resumes(self, back: int) -> None:
        self.round = max(self.round - back, 0)
        del self.history[self.round + 1 :]
        self.serve()
        for phone in self.phones:
            phone.join()
        self.lost.clear()

    @rule()
    def the_server_loses_what_it_kept(self) -> None:
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    @invariant()
    def both_sides_keep_two_states_at_most(self) -> None:
        if not hasattr(self, "folder"):
            return
        for phone in self.phones:
            kept = self.folder / "checkpoints" / HELD / phone.device.name
            assert len(list(kept.glob("*"))) <= 2
            states = on_device.held_states(phone.device, self.config.name, self.space)
            assert len(states.all()) <= 2


TestLink = Link.TestCase
TestLink.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def array_of(request: Request) -> Values:
    assert request.values is not None
    return request.values


def is_difference(request: Request) -> bool:
    return array_of(request).dtype == np.uint8


# ── one device, step by step ─────────────────────────────────────────────────────────────────────


class Pair:
    """One device and the server, round by round, on the largest subnet unless told otherwise."""

    def __init__(self, folder: Path, codec: str = "sparse", **fields: Any) -> None:
        self.folder, self.config = folder, config_of(codec, **fields)
        self.space = self.config.build_space()
        self.weights, self.number = initial(self.space, 0), 0
        self.phone = self.another("phone")
        self.outbox = Outbox(self.config, self.space, shelf_of(self.space), folder / "server")

    def another(self, name: str) -> Phone:
        device = Device(name, SOURCE, "big", memory=str(self.folder / "devices" / name))
        return Phone(device, self.config.name, self.space)

    def ask(self, phone: Phone | None = None) -> tuple[Asked, Request]:
        self.number += 1
        self.weights = moved(self.weights, self.number)
        member = (phone or self.phone).member
        asked = Asked(member, Assigned(self.space.largest()), self.number, 0.1, Kept(), None)
        return asked, self.outbox.send(asked, self.weights)

    def where(self) -> Regions:
        return Assigned(self.space.largest()).regions(self.space)

    def answer(self, asked: Asked, holds: tuple[Held, ...]) -> None:
        reply = reply_of(asked, holds)
        self.outbox.answered(asked, Answer(asked.member.node, reply, None), self.weights)

    def fail(self, asked: Asked) -> None:
        failed: Answer[TrainReply] = Answer(asked.member.node, None, None, "error 2: it failed")
        self.outbox.answered(asked, failed, self.weights)

    def round(self, phone: Phone | None = None) -> Request:
        asked, request = self.ask(phone)
        _, holds = (phone or self.phone).takes(request, self.where())
        self.answer(asked, holds)
        return request


def test_from_the_second_round_on_a_difference_travels(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    first, second = pair.round(), pair.round()
    assert not is_difference(first)
    assert is_difference(second)
    assert 20 * array_of(second).nbytes < array_of(first).nbytes


@pytest.mark.parametrize("arrives", [False, True])
def test_after_a_lost_request_or_reply_a_difference_travels_all_the_same(
    arrives: bool, tmp_path: Path
) -> None:
    pair = Pair(tmp_path)
    pair.round()
    for _ in range(3):
        asked, request = pair.ask()
        if arrives:
            pair.phone.takes(request, pair.where())
        lost: Answer[TrainReply] = Answer(asked.member.node, None, None, "lost", silent=True)
        pair.outbox.answered(asked, lost, pair.weights)
        assert is_difference(request)
    assert is_difference(pair.round())


def test_a_device_that_comes_back_goes_on_with_a_difference(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.round()
    pair.phone.join()
    assert is_difference(pair.round())


def test_what_a_device_says_it_holds_and_the_server_does_not_know_is_not_used(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path)
    asked, request = pair.ask()
    pair.phone.takes(request, pair.where())
    pair.answer(asked, (Held(round=1, digest="f" * 64), Held(round=0, digest="0" * 64)))
    assert not is_difference(pair.round())
    assert is_difference(pair.round())


def test_a_device_whose_memory_is_gone_fails_once_and_is_then_sent_all_values(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path)
    pair.round()
    shutil.rmtree(tmp_path / "devices")
    asked, request = pair.ask()
    with pytest.raises(MessageError, match="no longer holds what it was sent in round 1"):
        pair.phone.takes(request, pair.where())
    pair.fail(asked)
    assert not is_difference(pair.round())
    assert is_difference(pair.round())


def test_a_device_that_ends_with_other_values_trains_nothing_of_them(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.round()
    _, request = pair.ask()
    assert isinstance(request.body, TrainRequest)
    assert request.body.holding is not None
    other = request.body.holding.model_copy(update={"digest": "0" * 64})
    body = request.body.model_copy(update={"holding": other})
    with pytest.raises(MessageError, match="would hold other values than the server thinks"):
        pair.phone.takes(replace(request, body=body), pair.where())
    states = on_device.held_states(pair.phone.device, pair.config.name, pair.space)
    assert [one.round for one in states.all()] == [1]


def test_a_device_that_cannot_use_differences_is_soon_sent_none(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    sent = []
    for _ in range(8):
        asked, request = pair.ask()
        sent.append(is_difference(request))
        if sent[-1]:
            pair.fail(asked)
        else:
            pair.answer(asked, pair.phone.takes(request, pair.where())[1])
    assert sent == [False, True, False, True, False, False, False, False]


def test_a_device_without_room_trains_all_the_same_and_says_it_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "devices").write_text("no folder")
    pair = Pair(tmp_path)
    assert not is_difference(pair.round())
    assert not is_difference(pair.round())
    assert "the next values will come as they are" in caplog.text


def test_of_a_supernet_that_is_too_large_a_device_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(tmp_path)
    monkeypatch.setattr(on_device, "MOST_VALUES", size_of(shapes_of(pair.where())) - 1)
    assert not is_difference(pair.round())
    assert not is_difference(pair.round())
    assert not (tmp_path / "devices").exists()


def test_few_bytes_cannot_promise_many_values(tmp_path: Path) -> None:
    """A difference in a subnet of which nothing is held must bring its values."""
    pair = Pair(tmp_path)
    small = Assigned(pair.space.smallest())
    asked = Asked(pair.phone.member, small, 1, 0.1, Kept(), None)
    request = pair.outbox.send(asked, pair.weights)
    _, holds = pair.phone.takes(request, small.regions(pair.space))
    pair.answer(asked, holds)
    pair.number = 1
    _, honest = pair.ask()
    assert is_difference(honest)
    short = replace(honest, values=np.zeros(40, np.uint8))
    with pytest.raises(MessageError, match=r"difference of \d+ values; \d+ are held"):
        pair.phone.takes(short, pair.where())
    pair.phone.takes(honest, pair.where())


def test_a_difference_without_a_base_and_an_array_of_another_size_are_refused(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path)
    _, request = pair.ask()
    for values in (np.zeros(400, np.uint8), array_of(request)[:-1], None):
        with pytest.raises(MessageError):
            pair.phone.takes(replace(request, values=values), pair.where())


def test_a_base_is_of_an_earlier_round(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.round()
    _, request = pair.ask()
    assert isinstance(request.body, TrainRequest)
    text = request.body.model_copy(update={"round": 1}).to_json()
    with pytest.raises(MessageError, match=r"holding.base is of round 1, not before 1"):
        TrainRequest.from_json(text)


def test_the_server_keeps_what_so_many_devices_hold(tmp_path: Path) -> None:
    pair = Pair(tmp_path, devices=2)
    a, b, c = (pair.another(name) for name in "abc")
    for phone in (a, b, a):
        pair.round(phone)
    pair.round(c)
    kept = tmp_path / "server" / HELD
    assert sorted(path.name for path in kept.iterdir()) == ["a", "c"]
    assert is_difference(pair.round(a))
    assert not is_difference(pair.round(b))


def test_a_device_keeps_what_it_holds_of_the_last_few_runs(tmp_path: Path) -> None:
    for number in range(RUNS_HELD + 2):
        pair = Pair(tmp_path)
        pair.config = pair.config.model_copy(update={"name": f"run-{number}"})
        pair.outbox = Outbox(
            pair.config, pair.space, shelf_of(pair.space), tmp_path / f"server-{number}"
        )
        pair.round()
    kept = {path.name for path in (tmp_path / "devices" / "phone" / "held").iterdir()}
    assert kept == {f"run-{number}" for number in range(2, RUNS_HELD + 2)}


def test_weights_whose_difference_cannot_be_encoded_travel_as_they_are(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.weights = {name: torch.full_like(v, 3e38) for name, v in pair.weights.items()}
    pair.round()
    pair.weights = {name: torch.full_like(v, -3e38) for name, v in pair.weights.items()}
    assert not is_difference(pair.round())
    assert is_difference(pair.round())


@pytest.mark.parametrize("name", CODECS)
def test_the_presets_differ_in_the_rounding_alone(name: str) -> None:
    found = config_of(name).downlink
    assert found is not None
    nearest = {"rounding": "nearest"} if PRESETS[name].levels == "uniform" else {}
    assert found.codec() == PRESETS[name].model_copy(update=nearest)
