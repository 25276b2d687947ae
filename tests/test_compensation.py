"""Kernels of 4 bits rounded by second moments: exact sums from devices, levels that files keep."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fedofa.client.app import app as honest_app
from fedofa.client.data import client_data
from fedofa.protos.messages import DeviceProfile, InputsReply, MessageError
from fedofa.server import compensation, rounding, second_moments
from fedofa.server.chosen import Chosen, Work
from fedofa.server.compensation import Candidate
from fedofa.server.evaluation import FederatedEvaluator, Target
from fedofa.server.figures import Measured
from fedofa.server.second_moments import lighter, numbers, read_inputs
from fedofa.specialize.compensate import compensated
from fedofa.specialize.export import Subnet
from fedofa.supernet.axes import regions, take
from fedofa.supernet.batch import resized
from fedofa.supernet.batchnorm import load
from fedofa.supernet.called_layers import narrow
from fedofa.supernet.cost import Budget
from fedofa.supernet.errors import UsageError
from fedofa.supernet.fake_quant import rounded
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.kernel_inputs import Observed, blocks, collect, flat, merge, observed, whole
from fedofa.supernet.space import Arch, plain
from fedofa.supernet.subnet import static
from fedofa.supernet.weights import gather
from fleets import Run, grid_of, small_config, small_fleet
from flwr.app import Context, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DIGITS
from torch import nn

PLAIN = Observed((4, 3, 3, 3), 5)


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── second moments ───────────────────────────────────────────────────────────────────────────────

layers = st.one_of(
    st.builds(nn.Linear, st.integers(1, 9), st.just(3)),
    st.builds(
        nn.Conv2d, st.integers(1, 6), st.just(2), st.tuples(st.integers(1, 3), st.integers(1, 3)),
        stride=st.integers(1, 2), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    ),
    st.builds(
        nn.Conv1d, st.integers(1, 6), st.just(2), st.integers(1, 3), stride=st.integers(1, 2),
        padding=st.integers(0, 2), dilation=st.integers(1, 2),
    ),
)  # fmt: skip


@given(layers, st.integers(0, 99))
@settings(deadline=None)
def test_they_tell_what_an_error_of_the_kernel_does_to_the_outputs(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d, seed: int
) -> None:
    shape = {nn.Linear: (), nn.Conv1d: (7,), nn.Conv2d: (7, 6)}[type(layer)]
    x = gaussian(seed, 3, layer.weight.shape[1], *shape)
    module = nn.Sequential(layer)
    (moments,) = collect(module, ["0.weight"], [x[:2], x[2:]])["0.weight"]
    error = gaussian(seed + 1, *layer.weight.shape)
    with torch.no_grad():
        before = module(x)
        layer.weight += error
        change = (module(x) - before).double().transpose(0, 1).flatten(1).square().sum(1)
    rows = error.flatten(1).double()
    expected = torch.einsum("oi,ij,oj->o", rows, torch.from_numpy(moments), rows)
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-3)


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(input=x)
        return found


def test_a_layer_may_be_called_with_its_input_by_name() -> None:
    x = gaussian(0, 5, 3)
    (found,) = collect(ByName(), ["layer.weight"], [x])["layer.weight"]
    np.testing.assert_allclose(found, (x.T @ x).numpy(), rtol=1e-6)


def test_a_wide_kernel_has_blocks_of_whole_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks((5, 30, 3, 3)) == [126, 126, 18]
    assert blocks((5, 300)) == [128, 128, 44]
    assert blocks((5, 1, 13, 13)) == [128, 41]  # one channel has more
    layer, x = nn.Conv2d(30, 5, 3), gaussian(0, 2, 30, 5, 5)
    parts = collect(nn.Sequential(layer), ["0.weight"], [x])["0.weight"]
    monkeypatch.setattr("fedofa.supernet.kernel_inputs.BLOCK", 1000)
    (all_of_it,) = collect(nn.Sequential(layer), ["0.weight"], [x])["0.weight"]
    for at, part in zip((0, 126, 252), parts, strict=True):
        end = at + len(part)
        np.testing.assert_allclose(part, all_of_it[at:end, at:end], rtol=1e-5, atol=1e-5)


@given(st.integers(1, 12), st.integers(0, 99))
def test_a_block_travels_as_its_upper_triangle(size: int, seed: int) -> None:
    half = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    block = (half + half.T).astype(np.float64)
    (sent,) = flat({"k": (block,)})
    assert sent.shape == (size * (size + 1) // 2,)
    np.testing.assert_array_equal(whole(sent, size), block)
    (twice,) = merge([{"k": (block,)}, {"k": (block,)}])["k"]
    np.testing.assert_array_equal(twice, 2 * block)
    (less,) = lighter({"k": (block,)}, 0.5)["k"]
    np.testing.assert_array_equal(less, block / 2)


def test_only_kernels_that_are_narrowed_and_cut_plainly_are_observed() -> None:
    arch = DIGITS.largest()
    found, least = observed(DIGITS, arch), narrow(DIGITS, arch)
    assert set(found) == {name for name, bits in least.items() if bits == 4}
    module = DIGITS.build(arch)
    for name, kernel in found.items():
        layer = module.get_submodule(name.removesuffix(".weight"))
        assert kernel.shape == tuple(layer.weight.shape)  # type: ignore[union-attr]
    assert list(found.values())[-1].patches == 1  # the classifier
    assert numbers({"k": PLAIN}) == 27 * 28 // 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], "378 float32 values"),
        (lambda v: v.astype(np.float64), "378 float32 values"),
        (lambda _v: None, "378 float32 values"),
        (lambda v: np.where(np.arange(378) == 5, np.nan, v).astype(np.float32), "not finite"),
        (lambda v: np.where(np.arange(378) == 1, 1e6, v).astype(np.float32), "k are of no inputs"),
        (lambda v: -v, "k are of no inputs"),
        (lambda v: np.where(np.arange(378) == 0, 0, v).astype(np.float32), "k are of no inputs"),
    ],
    ids=["short", "wide", "none", "nan", "large", "negative", "no square"],
)
def test_sums_that_are_of_no_inputs_are_refused(change: object, message: str) -> None:
    rows = gaussian(0, 40, 27).double() + 3
    (values,) = flat({"k": ((rows.T @ rows).numpy(),)})
    body = InputsReply(device="a", examples=8)
    (found,) = read_inputs([{"k": PLAIN}], 8, body, values)
    np.testing.assert_allclose(found["k"][0], (rows.T @ rows).numpy(), rtol=1e-6)
    (nothing,) = read_inputs([{"k": PLAIN}], 8, body, np.zeros_like(values))
    assert not nothing["k"][0].any()
    with pytest.raises(MessageError, match=message):
        read_inputs([{"k": PLAIN}], 8, body, change(values))  # type: ignore[operator]
    with pytest.raises(MessageError, match="over 8 examples; its profile leaves 9"):
        read_inputs([{"k": PLAIN}], 9, body, values)


# ── rounding by them ─────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 999), st.sampled_from([4, 8]), st.integers(1, 40), st.booleans())
@settings(deadline=None)
def test_levels_are_those_that_files_keep(seed: int, bits: int, inputs: int, ties: bool) -> None:
    weight = gaussian(seed, 5, inputs)
    if ties:
        weight = weight.sign() * (seed % 3)  # all outermost, or all zero
    rows = gaussian(seed + 1, 30, inputs).double()
    found = compensated(weight, ((rows.T @ rows).numpy(),), bits)
    assert torch.equal(rounded({"w": found}, {"w": bits})["w"], found)
    torch.testing.assert_close(found.abs().amax(1), weight.abs().amax(1))
    most = 2 ** (bits - 1) - 1
    levels = found * most / weight.abs().amax(1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@given(st.integers(0, 999))
@settings(deadline=None)
def test_inputs_that_do_not_go_together_give_the_nearest_levels(seed: int) -> None:
    weight = gaussian(seed, 4, 3, 3, 3)
    nearest = rounded({"w": weight}, {"w": 4})["w"]
    scales = np.diag(np.random.default_rng(seed).uniform(0.1, 9, 27))
    torch.testing.assert_close(compensated(weight, (scales,), 4), nearest)
    # As do moments from which nothing can be learned: no inputs at all, or numbers that are none.
    for useless in (np.zeros((27, 27)), -np.eye(27), np.full((27, 27), np.nan)):
        torch.testing.assert_close(compensated(weight, (useless,), 4), nearest)


@pytest.mark.parametrize("inputs", [20, 300])
def test_outputs_change_less_than_with_the_nearest_levels(inputs: int) -> None:
    """Inputs are few factors, mixed: so that one weight can stand in for another."""
    mixed = gaussian(1, 2000, inputs // 4) @ gaussian(2, inputs // 4, inputs)
    x = mixed + 0.1 * gaussian(3, 2000, inputs)
    weight = gaussian(4, 16, inputs)
    layer = nn.Linear(inputs, 16, bias=False)
    moments = collect(nn.Sequential(layer), ["0.weight"], [x])["0.weight"]
    fresh = gaussian(5, 500, inputs // 4) @ gaussian(2, inputs // 4, inputs)
    nearest, other = rounded({"w": weight}, {"w": 4})["w"], compensated(weight, moments, 4)
    lost = [float((fresh @ (held - weight).T).square().mean()) for held in (nearest, other)]
    assert lost[1] < 0.5 * lost[0]


def test_moments_of_another_kernel_are_refused() -> None:
    with pytest.raises(UsageError, match=r"blocks of \[27\] inputs expected"):
        compensated(gaussian(0, 4, 3, 3, 3), (np.eye(26),), 4)


def test_a_network_whose_files_keep_a_normalization_is_left_alone() -> None:
    """LiteRT's converter multiplies its scales into the kernels behind it."""
    space = preset("small-vit")
    assert not observed(space, space.smallest())
    assert not observed(space, space.largest())


