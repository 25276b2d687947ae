"""Whole runs with secure sums: what the server gets, what comes out, and devices that drop out or lie."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.client.app import SESSION, STATE
from fedofa.client.app import app as honest_app
from fedofa.client.device import of_node
from fedofa.client.privacy.secure_client import SecureClient
from fedofa.protos.fixed_point import FixedPoint
from fedofa.protos.flower import BODY, DTYPE, JSON, VALUES, from_record, to_record
from fedofa.protos.messages import TrainReply
from fedofa.protos.noise import GaussianNoise, clipped, norm_of
from fedofa.protos.places import places
from fedofa.protos.secure_figures import COUNT, Figures
from fedofa.protos.secure_messages import Advert, Masked
from fedofa.protos.secure_requests import LetterReply, LetterRequest, MaskedReply, MaskedRequest
from fedofa.server.config import RunConfig
from fedofa.server.ledger_chain import LEDGER
from fedofa.server.ledger_entries import Round, entry_of, unseal
from fedofa.server.privacy.config import BOUND, SecureConfig
from fedofa.server.reputation import ReputationConfig
from fedofa.supernet.axes import layout, regions
from fedofa.supernet.errors import RunError, UsageError
from fedofa.supernet.weights import digest, gather, initial
from fleets import Clients, Run, grid_of, small_config, small_fleet
from flwr.app import ConfigRecord, Context, Message, RecordDict

CLASSES = ("big", "small", "small", "big")
LETTERS = ("advertise", "share", "mask", "unmask")
CALM = {"steps": 2, "students": "none", "lr": 0.05, "lr_schedule": "constant"}


def plain(**changes: Any) -> RunConfig:
    """One round whose updates count alike."""
    fields: dict[str, Any] = {
        "recipe": CALM,
        "sampler": {"kind": "tiers"},
        "server": {"optimizer": "none"},
        "aggregation": {"weights": "uniform"},
        "round": {"rounds": 1, "min_clients": 4},
    }
    return small_config(**{**fields, **changes})


def secure(given: Mapping[str, Any] | None = None, **changes: Any) -> RunConfig:
    """The same with secure sums, which half the devices and one more can open."""
    return plain(secure={"least_cover": 2, "threshold": 3, **(given or {})}, **changes)


def letter_of(message: Message) -> str | None:
    """Which of the four letters a request is; None for other messages."""
    kind = message.metadata.message_type
    if kind == MaskedRequest.action:
        return "mask"
    return from_record(LetterRequest, message.content)[0].step if "letter" in kind else None


Trick = Callable[[Message, Message], Message]
"""Request and honest reply → what the device sends."""


@dataclass
class Letters:
    """The ClientApp with tricks at letters: (device, letter) → what is made of the honest reply.

    `forgets` lists whose state is lost before a letter, as when the device was started again. Keeps
    every reply as it reaches the server, and each device's secrets before every letter.
    """

    tricks: Mapping[tuple[str, str], Trick] = field(default_factory=dict)
    forgets: tuple[tuple[str, str], ...] = ()
    arrived: list[tuple[str, str, RecordDict]] = field(default_factory=list)
    states: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def __call__(self, message: Message, context: Context) -> Message:
        name = of_node(context.node_config, context.run_config).name
        letter = letter_of(message) or message.metadata.message_type
        if (name, letter) in self.forgets:
            del context.state[SESSION]
        if SESSION in context.state:
            kept = context.state.config_records[SESSION][STATE]
            assert isinstance(kept, bytes)
            self.states[name, letter] = kept
        reply = honest_app(message=message, context=context)
        if (name, letter) in self.tricks:
            reply = self.tricks[name, letter](message, reply)
        self.arrived.append((name, letter, reply.content))
        return reply


def letter_in(record: RecordDict, part: str = BODY) -> bytes:
    """The bytes of a record's array."""
    found = record.config_records[part][VALUES]
    assert isinstance(found, bytes)
    return found


def dying(_request: Message, _reply: Message) -> Message:
    """A device that is gone when its answer should come."""
    raise RuntimeError("power loss")


