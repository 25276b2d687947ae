"""Whom the server asks when it measures, and which answers count."""

import functools
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.client.app import app as honest_app
from fedofa.client.device import of_node
from fedofa.protos.calibration import Calibration
from fedofa.protos.flower import from_record, to_record
from fedofa.protos.golden import allowed
from fedofa.protos.messages import (
    Body,
    EvaluateReply,
    MessageError,
    MomentsReply,
    RangesReply,
    Verdict,
    VerifyReply,
)
from fedofa.server import figures
from fedofa.server.evaluation import FederatedEvaluator, Target
from fedofa.server.exchange import Exchange
from fedofa.server.figures import FileMeasured, Measured
from fedofa.server.fleet import Fleet
from fedofa.server.survey import Survey
from fedofa.supernet.batchnorm import Moments, collect
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.subnet import batch_norms, extract
from fleets import SPEEDS, Run, grid_of, small_config, small_fleet
from flwr.app import Context, Message
from strategies import DIGITS, SMALL

BOUND = Budget(params=3000)
REPLIES: Mapping[str, type[Body]] = {"query.moments": MomentsReply, "evaluate": EvaluateReply}


def counting(name: str, times: int, of: str) -> Callable[[Message, Context], Message]:
    """The devices' app, but one device claims so many times the examples that it has."""

    def app(message: Message, context: Context) -> Message:
        reply = honest_app(message=message, context=context)
        mine = of_node(context.node_config, context.run_config).name
        if mine != name or message.metadata.message_type != of:
            return reply
        body, values = from_record(REPLIES[of], reply.content)
        return Message(to_record(claiming(body, times), values), reply_to=message)

    return app


def claiming(body: Body, times: int) -> Body:
    if isinstance(body, MomentsReply):
        counts = tuple({k: times * n for k, n in layers.items()} for layers in body.counts)
        return body.model_copy(update={"counts": counts})
    assert isinstance(body, EvaluateReply)
    right = tuple(times * count for count in body.correct)
    return body.model_copy(update={"examples": times * body.examples, "correct": right})


def asked(folder: Path, app: Any) -> tuple[Run, FederatedEvaluator, Fleet]:
    run = Run(folder, small_config(), grid_of(small_fleet(folder), app))
    fleet, training = run.roll.gather(), run.training
    found = FederatedEvaluator(run.exchange, fleet, training.space, training.weights, run.log)
    return run, found, fleet


@pytest.mark.parametrize("of", ["query.moments", "evaluate"])
def test_a_device_that_claims_more_examples_than_its_profile_is_not_counted(
    of: str, tmp_path: Path
) -> None:
    run, evaluator, fleet = asked(tmp_path, counting("dev-1", 1000, of))
    targets = [Target(run.training.space.smallest(), BOUND)]
    statistics = evaluator.statistics(targets)
    if of == "evaluate":
        assert not run.events("no_answer")
        measured = evaluator.accuracy(targets, statistics)[0]
        mine = [fleet.members[name].profile.validation_examples for name in ("dev-0", "dev-2")]
        assert measured.examples == sum(mine)
    (told,) = run.events("no_answer")
    assert told["device"] == "dev-1"
    assert "profile" in told["reason"]


def test_what_answers_cost_is_told_and_one_that_is_not_used_costs_nothing(tmp_path: Path) -> None:
    run, evaluator, fleet = asked(tmp_path, counting("dev-1", 1000, "query.moments"))
    archs = [run.training.space.smallest(), run.training.space.largest()]
    statistics = evaluator.statistics([Target(arch, Budget()) for arch in archs])
    evaluator.accuracy([Target(archs[0], BOUND)], {0: statistics[0]})
    moments, accuracy = run.events("measured")
    macs = [cost(run.training.space, arch).macs for arch in archs]
    # Small devices are not asked about a subnet without a bound.
    examples = fleet.members["dev-0"].profile.examples
    told = [moments[name] for name in ("about", "subnets", "devices", "runs", "examples", "macs")]
    assert told == ["query.moments", 2, 1, 2, 2 * examples, examples * sum(macs)]
    examples = sum(member.profile.validation_examples for member in fleet.members.values())
    told = [accuracy[name] for name in ("about", "subnets", "devices", "runs", "examples", "macs")]
    assert told == ["evaluate", 1, 3, 3, examples, examples * macs[0]]
    assert moments["seconds"] > 0