@pytest.mark.parametrize("name", ["small", "small-resnet", "tdnn-har", "mlp-small"])
def test_every_family_s_kernels_of_4_bits_can_be_rounded_so(name: str) -> None:
    space = preset(name)
    arch = space.smallest()
    module, kernels = space.build(arch).eval(), observed(space, arch)
    assert set(kernels) == {kernel for kernel, bits in narrow(space, arch).items() if bits == 4}
    moments = collect(module, kernels, [gaussian(0, 4, *space.input_shape(arch))])
    assert sum(len(each) for each in flat(moments)) == numbers(kernels)
    for kernel, parts in moments.items():
        weight = module.get_parameter(kernel)
        found = compensated(weight, parts, 4)
        assert found.shape == weight.shape
        assert torch.equal(rounded({"w": found}, {"w": 4})["w"], found)
        assert not torch.equal(found, weight)


# ── measured on devices ──────────────────────────────────────────────────────────────────────────


def evaluator_of(folder: Path) -> tuple[Run, FederatedEvaluator]:
    run = Run(folder, small_config(), grid_of(small_fleet(folder), honest_app))
    fleet, training = run.roll.gather(), run.training
    found = FederatedEvaluator(run.exchange, fleet, training.space, training.weights, run.log)
    return run, found


def work_of(evaluator: FederatedEvaluator, arch: Arch) -> Work:
    budget, space = Budget(params=3000), evaluator.space
    statistics = evaluator.statistics([Target(arch, budget)])[0]
    chosen = Chosen("any", arch, budget, statistics, Measured(1, 2), ("onnx",), int4=True)
    values = gather(evaluator.weights, regions(space, arch))
    return Work(chosen, Subnet(plain(space.to_dict()), dict(arch), values), Path("nowhere"))