def run_in(
    folder: Path, config: RunConfig, app: Any = honest_app, at: int = 0, **options: Any
) -> Run:
    """A run with a ledger, to begin after round `at` or, where there is a checkpoint, to resume."""
    devices = small_fleet(folder, CLASSES)
    run = Run(folder, config, grid_of(devices, app, **options), keeps_ledger=True)
    if not run.training.resume():
        run.training.round = at
        run.training.begin()
    return run


def flat(weights: Mapping[str, Any]) -> Any:
    return np.concatenate([t.numpy().reshape(-1) for t in weights.values()]).astype(np.float64)


def mean_of(run: Run, updates: Mapping[Any, tuple[TrainReply, Any]]) -> tuple[Any, Any]:
    """The plain mean of honest updates, and how many cover each value; float64, flat."""
    space = run.training.space
    before, shapes = initial(space, 0), {n: t.shape for n, t in layout(space).items()}
    start = flat(before)
    total, covered = np.zeros(len(start)), np.zeros(len(start))
    for body, values in updates.values():
        where = regions(space, space.arch(body.arch))
        at = places(shapes, where)
        total[at] += (values - gather(before, where)).astype(np.float64)
        covered[at] += 1
    return start + total / np.maximum(covered, 1), covered


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainReply, Any]]:
    """Each device's update in the first round, as it would be sent in the clear."""
    clients = Clients()
    run_in(tmp_path_factory.mktemp("plain"), plain(), clients).start()
    return {name: update for (_, name), update in clients.passed.items()}


def assert_mean(run: Run, updates: Mapping[str, tuple[TrainReply, Any]], least: int = 2) -> None:
    """The weights are the mean's, within a step of the fixed point and float32's own rounding."""
    expected, covered = mean_of(run, updates)
    found, before = flat(run.training.weights), flat(initial(run.training.space, 0))
    summed = covered >= least
    step = FixedPoint(BOUND, len(CLASSES)).step
    error = np.abs(found - expected)[summed]
    assert np.all(error <= step + 2.0**-22 * np.maximum(np.abs(expected[summed]), 1e-3))
    assert np.array_equal(found[~summed], before[~summed])


def entries(run: Run) -> Iterator[Any]:
    for line in (run.folder / LEDGER).read_bytes().splitlines(keepends=True):
        sealed = unseal(line)
        assert sealed is not None
        yield entry_of(sealed.body)


# What comes out


def test_a_secure_round_ends_with_the_plain_mean_of_the_updates(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]]
) -> None:
    run = run_in(tmp_path, secure()).start()
    assert_mean(run, honest)
    (told,) = run.events("round")
    losses = [body.loss for body, _ in honest.values()]
    assert told["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert (told["accepted"], told["missing"], told["coverage"]) == (4, 0, 1.0)
    assert told["train_macs"] == sum(body.train_macs for body, _ in honest.values())
    (summed,) = run.events("secure_sum")
    assert (summed["devices"], summed["left_out"], summed["cut"]) == (4, 0, 0.0)


def test_values_that_too_few_devices_train_keep_their_bytes(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]]
) -> None:
    run = run_in(tmp_path, secure({"least_cover": 3})).start()
    _, covered = mean_of(run, honest)
    assert set(np.unique(covered)) == {2.0, 4.0}
    assert_mean(run, honest, least=3)
    (summed,) = run.events("secure_sum")
    assert summed["left_out"] == np.count_nonzero(covered == 2)
    assert run.events("round")[0]["coverage"] == pytest.approx(np.mean(covered == 4), abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": {"kind": "rolling"}},
        {"share": {"preset": "local-head"}},
        {"sampler": {"kind": "growing"}, "recipe": {"steps": 2}},
    ],
    ids=["rolled windows", "local tensors", "the default method"],
)
def test_whatever_is_trained_the_sum_lies_where_the_plain_mean_does(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    # The seventh round: by then windows wrap round.
    changes = {"round": {"rounds": 7, "min_clients": 4}, **changes}
    plainly = run_in(tmp_path / "plain", plain(**changes), at=6).start()
    found = run_in(tmp_path / "secure", secure(**changes), at=6).start()
    before, there = flat(initial(found.training.space, 0)), flat(plainly.training.weights)
    moved, mine = there != before, flat(found.training.weights)
    (summed,) = found.events("secure_sum")
    alone = np.flatnonzero((mine == before) & moved & (np.abs(there - before) > 1e-6))
    assert len(alone) <= summed["left_out"]
    others = np.setdiff1d(np.arange(len(before)), alone)
    assert len(others) > 1000
    np.testing.assert_allclose(mine[others], there[others], rtol=1e-6, atol=1e-6)


def test_a_change_beyond_the_bound_is_cut_and_the_log_says_so(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]]
) -> None:
    bound = 1e-3
    run = run_in(tmp_path, secure({"bound": bound})).start()
    moved = np.abs(flat(run.training.weights) - flat(initial(run.training.space, 0)))
    assert bound / 2 < moved.max() <= bound * 1.001
    shares = []
    space = run.training.space
    for body, values in honest.values():
        sent = gather(initial(space, 0), regions(space, space.arch(body.arch)))
        shares.append(np.mean(np.abs(values - sent) > bound))
    (summed,) = run.events("secure_sum")
    assert summed["cut"] == pytest.approx(np.mean(shares), abs=1e-5)
    assert summed["cut"] > 0.01