def test_a_device_that_joins_tells_what_its_data_are(tmp_path: Path) -> None:
    first, *others = small_fleet(tmp_path)
    consent = tmp_path / "consent.toml"
    consent.write_text(f"{SPEEDS}share_labels = true\n")
    devices = [replace(first, profile=str(consent)), *others]
    run = Run(tmp_path, small_config(), grid_of(devices))
    fleet = run.roll.gather()
    joined = {event["device"]: event for event in run.events("device_joined")}
    for name, member in fleet.members.items():
        assert joined[name]["validation_examples"] == member.profile.validation_examples
        assert (joined[name]["labels"] is not None) == (name == "dev-0")
    assert sum(joined["dev-0"]["labels"]) == joined["dev-0"]["examples"]
    (form,) = run.events("data_form")
    assert form["input_shape"] == [1, 8, 8]
    assert form["classes"] == [str(digit) for digit in range(10)]


def test_moments_that_no_numbers_have_are_refused() -> None:
    arch = DIGITS.smallest()
    layers = figures.norm_layers(DIGITS, arch)
    counts = {name: 2 * positions for name, (_, positions) in layers.items()}
    body = MomentsReply(device="a", counts=(counts,))
    total = np.concatenate(
        [
            part
            for name, (channels, _) in layers.items()
            for part in (
                np.full(channels, 3.0 * counts[name]),
                np.full(channels, 9.0 * counts[name]),
            )
        ]
    )
    (found,) = figures.read_moments(DIGITS, [arch], 2, body, total)  # all 3: a variance of 0
    assert {float(layer.mean.max()) for layer in found.values()} == {3.0}
    for worse in (0.99, -1.0):
        with pytest.raises(MessageError, match="variance"):
            figures.read_moments(DIGITS, [arch], 2, body, _last_changed(total, worse))
    total[0] = 1e300
    with pytest.raises(MessageError, match="variance"):
        figures.read_moments(DIGITS, [arch], 2, body, total)


def _last_changed(values: Any, factor: float) -> Any:
    changed = values.copy()
    changed[-1] *= factor
    return changed


def test_one_devices_word_cannot_switch_a_golden_test_off() -> None:
    reference = np.array([[0.0, 4.0, 1.0]], np.float32)
    close = reference + np.float32(0.5)
    assert allowed(close, reference, 0.1) == pytest.approx(2 * 0.5, abs=1e-3)
    assert allowed(close, reference, 1.5) == pytest.approx(2 * 1.5, abs=1e-3)
    assert allowed(close, reference, 1e30) == pytest.approx(2 * 2.0, abs=1e-3)


def test_every_verification_and_observation_is_of_the_examples_in_the_profile() -> None:
    verdict = Verdict(reference_correct=3, correct=(2,), agree=(3,), max_difference=(0.1,))
    verified = VerifyReply(device="a", examples=5, verdicts=(verdict,))
    assert figures.read_verdicts(verified, [1], 5) == [
        [FileMeasured(Measured(2, 5), Measured(3, 5), 3, 0.1)]
    ]
    observed = RangesReply(device="a", examples=5, ranges=({"a0": (0.0, 1.0)},))
    assert figures.read_ranges(observed, 1, 5) == ({"a0": (0.0, 1.0)},)
    for stated in (4, 6):
        with pytest.raises(MessageError, match=f"5 examples; by its profile there are {stated}"):
            figures.read_verdicts(verified, [1], stated)
        with pytest.raises(MessageError, match=f"5 examples; by its profile there are {stated}"):
            figures.read_ranges(observed, 1, stated)