def candidate_of(
    evaluator: FederatedEvaluator, widths: Mapping[str, int] | None = None
) -> Candidate:
    arch = evaluator.space.smallest()
    usual, rounded_one = (
        Target(arch, Budget(params=3000), widths=mine)
        for mine in ({}, narrow(evaluator.space, arch) if widths is None else widths)
    )
    found = evaluator.statistics([usual, rounded_one])
    return Candidate(rounded_one, found[1], found[0])


def test_devices_sums_are_those_of_all_their_examples_in_one_place(tmp_path: Path) -> None:
    run, evaluator = evaluator_of(tmp_path)
    space = run.training.space
    arch, most = space.smallest(), 40
    mine = candidate_of(evaluator)
    found = evaluator.inputs([mine.target], {0: mine.plain}, most)[0]
    module = static(space, arch, take(run.training.weights, regions(space, arch)))
    load(module, mine.plain)
    batches = []
    for device in small_fleet(tmp_path):
        data = client_data(device.source)
        x = torch.from_numpy(data.normalized(data.train.x[:most]))
        batches += list(torch.split(resized(x, space.input_shape(arch)), 64))
    expected = collect(module.eval(), observed(space, arch), batches)
    assert list(found) == list(expected)
    for name, parts in expected.items():
        for total, block in zip(found[name], parts, strict=True):
            np.testing.assert_allclose(total, block, rtol=1e-4, atol=1e-4 * block.max())