def test_neither_the_order_of_arrival_nor_a_resume_changes_a_bit(tmp_path: Path) -> None:
    config = secure(round={"rounds": 3, "min_clients": 4})
    whole = run_in(tmp_path / "whole", config).start()
    late = run_in(tmp_path / "late", config, polls={100: 3, 102: 1}).start()
    short = secure(round={"rounds": 2, "min_clients": 4})
    run_in(tmp_path / "resumed", short).start()
    resumed = run_in(tmp_path / "resumed", config)
    assert resumed.training.round == 2
    resumed.start()
    found = {digest(run.training.weights) for run in (whole, late, resumed)}
    assert len(found) == 1
    other = run_in(tmp_path / "other", short)
    other.training.config = other.training.config.model_copy(
        update={"secure": SecureConfig(least_cover=3)}
    )
    assert other.training.fingerprint() != whole.training.fingerprint()


# What the server gets


def test_the_server_gets_no_update_and_no_loss_of_any_device(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]]
) -> None:
    """Everything that arrives in training is recorded and searched."""
    letters = Letters()
    run = run_in(tmp_path, secure(), letters).start()
    space, point = run.training.space, FixedPoint(BOUND, 4)
    shapes = {n: t.shape for n, t in layout(space).items()}
    arrived = [found for found in letters.arrived if found[1] in LETTERS]
    assert len(arrived) == 16
    everything = b"".join(letter_in(record, part) for _, _, record in arrived for part in record)
    words = []
    for name, letter, record in arrived:
        body = json.loads(str(record.config_records[BODY][JSON]))
        assert record.config_records[BODY][DTYPE] == "uint8"
        kind = MaskedReply if letter == "mask" else LetterReply
        assert body.keys() == kind.model_fields.keys()
        assert not {"loss", "examples", "seconds"} & body.keys()
        assert len(record) == 1
        if letter != "mask":
            continue
        reply, values = honest[name]
        assert values is not None
        where = regions(space, space.arch(reply.arch))
        delta = values - gather(initial(space, 0), where)
        assert delta.tobytes() not in everything
        assert np.asarray(values).tobytes() not in everything
        tail = Masked.from_bytes(letter_in(record))[1]
        masked = np.frombuffer(tail, "<u4")
        # Cells come one after another; which value is where the server itself worked out.
        in_the_clear = np.concatenate(
            [point.encode(delta), point.encode(Figures(reply.loss, 0).values(BOUND))]
        )
        assert len(masked) == len(in_the_clear)
        assert len(np.intersect1d(masked, in_the_clear)) < 5
        words.append(masked)
    # Uniform bytes: every byte's share of the whole is 1 in 256, give or take five deviations.
    counts = np.bincount(np.concatenate(words).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert np.all(np.abs(counts - expected) < 5.5 * math.sqrt(expected))
    assert shapes.keys() == run.training.weights.keys()


def test_no_secret_of_a_device_is_in_what_it_sends_nor_kept_after_the_round(
    tmp_path: Path,
) -> None:
    letters = Letters()
    run = run_in(tmp_path, secure(), letters).start()
    everything = b"".join(
        letter_in(record) for _, letter, record in letters.arrived if letter in LETTERS
    )
    for name in ("dev-0", "dev-3"):
        state = SecureClient(name, state=letters.states[name, "unmask"])._state
        secrets = [state.mask_private, state.seal_private, *state.seeds.values()]
        assert len(secrets) >= 4
        assert not any(secret in everything for secret in secrets)
    for context in run.grid._contexts.values():
        kept = context.state.config_records[SESSION][STATE]
        assert isinstance(kept, bytes)
        assert SecureClient("x", state=kept)._state.phase == "idle"
        assert len(kept) < 300
    # Nothing of it is on disk, nor in the log or the ledger.
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets)