def test_latencies_are_kept_by_device_and_none_is_believed_that_no_processor_reaches() -> None:
    def told(device: str, *latency_s: float) -> list[FileMeasured]:
        verdict = Verdict(
            reference_correct=3,
            correct=(2, 3),
            agree=(3, 3),
            max_difference=(0.1, 0.1),
            latency_s=latency_s,
        )
        reply = VerifyReply(device=device, examples=5, verdicts=(verdict,))
        (found,) = figures.read_verdicts(reply, [2], 5)
        return figures.timed_by(device, found, verdict, 4_000_000)

    both = [a + b for a, b in zip(told("a", 0.01, 0.02), told("b", 0.03, 0.04), strict=True)]
    assert [dict(each.latency_s) for each in both] == [
        {"a": 0.01, "b": 0.03},
        {"a": 0.02, "b": 0.04},
    ]
    assert figures.lighter_file(both[0], 0.1).latency_s == both[0].latency_s
    silent = [a + b for a, b in zip(told("a"), told("b", 0.03, 0.04), strict=True)]
    assert [dict(each.latency_s) for each in silent] == [{"b": 0.03}, {"b": 0.04}]
    with pytest.raises(MessageError, match="latencies of 2 files"):
        told("a", 0.01)
    with pytest.raises(MessageError, match="no processor needs less than 1e-06"):
        told("a", 0.01, 9e-7)


@pytest.mark.parametrize("space", [DIGITS, SMALL], ids=["digits", "small"])
def test_the_counts_that_are_expected_are_those_that_a_device_finds(space: Any) -> None:
    import torch

    arch = space.largest()
    module = extract(space, arch, space_weights(space))
    found = collect(module, [torch.zeros(3, *space.input_shape(arch))])
    stated = figures.norm_layers(space, arch)
    assert {name: 3 * positions for name, (_, positions) in stated.items()} == {
        name: layer.count for name, layer in found.items()
    }
    assert {name: channels for name, (channels, _) in stated.items()} == {
        name: layer.num_features for name, layer in batch_norms(module).items()
    }


def space_weights(space: Any) -> Any:
    import torch
    from fedofa.supernet.axes import regions
    from fedofa.supernet.weights import shapes_of

    shapes = shapes_of(regions(space, space.largest()))
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def test_no_device_counts_for_more_than_its_share(tmp_path: Path) -> None:
    run, _, fleet = asked(tmp_path, honest_app)
    known = fleet.members["dev-0"]
    vast = known.profile.model_copy(update={"examples": 2**50, "validation_examples": 0})
    members = {**fleet.members, "dev-0": replace(known, profile=vast)}
    survey = Survey(run.exchange, Fleet(members), run.log)
    weights = survey.weights(lambda profile: profile.examples)
    others = [fleet.members[name].profile.examples for name in ("dev-1", "dev-2")]
    assert weights["dev-1"] == weights["dev-2"] == 1
    assert weights["dev-0"] * 2**50 == pytest.approx(20 * max(others))
    assert survey.weights(lambda profile: profile.validation_examples)["dev-0"] == 1


def test_counting_less_keeps_means_and_accuracies() -> None:
    layer = Moments(1000, np.array([2000.0]), np.array([5000.0]))
    (light,) = figures.lighter_moments({"n": layer}, 0.01).values()
    assert (light.count, light.mean[0], light.variance[0]) == (10, 2.0, 1.0)
    measured = Measured(750, 1000)
    assert figures.lighter(measured, 0.04) == Measured(30, 40)
    assert figures.lighter(measured, 1.0) == measured
    file = FileMeasured(Measured(500, 1000), measured, 250, 0.5)
    expected = FileMeasured(Measured(20, 40), Measured(30, 40), 10, 0.5)
    assert figures.lighter_file(file, 0.04) == expected