def test_a_device_counts_for_the_examples_that_it_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for all that it has, of which the sums may be but a small part."""
    _, evaluator = evaluator_of(tmp_path)
    seen: list[int] = []

    def weights(examples: Callable[[DeviceProfile], int]) -> dict[str, float]:
        seen.extend(examples(member.profile) for member in members)
        return dict.fromkeys((member.name for member in members), 0.5)

    members = list(evaluator._fleet.members.values())
    mine = candidate_of(evaluator)
    before = evaluator.inputs([mine.target], {0: mine.plain}, 10)[0]
    monkeypatch.setattr(evaluator.survey, "weights", weights)
    after = evaluator.inputs([mine.target], {0: mine.plain}, 10)[0]
    assert seen == [10] * len(members)
    for name, blocks_of in before.items():
        for whole_one, half in zip(blocks_of, after[name], strict=True):
            np.testing.assert_allclose(half, whole_one / 2)


@pytest.mark.parametrize("better", [True, False])
def test_the_likelier_of_both_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    _, evaluator = evaluator_of(tmp_path)
    space = evaluator.space
    arch = space.smallest()
    works = [work_of(evaluator, arch), work_of(evaluator, arch)]
    asked: list[list[Target]] = []

    def likelihoods(targets: list[Target], *_: object) -> dict[int, tuple[float]]:
        asked.append(list(targets))
        return {0: (5.0,), 1: (5.0,), 2: (4.0 if better else 5.0,), 3: (6.0,)}

    monkeypatch.setattr(evaluator, "likelihoods", likelihoods)
    usual, _ = rounding.rounded_subnets(evaluator, works).values()
    assert not asked
    assert "int4_compensate" in usual.why_nearest
    found, other = rounding.rounded_subnets(evaluator, works, examples=40).values()
    ((*nearest, changed, _),) = asked
    assert [target.weights for target in nearest] == [None, None]
    assert "likelier" in other.why_nearest
    np.testing.assert_array_equal(other.subnet.values, usual.subnet.values)
    assert found.kernels == usual.kernels
    if not better:
        assert "likelier" in found.why_nearest
        np.testing.assert_array_equal(found.subnet.values, usual.subnet.values)
        return
    assert not found.why_nearest
    # Its kernels are at levels already, those of 4 bits: rounding changes nothing.
    assert changed.weights is not None
    own, shared = (take(w, regions(space, arch)) for w in (changed.weights, evaluator.weights))
    flat_weights = gather(changed.weights, regions(space, arch))
    np.testing.assert_array_equal(found.subnet.values[: len(flat_weights)], flat_weights)
    narrowed = {name: bits for name, bits in found.kernels.items() if bits == 4}
    held = rounded(own, narrowed)
    assert all(torch.equal(held[name], own[name]) for name in narrowed)
    assert all(torch.equal(own[name], shared[name]) for name in own if name not in narrowed)
    assert any(not torch.equal(rounded(shared, narrowed)[name], own[name]) for name in narrowed)


@pytest.mark.parametrize("mute", ["inputs", "statistics", "likelihoods"])
def test_without_an_answer_kernels_keep_the_nearest_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mute: str
) -> None:
    _, evaluator = evaluator_of(tmp_path)
    nearest = {3: candidate_of(evaluator)}
    monkeypatch.setattr(evaluator, mute, lambda *_: {})
    (outcome,) = compensation.compensated(evaluator, nearest, 40).values()
    assert outcome.values is None
    assert "no_answer" in outcome.why_not


def test_devices_that_do_not_know_the_question_leave_the_nearest_levels(tmp_path: Path) -> None:
    def old_app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.inputs":
            raise ValueError("no query.inputs function registered")
        return honest_app(message, context)

    run = Run(tmp_path, small_config(), grid_of(small_fleet(tmp_path), old_app))
    evaluator = FederatedEvaluator(
        run.exchange, run.roll.gather(), run.training.space, run.training.weights, run.log
    )
    (outcome,) = compensation.compensated(evaluator, {0: candidate_of(evaluator)}, 40).values()
    assert "no_answer" in outcome.why_not
    assert {event["about"] for event in run.events("no_answer")} == {"query.inputs"}


def test_questions_are_no_larger_than_their_answers_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, evaluator = evaluator_of(tmp_path)
    mine = candidate_of(evaluator)
    places = dict.fromkeys(range(20), mine)
    some = list(compensation._questions(evaluator, places))
    assert [len(each) for each in some] == [8, 8, 4]
    kernels = second_moments.asked(evaluator.space, mine.target.arch, mine.target.widths)
    one = numbers(kernels) + sum(evaluator.weights[name].numel() for name in kernels)
    monkeypatch.setattr(compensation, "MOST_NUMBERS", 3 * one)
    some = list(compensation._questions(evaluator, places))
    assert [at for each in some for at in each] == list(range(20))
    assert {len(each) for each in some} == {3, 2}
    monkeypatch.setattr(compensation, "MOST_NUMBERS", 1)
    assert len(list(compensation._questions(evaluator, places))) == 20
    wide = replace(mine, target=replace(mine.target, widths=dict.fromkeys(kernels, 8)))
    assert list(compensation._questions(evaluator, {0: mine, 1: wide, 2: mine})) == [[0], [2]]


def test_kernels_of_8_bits_are_neither_asked_about_nor_changed(tmp_path: Path) -> None:
    _, evaluator = evaluator_of(tmp_path)
    least = narrow(evaluator.space, evaluator.space.smallest())
    first, *others = (name for name, bits in least.items() if bits == 4)
    mine = candidate_of(evaluator, {**least, first: 8})
    moments = evaluator.inputs([mine.target], {0: mine.plain}, 40)[0]
    assert list(moments) == others
    weights = compensation._weights(evaluator, mine.target, moments)
    changed = {n for n, v in weights.items() if not torch.equal(v, evaluator.weights[n])}
    assert changed == set(others)
    none = candidate_of(evaluator, dict.fromkeys(least, 8))
    (outcome,) = compensation.compensated(evaluator, {0: none}, 40).values()
    assert "no kernel" in outcome.why_not


# ── configured ───────────────────────────────────────────────────────────────────────────────────


def test_it_is_on_unless_the_run_is_private_or_its_sums_are_secure() -> None:
    config = small_config(export={"int4": True})
    assert config.compensates
    assert not small_config(export={"int4": True, "int4_compensate": False}).compensates
    for field in ("privacy", "secure"):
        private = config.model_copy(update={field: object()})
        assert not private.compensates
        export = private.export.model_copy(update={"int4_compensate": True})
        assert private.model_copy(update={"export": export}).compensates
    # A fleet's runtimes may have files of 4 bits without `int4`.
    assert not small_config(export={"int4_compensate": False}).compensates