def test_the_ledger_has_the_digests_of_the_masked_bytes(tmp_path: Path) -> None:
    letters = Letters()
    run = run_in(tmp_path, secure(), letters).start()
    (entry,) = (found for found in entries(run) if isinstance(found, Round))
    sent = {
        name: sha256(letter_in(record)).hexdigest()
        for name, letter, record in letters.arrived
        if letter == "mask"
    }
    assert {name: one.sha256 for name, one in entry.accepted.items()} == sent
    assert {one.weight for one in entry.accepted.values()} == {1.0}


# Devices that drop out


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("restarted", [False, True], ids=["killed", "restarted"])
def test_a_round_goes_on_without_a_device_that_is_lost_between_letters(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]], letter: str, restarted: bool
) -> None:
    gone = ("dev-1", letter)
    if restarted and letter == "advertise":
        pytest.skip("nothing is remembered before the first letter")
    letters = Letters(forgets=(gone,)) if restarted else Letters({gone: dying})
    run = run_in(tmp_path, secure(), letters).start()
    stays = letter == "unmask"
    left = {name: update for name, update in honest.items() if stays or name != "dev-1"}
    assert_mean(run, left)
    (told,) = run.events("round")
    assert (told["accepted"], told["missing"], told["refused"]) == (len(left), 4 - len(left), 0)
    (event,) = run.events("no_reveal" if stays else "no_update")
    assert event["device"] == "dev-1"
    assert ("SecrecyError: phase" if restarted else "power loss") in event["reason"]
    (entry,) = (found for found in entries(run) if isinstance(found, Round))
    assert entry.missing == (() if stays else ("dev-1",))
    asked = [at for name, at, _ in letters.arrived if name == "dev-1" and at in LETTERS]
    assert len(asked) == LETTERS.index(letter)


@pytest.mark.parametrize("letter", LETTERS)
def test_with_too_few_devices_left_a_round_is_abandoned_and_no_weight_has_moved(
    tmp_path: Path, letter: str
) -> None:
    letters = Letters({("dev-1", letter): dying, ("dev-2", letter): dying})
    run = run_in(tmp_path, secure(), letters)
    before = digest(run.training.weights)
    with pytest.raises(RunError, match=r"abandoned 3 times.*secure\.threshold"):
        run.start()
    assert digest(run.training.weights) == before
    assert (run.training.round, len(run.events("round_abandoned"))) == (0, 3)
    assert run.store.latest() is None
    notes = [event["note"] for event in run.events("aggregation_note")]
    assert len(notes) == 3
    assert all("2 devices are left" in note and "3 are needed" in note for note in notes)
    if letter != "unmask":
        assert not any(at == "unmask" for _, at, _ in letters.arrived)


def test_nothing_is_revealed_where_fewer_updates_came_than_a_round_must_have(
    tmp_path: Path,
) -> None:
    letters = Letters({("dev-1", "mask"): dying})
    config = secure(round={"rounds": 1, "min_clients": 4, "min_replies": 4})
    with pytest.raises(RunError, match="abandoned 3 times"):
        run_in(tmp_path, config, letters).start()
    assert not any(at == "unmask" for _, at, _ in letters.arrived)