def test_a_calibration_counts_as_much_as_the_accuracy_beside_it() -> None:
    """A device that counts for a tenth of its examples: as if each of ten had been sent once."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 3, 30)
    many, few = Calibration.of(logits, labels), Calibration.of(-logits, labels)

    def figure(calibration: Calibration, times: int) -> FileMeasured:
        whole = [calibration] * times
        both = functools.reduce(Calibration.__add__, whole)
        return FileMeasured(
            Measured(30, 30 * times), Measured(30, 30 * times), 9, 0.5, (both, both)
        )

    light = figures.lighter_file(figure(many, 10), 0.1) + figure(few, 1)
    alike = figure(many, 1) + figure(few, 1)
    assert light.calibration is not None
    assert alike.calibration is not None
    assert light.file.examples == alike.file.examples == 60
    for mine, theirs in zip(light.calibration, alike.calibration, strict=True):
        assert mine.report() == pytest.approx(theirs.report())


def test_a_difference_that_is_no_number_is_beyond_every_bound() -> None:
    some = Measured(1, 2)
    parts = [FileMeasured(some, some, 1, gap) for gap in (0.1, float("nan"), 0.2)]
    assert (parts[0] + parts[1]).max_difference == float("inf")
    assert (parts[1] + parts[2]).max_difference == float("inf")
    assert (parts[0] + parts[2]).max_difference == 0.2


# ── whom to ask ──────────────────────────────────────────────────────────────────────────────────


class Known(Exchange):
    """An exchange where it is known who has left and until when each late reply is owed."""

    def __init__(self, real: Exchange, gone: Collection[int], late: Mapping[int, float]) -> None:
        super().__init__(real.grid, poll_s=0.01)
        self._gone, self._free_at = set(gone), {n: time.monotonic() + s for n, s in late.items()}

    def nodes(self) -> list[int]:
        return [node for node in super().nodes() if node not in self._gone]

    def busy(self, least: int = 0, of: Collection[int] = (), wait_s: float = 0.0) -> frozenset[int]:
        end = time.monotonic() + wait_s
        while True:
            owing = {n for n, free_at in self._free_at.items() if time.monotonic() < free_at}
            if len(set(of) - owing) >= least or time.monotonic() >= end:
                return frozenset(owing)
            time.sleep(0.01)


def planned(
    folder: Path,
    budget: Budget,
    gone: Collection[str] = (),
    late: Mapping[str, float] | None = None,
) -> set[str]:
    run, _, fleet = asked(folder, honest_app)
    nodes = {name: member.node for name, member in fleet.members.items()}
    owed = {nodes[name]: seconds for name, seconds in (late or {}).items()}
    survey = Survey(Known(run.exchange, [nodes[n] for n in gone], owed), fleet, run.log)
    survey.deadline_s = 0.5
    return set(survey.plan({0: budget}, lambda profile: profile.examples))


def test_a_device_that_left_or_owes_a_late_reply_is_not_asked_while_others_can_answer(
    tmp_path: Path,
) -> None:
    assert planned(tmp_path, BOUND) == {"dev-0", "dev-1", "dev-2"}
    assert planned(tmp_path, BOUND, gone=["dev-1"]) == {"dev-0", "dev-2"}
    assert planned(tmp_path, BOUND, late={"dev-1": 60, "dev-2": 60}) == {"dev-0"}
    assert planned(tmp_path, BOUND, gone=["dev-0"], late={"dev-1": 60}) == {"dev-2"}


def test_where_all_are_late_one_is_waited_for_up_to_the_deadline(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert planned(tmp_path, Budget(), late={"dev-0": 0.3}) == {"dev-0"}
    assert planned(tmp_path, Budget(), late={"dev-0": 60}) == set()
    assert time.monotonic() - begin > 0.5


def test_where_all_have_left_they_are_asked_all_the_same(tmp_path: Path) -> None:
    assert planned(tmp_path, Budget(), gone=["dev-0"]) == {"dev-0"}


def test_a_target_for_which_nobody_answers_is_absent(tmp_path: Path) -> None:
    def app(message: Message, context: Context) -> Message:
        mine = of_node(context.node_config, context.run_config).name
        if mine == "dev-0" and message.metadata.message_type != "query.profile":
            raise RuntimeError("broken")
        return honest_app(message=message, context=context)

    run, evaluator, _ = asked(tmp_path, app)
    space = run.training.space
    targets = [Target(space.largest(), Budget()), Target(space.smallest(), BOUND)]
    statistics = evaluator.statistics(targets)
    assert set(statistics) == {1}
    assert set(evaluator.accuracy(targets, statistics)) == {1}