def test_a_diverged_training_takes_no_part(tmp_path: Path) -> None:
    recipe = {**CALM, "lr": 1e30, "steps": 4, "clip_norm": None, "clip_value": None}
    run = run_in(tmp_path, secure(recipe=recipe))
    with pytest.raises(RunError, match="abandoned"):
        run.start()
    assert all("non_finite" in event["reason"] for event in run.events("no_update"))


# Devices that lie


def sending(change: Callable[[bytes], bytes], **fields: object) -> Trick:
    """Another letter, or other words beside it."""

    def trick(request: Message, reply: Message) -> Message:
        kind = MaskedReply if letter_of(request) == "mask" else LetterReply
        body, values = from_record(kind, reply.content)
        assert values is not None
        found = np.frombuffer(change(values.tobytes()), np.uint8)
        return Message(to_record(body.model_copy(update=fields), found), reply_to=request)

    return trick


def as_floats(request: Message, reply: Message) -> Message:
    record = reply.content
    record[BODY] = ConfigRecord({**record.config_records[BODY], DTYPE: "float32", VALUES: bytes(8)})
    return reply


def without_secret_keys(letter: bytes) -> bytes:
    found, _ = Advert.from_bytes(letter)
    return found.model_copy(update={"mask_key": bytes(32)}).to_bytes()


GARBAGE: Mapping[str, tuple[Trick, str]] = {
    "noise": (
        sending(lambda letter: np.random.default_rng(0).bytes(len(letter))),
        "secure_malformed",
    ),
    "nothing": (sending(lambda _: b""), "secure_malformed"),
    "a longer letter": (sending(lambda letter: letter + b"x"), "secure_size"),
    "floats": (as_floats, "dtype"),
    "another's name": (sending(lambda letter: letter, device="dev-2"), "device"),
    "another round's": (sending(lambda letter: letter, round=7), "stale_round"),
}


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("kind", GARBAGE)
def test_a_device_that_sends_garbage_is_refused_and_the_others_are_summed(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]], kind: str, letter: str
) -> None:
    trick, code = GARBAGE[kind]
    run = run_in(tmp_path, secure(), Letters({("dev-1", letter): trick})).start()
    stays = letter == "unmask"
    assert_mean(run, {n: update for n, update in honest.items() if stays or n != "dev-1"})
    (event,) = run.events("update_suspected" if stays else "update_refused")
    assert (event["device"], event["code"]) == ("dev-1", code)
    assert run.training.selection.reputation.reasons("dev-1") == [(1, code)]
    (entry,) = (found for found in entries(run) if isinstance(found, Round))
    assert (entry.suspected if stays else entry.refused) == {"dev-1": code}


def test_keys_that_everybody_knows_or_another_uses_are_refused_before_others_see_them(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]]
) -> None:
    def others(letter: bytes) -> bytes:
        found, _ = Advert.from_bytes(letter)
        return found.model_copy(update={"mask_key": found.seal_key}).to_bytes()

    for number, change in enumerate((without_secret_keys, others)):
        letters = Letters({("dev-1", "advertise"): sending(change)})
        run = run_in(tmp_path / str(number), secure(), letters).start()
        (event,) = run.events("update_refused")
        assert (event["device"], event["code"]) == ("dev-1", "secure_key")
        assert_mean(run, {name: u for name, u in honest.items() if name != "dev-1"})


def test_another_architecture_than_was_assigned_is_refused(tmp_path: Path) -> None:
    trick = sending(lambda letter: letter, arch={"nonsense": 1})
    run = run_in(tmp_path, secure(), Letters({("dev-1", "mask"): trick})).start()
    (event,) = run.events("update_refused")
    assert event["code"] == "assignment_mismatch"


def test_a_wrong_share_where_none_is_to_spare_abandons_the_round(tmp_path: Path) -> None:
    def wrong(letter: bytes) -> bytes:
        return letter[:-31] + bytes(31)

    config = secure({"threshold": 4}, reputation=ReputationConfig(strikes=0).model_dump())
    run = run_in(tmp_path, config, Letters({("dev-1", "unmask"): sending(wrong)}))
    before = digest(run.training.weights)
    with pytest.raises(RunError, match="abandoned"):
        run.start()
    assert digest(run.training.weights) == before
    assert "some device sent a wrong one" in run.events("aggregation_note")[0]["note"]


def test_a_device_does_not_train_without_the_letters_before(tmp_path: Path) -> None:
    """A server that asks for masked values outright gets nothing."""
    letters = Letters(forgets=tuple((f"dev-{n}", "mask") for n in range(4)))
    run = run_in(tmp_path, secure(), letters)
    with pytest.raises(RunError, match="abandoned"):
        run.start()
    assert not any(at == "mask" for _, at, _ in letters.arrived)


# Together with differential privacy

BUDGET: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-3, "clip": 0.01}


class Silent(GaussianNoise):
    def draw(self, size: int, std: float) -> Any:
        return np.zeros(size)


def private(mode: str, **given: Any) -> RunConfig:
    return secure(given, privacy={**BUDGET, "mode": mode}, reputation={"strikes": 0})


def test_the_server_noises_the_sum_of_updates_that_devices_clipped(
    tmp_path: Path, honest: dict[str, tuple[TrainReply, Any]]
) -> None:
    found = {}
    for name, noise in (
        ("silent", Silent()),
        ("noisy", GaussianNoise(np.random.default_rng(0).bytes)),
    ):
        run = run_in(tmp_path / name, private("central"))
        assert run.training.private is not None
        run.training.private.noise = noise
        found[name] = run.start()
    run = found["noisy"]
    assert run.training.private is not None
    space, shapes = run.training.space, run.training.shapes
    start = flat(initial(space, 0))
    total, covered = np.zeros(len(start)), np.zeros(len(start))
    for body, values in honest.values():
        where = regions(space, space.arch(body.arch))
        delta = values - gather(initial(space, 0), where)
        assert norm_of(delta) > 2 * 0.01
        at = places(shapes, where)
        total[at] += clipped(delta, 0.01)
        covered[at] += 1
    without, withal = (
        (flat(one.training.weights) - start) * covered - total for one in found.values()
    )
    assert np.abs(without).max() < 1e-6
    std = run.training.private.plan.sum_multiplier * 0.01
    assert np.std(withal) == pytest.approx(std, rel=0.05)
    assert run.training.private.spent == 1
    assert run.events("round")[0]["epsilon"] == pytest.approx(8.0, abs=1e-3)


def test_each_device_adds_the_share_of_noise_that_the_least_covered_value_needs(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path, private("local", threshold=4))
    assert run.training.private is not None
    plan = run.training.private.plan
    assert plan.sharers == 2
    run.start()
    start = flat(initial(run.training.space, 0))
    moved = flat(run.training.weights) - start
    # Clipped to 0.01 in all, updates are far below the noise: two shares make the whole of it.
    for count in (2, 4):
        covered = _covered(run) == count
        assert np.std(moved[covered] * count) == pytest.approx(
            plan.sum_multiplier * 0.01 * math.sqrt(count / 2), rel=0.05
        )
    assert run.events("secure_sum")[0]["cut"] == 0.0


def _covered(run: Run) -> Any:
    space, shapes = run.training.space, run.training.shapes
    covered = np.zeros(len(flat(run.training.weights)))
    big, small = (
        next(m for m in run.roll.fleet().members.values() if m.profile.device_class == name)
        for name in ("big", "small")
    )
    chosen = run.training.assignments(run.roll.fleet())
    for member in (big, big, small, small):
        covered[places(shapes, chosen[member.node][1].regions(space))] += 1
    return covered


# What is refused before anything starts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round": {"mode": "async", "buffer": 2}}, r"round\.mode = async with \[secure\]"),
        ({"round": {"enough_replies": 3}}, r"round\.enough_replies = 3"),
        ({"round": {"min_clients": 2}}, r"round\.min_clients = 2"),
        ({"round": {"clients": 2}}, r"round\.clients = 2"),
        ({"codec": "sparse"}, "codec with"),
        ({"aggregation": {"weights": "examples"}}, r"aggregation\.weights = examples"),
        ({"aggregation": {"weights": "uniform", "rule": "median"}}, r"aggregation\.rule = median"),
        ({"aggregation": {"weights": "uniform", "clip": 2.0}}, r"aggregation\.clip = 2"),
        ({"aggregation": {"weights": "uniform", "size_power": 1.0}}, r"aggregation\.size_power"),
        ({"sampler": {"kind": "importance"}}, r"sampler\.kind = importance"),
        ({"sampler": {"kind": "budget_bins"}}, r"sampler\.kind = budget_bins"),
        ({"sampler": {"kind": "maxnet"}}, r"sampler\.kind = maxnet"),
        ({"secure": {"threshold": 0.5}}, r"secure\.threshold"),
        ({"secure": {"threshold": 1}}, r"secure\.threshold"),
        ({"secure": {"threshold": True}}, r"secure\.threshold"),
        ({"secure": {"threshold": 5}}, r"round\.min_clients = 4 .* at least 5"),
        ({"secure": {"least_cover": 1}}, r"secure\.least_cover"),
        ({"secure": {"bound": 0.0}}, r"secure\.bound"),
        ({"secure": {"treshold": 0.7}}, "did you mean 'threshold'"),
        ({"simulation": {"clients": {"big": 1000, "small": 100}}}, r"at most 1024 .*round\.clients"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    fields = {"round": {"rounds": 1, "min_clients": 4, **changes.pop("round", {})}, **changes}
    given = fields.pop("secure", {})
    with pytest.raises(UsageError, match=words):
        plain(secure={"least_cover": 3, **given}, **fields)


def test_what_privacy_and_secure_sums_say_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"secure\.bound = 1"):
        private("central", bound=1.0)
    with pytest.raises(UsageError, match=r"privacy\.adaptive with \[secure\]"):
        secure(privacy={**BUDGET, "adaptive": {"count_noise": 2.0}}, reputation={"strikes": 0})


def test_a_round_of_too_few_free_devices_asks_nobody(tmp_path: Path) -> None:
    letters = Letters()
    devices = small_fleet(tmp_path, CLASSES)
    run = Run(tmp_path, secure({"threshold": 4}), grid_of(devices, letters, order=[0, 1, 2]))
    run.roll.refresh()
    assert len(run.roll.fleet().members) == 3
    assert run.strategy._secure(run.training, run.config.secure or SecureConfig()) is None
    assert not [at for _, at, _ in letters.arrived if at in LETTERS]
    assert "3 devices are free; 4 are needed" in run.events("aggregation_note")[0]["note"]


def test_flowers_own_loop_is_told_that_a_round_takes_four_messages(tmp_path: Path) -> None:
    run = run_in(tmp_path, secure())
    with pytest.raises(RunError, match="four messages"):
        list(run.strategy.configure_train(1, None, None, run.grid))  # type: ignore[arg-type]


# The figures beside the values


@pytest.mark.parametrize("devices", [1, 20, 1024])
def test_figures_come_out_of_a_sum_as_their_mean(devices: int) -> None:
    rng, bound = np.random.default_rng(devices), 0.25
    point = FixedPoint(bound, devices)
    told = [Figures(float(rng.gamma(2.0)), float(rng.random())) for _ in range(devices)]
    sums = point.decode(np.sum([point.encode(one.values(bound)) for one in told], 0, np.uint32))
    found = Figures.mean(sums, devices, bound)
    assert found.loss == pytest.approx(
        np.mean([one.loss for one in told]), abs=100 * devices / 2**30
    )
    assert found.cut == pytest.approx(
        np.mean([one.cut for one in told]), abs=devices / 2**30 + 1e-6
    )
    assert len(sums) == COUNT


def test_figures_of_nobody_are_no_numbers_and_a_huge_loss_counts_as_the_most() -> None:
    assert math.isnan(Figures.mean((0.0, 0.0), 0, 1.0).loss)
    assert Figures(1e9, 0.0).values(2.0).tolist() == [2.0, 0.0]
    with pytest.raises(ValueError, match="no finite numbers"):
        FixedPoint(1.0, 2).encode(Figures(math.nan, 0.0).values(1.0))
