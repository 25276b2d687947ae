"""Vision transformers: published counts, positions and heads by definition, memory, fleet, files."""

import operator
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.app import app as honest_app
from fedofa.client.tasks import run_moments
from fedofa.protos.manifest import FILE_NAMES
from fedofa.protos.messages import MomentsRequest
from fedofa.protos.subnets import grouped, pack
from fedofa.server.evaluation import FederatedEvaluator, Target
from fedofa.server.figures import read_moments
from fedofa.specialize.filesize import predicted_size_bytes
from fedofa.supernet.axes import Selection, layout, locate, take
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS, space_from_dict
from fedofa.supernet.families.vit import Stage, VitSpace, whole_heads
from fedofa.supernet.families.vit_attention import RelativePositions
from fedofa.supernet.families.vit_plan import Block
from fedofa.supernet.space import Arch, Space, plain
from fedofa.supernet.subnet import extract, static
from fleets import Run, grid_of, small_config, small_fleet
from flwr.app import Context, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import (
    check_counts,
    check_description,
    check_export,
    check_federated,
    check_views,
    inputs,
    shared_weights,
)
from strategies import architectures, ascending, nested
from test_cost import kept_bytes
from torch import Tensor, fx, nn

SMALL, AUTOFORMER = PRESETS["small-vit"], PRESETS["autoformer-tiny"]
EVERYTHING = VitSpace(
    classes=5,
    in_channels=3,
    resolution=16,
    patch=4,
    stages=(
        Stage((16, 24), (1, 2), (1, 2, 4), qkv=32, ratios=(1.5, 2.0), relative=2),
        Stage((32, 40), (1, 2), (0, 2, 4), qkv=32, hiddens=(0, 24, 48), relative=1),
    ),
)
"""Two stages with all that a stage can have."""

GOLDEN: dict[str, tuple[int, list[int], list[float], int]] = {
    "autoformer-tiny": (
        192,
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3],
        [3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5],
        5_867_944,
    ),
    "autoformer-small": (
        384,
        [6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7],
        [3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0],
        22_891_432,
    ),
    "autoformer-base": (
        576,
        [9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10],
        [3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5],
        53_691_688,
    ),
}
"""Name → embedding, heads and MLP ratio of each block, and parameters, as AutoFormer published."""


@st.composite
def vit_spaces(draw: st.DrawFn) -> VitSpace:
    """Small spaces: one or two stages, blocks without a half, relative positions that are cut."""
    stages, least = [], 4
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        embeds = draw(ascending((least, least + 4, least + 8)))
        heads = draw(ascending((0, 1, 2, 3), most=3).filter(lambda found: found[-1] > 0))
        widths: dict[str, Any] = draw(
            st.one_of(
                st.fixed_dictionaries({"ratios": ascending((0, 1, 1.5, 2.5))}),  # type: ignore[arg-type]
                st.fixed_dictionaries({"hiddens": ascending((0, 4, 12))}),
            )
        )
        depths, head_dim = draw(ascending((1, 2, 3))), draw(st.sampled_from((2, 4, 8)))
        relative = draw(st.sampled_from((0, 1, 4)))
        stages.append(
            Stage(embeds, depths, heads, head_dim * heads[-1], relative=relative, **widths)
        )
        least = embeds[-1]
    grid, patch = draw(st.sampled_from((2, 4))), draw(st.sampled_from((2, 3)))
    if len(stages) == 1:
        grid += draw(st.sampled_from((-1, 0)))
    return VitSpace(
        classes=draw(st.integers(2, 5)),
        in_channels=draw(st.sampled_from((1, 3))),
        resolution=grid * patch,
        patch=patch,
        stages=tuple(stages),
    )


def published(name: str) -> tuple[Space, Arch]:
    space, (embed, heads, ratios, _) = PRESETS[name], GOLDEN[name]
    genes: dict[str, float] = {"s0.embed": embed, "s0.depth": len(heads)}
    for j, (count, ratio) in enumerate(zip(heads, ratios, strict=True)):
        genes |= {f"s0.b{j}.heads": count, f"s0.b{j}.ratio": ratio}
    return space, space.arch(genes)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_published_networks_have_the_published_number_of_parameters(name: str) -> None:
    space, arch = published(name)
    with torch.device("meta"):
        module = space.build(arch)
    counted = sum(parameter.numel() for parameter in module.parameters())
    assert cost(space, arch).params == counted == GOLDEN[name][3]


@given(nested(vit_spaces()))
def test_views_extraction_and_a_separate_network_are_the_same(
    drawn: tuple[Space, Arch, Arch],
) -> None:
    check_views(*drawn, seed=1)


@given(architectures(vit_spaces()))
def test_macs_and_parameters_are_those_of_the_built_module(drawn: tuple[Space, Arch]) -> None:
    check_counts(*drawn)


@given(vit_spaces())
def test_a_space_comes_back_from_its_description(space: VitSpace) -> None:
    check_description(space)


@pytest.mark.parametrize("name", [*GOLDEN, "vit-resnas", "small-vit"])
def test_presets_count_right_and_come_back_from_their_descriptions(name: str) -> None:
    check_description(PRESETS[name])
    check_counts(PRESETS[name], PRESETS[name].smallest())


def test_the_small_preset_spans_the_budgets_of_a_fleet() -> None:
    most, least = cost(SMALL, SMALL.largest()), cost(SMALL, SMALL.smallest())
    assert 5e6 < most.macs < 8e6
    assert least.macs < most.macs / 16


# Positions, heads and skipped halves, each against its definition.


@pytest.mark.parametrize(("grid", "most"), [(1, 2), (3, 14), (4, 2)])
def test_relative_positions_are_those_of_the_definition_pair_by_pair(grid: int, most: int) -> None:
    torch.manual_seed(0)
    block = Block("b", "e", embed=8, heads=2, head_dim=5, hidden=8, grid=grid, relative=most)
    positions = RelativePositions(block)
    for table in positions.parameters():
        nn.init.normal_(table)
    n = 1 + grid**2
    pairs = torch.zeros(n, n, 5)
    for i, j in ((i, j) for i in range(n) for j in range(n)):
        (y, x), (v, u) = divmod(i - 1, grid), divmod(j - 1, grid)
        rows = (0, 0) if not i or not j else (_row(v - y, most), _row(u - x, most))
        pairs[i, j] = positions.vertical[rows[0]] + positions.horizontal[rows[1]]
    q, k, v = torch.randn(3, 6, n, 5)
    logits = q @ k.transpose(1, 2)
    attention = (logits + torch.einsum("bnd,nmd->bnm", q, pairs)).softmax(2)
    torch.testing.assert_close((logits + positions.products(q)).softmax(2), attention)
    expected = attention @ v + torch.einsum("bnm,nmd->bnd", attention, pairs)
    torch.testing.assert_close(positions.added(attention @ v, attention), expected)


def _row(distance: int, most: int) -> int:
    return max(-most, min(most, distance)) + most + 1


def test_without_relative_positions_it_is_the_vision_transformer_made_of_torchs_own_layers() -> (
    None
):
    stage = Stage((32,), (2,), (4,), qkv=32, ratios=(1.5,))
    space = VitSpace(classes=5, in_channels=3, resolution=12, patch=4, stages=(stage,))
    arch, shared = space.largest(), shared_weights(space)
    x = inputs(space, arch, seed=0)
    pixels = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)  # (B, 9, 3 · 16)
    patches = pixels @ shared["tokens.patch.weight"].flatten(1).T + shared["tokens.patch.bias"]
    tokens = torch.cat([shared["tokens.class_token"].expand(4, 1, 32), patches], dim=1)
    tokens = tokens + shared["tokens.position"]
    for j in range(2):
        tokens = torch_layer(shared, f"stages.0.blocks.{j}")(tokens)
    normed = nn.functional.layer_norm(
        tokens[:, 0], (32,), shared["head.norm.weight"], shared["head.norm.bias"]
    )
    logits = normed @ shared["head.classifier.weight"].T + shared["head.classifier.bias"]
    torch.testing.assert_close(extract(space, arch, shared).eval()(x), logits, rtol=1e-4, atol=1e-5)


def torch_layer(shared: dict[str, Tensor], block: str) -> nn.Module:
    """A block of 4 heads, 32 channels and an MLP of 48 as torch has it."""
    layer = nn.TransformerEncoderLayer(
        32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {
        "self_attn.out_proj": "attention.project",
        "norm1": "attention.norm",
        "norm2": "mlp.norm",
        "linear1": "mlp.expand",
        "linear2": "mlp.project",
    }
    values = {
        f"{theirs}.{part}": shared[f"{block}.{ours}.{part}"]
        for theirs, ours in names.items()
        for part in ("weight", "bias")
    }
    for part in ("weight", "bias"):
        three = [shared[f"{block}.attention.{name}.{part}"] for name in ("query", "key", "value")]
        values[f"self_attn.in_proj_{part}"] = torch.cat(three)
    layer.load_state_dict(values)
    return layer


def test_any_choice_of_whole_heads_is_the_network_whose_other_heads_are_mute() -> None:
    arch, shared = EVERYTHING.largest(), shared_weights(EVERYTHING)
    few = EVERYTHING.arch({**arch, "s0.b0.heads": 2})
    name = "stages.0.blocks.0"
    index = {**EVERYTHING.select(few).index, f"{name}.qkv": whole_heads((1, 3), 8)}
    where = locate(layout(EVERYTHING), Selection(index))
    chosen = static(EVERYTHING, few, take(shared, where)).eval()
    mute = {key: value.clone() for key, value in shared.items()}
    mute[f"{name}.attention.project.weight"][:, [*range(8), *range(16, 24)]] = 0
    full = extract(EVERYTHING, arch, mute).eval()
    x = inputs(EVERYTHING, arch, seed=0)
    torch.testing.assert_close(chosen(x), full(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("gene", "half"), [("s1.b0.heads", "attention"), ("s1.b0.hidden", "mlp")])
def test_a_skipped_half_is_one_that_adds_nothing(gene: str, half: str) -> None:
    arch, shared = EVERYTHING.largest(), shared_weights(EVERYTHING)
    skipped = extract(EVERYTHING, EVERYTHING.arch({**arch, gene: 0}), shared).eval()
    for part in ("weight", "bias"):
        shared[f"stages.1.blocks.0.{half}.project.{part}"].zero_()
    x = inputs(EVERYTHING, arch, seed=0)
    torch.testing.assert_close(skipped(x), extract(EVERYTHING, arch, shared).eval()(x))
    assert half not in dict(skipped.get_submodule("stages.1.blocks.0").named_children())


def test_a_reduction_adds_to_the_means_of_two_by_two_patches() -> None:
    arch, shared = EVERYTHING.largest(), shared_weights(EVERYTHING)
    for part in ("conv", "token"):
        for name in ("weight", "bias"):
            shared[f"stages.1.reduction.{part}.{name}"].zero_()
    reduction = extract(EVERYTHING, arch, shared).get_submodule("stages.1.reduction")
    x = torch.randn(2, 17, 24)
    means = x[:, 1:].view(2, 2, 2, 2, 2, 24).mean((2, 4)).view(2, 4, 24)
    expected = torch.cat([torch.cat([x[:, :1], means], 1), torch.zeros(2, 5, 16)], 2)
    torch.testing.assert_close(reduction(x), expected)


# Memory.

IN_PLACE = (operator.add, operator.mul, "softmax")


class _Buffers(fx.Interpreter):
    """Runs a traced module; notes whose memory each value is, and what depends on the input."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)  # what is freed would be reused
        self.memory: dict[fx.Node, int] = {}
        self.elements: dict[int, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        tensor = value[0] if isinstance(value, tuple) else value
        activation = n.op == "placeholder" or any(s in self.memory for s in n.all_input_nodes)
        if isinstance(tensor, Tensor) and activation and n.op != "output":
            storage = tensor.untyped_storage()
            self.memory[n] = storage.data_ptr()
            self.elements[storage.data_ptr()] = storage.nbytes() // 4
        return value


def counted_peak_bytes(module: nn.Module, x: Tensor) -> int:
    """Largest sum of buffers alive at once per example, stepping through the traced module.

    Views share memory; softmax, GELU, addition and scaling write into a buffer that nobody needs
    any more. Two examples, since with one putting heads in order copies nothing.
    """
    traced = fx.symbolic_trace(module.eval())
    run = _Buffers(traced)
    with torch.no_grad():
        run.run(torch.cat([x, x]))
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    layers = dict(traced.named_modules())
    spans: dict[int, list[int]] = {}
    for node, memory in run.memory.items():
        reads = [order[user] for user in node.users if user.target is not getattr]  # a shape
        spans.setdefault(memory, []).extend([order[node], *reads])
    for node, memory in run.memory.items():
        gelu = node.op == "call_module" and isinstance(layers[str(node.target)], nn.GELU)
        if node.target not in IN_PLACE and not gelu:
            continue
        for source in node.all_input_nodes:
            old = run.memory.get(source)
            if old is None or old == memory or old not in spans:
                continue
            same = run.elements[old] == run.elements[memory]
            if same and max(spans[old]) == order[node]:
                spans[memory] += spans.pop(old)
                break
    alive = (
        sum(run.elements[m] for m, span in spans.items() if min(span) <= now <= max(span))
        for now in range(len(order))
    )
    return 4 * max(alive) // 2


@settings(max_examples=25)
@given(architectures(vit_spaces()))
def test_peak_memory_is_what_stepping_through_the_module_finds(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    peak = counted_peak_bytes(space.build(arch), inputs(space, arch, seed=0, batch=1))
    assert cost(space, arch).peak_activation_bytes == peak


@settings(max_examples=25)
@given(architectures(vit_spaces()))
def test_training_memory_is_what_autograd_keeps(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    kept = kept_bytes(space.build(arch), inputs(space, arch, seed=0, batch=32))
    assert cost(space, arch).train_activation_bytes == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("space", [SMALL, EVERYTHING], ids=["small-vit", "everything"])
def test_training_memory_is_never_estimated_too_low(space: Space) -> None:
    for arch in (space.smallest(), space.sample(random.Random(0)), space.largest()):
        kept = kept_bytes(space.build(arch), inputs(space, arch, seed=0, batch=32))
        assert 0.98 * kept <= cost(space, arch).train_activation_bytes <= 1.05 * kept


@settings(max_examples=25)
@given(architectures(vit_spaces()))
def test_a_larger_neighbour_costs_no_less(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    spent = cost(space, arch).to_dict()
    for grown in space.grown(arch):
        more = cost(space, grown).to_dict()
        assert all(more[name] >= spent[name] for name in spent)


# Over a fleet, and as files.


def test_a_fleet_trains_it(tmp_path: Path) -> None:
    check_federated(EVERYTHING, tmp_path, rounds=2)


def test_its_subnets_are_measured_without_asking_for_norm_statistics(tmp_path: Path) -> None:
    asked: list[str] = []

    def noting(message: Message, context: Context) -> Message:
        asked.append(message.metadata.message_type)
        return honest_app(message=message, context=context)

    few = cost(SMALL, SMALL.smallest()).params
    config = small_config(
        space={"preset": "small-vit"}, classes={"big": {}, "small": {"params": few}}
    )
    run = Run(tmp_path, config, grid_of(small_fleet(tmp_path), noting))
    fleet, training = run.roll.gather(), run.training
    evaluator = FederatedEvaluator(run.exchange, fleet, training.space, training.weights, run.log)
    targets = [Target(SMALL.smallest(), Budget(params=few)), Target(SMALL.largest(), Budget())]
    asked.clear()
    statistics = evaluator.statistics(targets)
    assert (statistics, asked) == ({0: {}, 1: {}}, [])
    measured = evaluator.accuracy(targets, statistics)
    examples = [m.profile.validation_examples for m in fleet.members.values()]
    assert [measured[place].examples for place in (0, 1)] == [sum(examples), examples[0]]


def test_a_device_that_is_asked_all_the_same_returns_no_numbers(tmp_path: Path) -> None:
    archs = [SMALL.smallest(), SMALL.step(SMALL.smallest(), "s0.embed", +1) or SMALL.smallest()]
    groups, values = pack(SMALL, shared_weights(SMALL), grouped(SMALL, archs, None))
    request = MomentsRequest(space=plain(SMALL.to_dict()), batch_size=64, groups=groups)
    reply, sums = run_moments(small_fleet(tmp_path)[0], request, values)
    assert sums.size == 0
    assert read_moments(SMALL, archs, 64, reply, sums) == [{}, {}]
    with_statistics = pack(SMALL, shared_weights(SMALL), grouped(SMALL, archs, None), [{}, {}])[1]
    assert np.array_equal(with_statistics, values)


def check_files(space: Space, arch: Arch, folder: Path, seed: int = 0) -> None:
    """Of the space that has everything, odd blocks among it, sizes are known less well."""
    within = 0.05 if space is SMALL else 0.1
    check_export(space, arch, folder, seed)
    for kind, name in FILE_NAMES.items():
        predicted = predicted_size_bytes(kind, space.layers(arch))
        assert predicted == pytest.approx((folder / name).stat().st_size, rel=within), kind


def test_files_do_what_the_network_does_and_are_as_large_as_predicted(tmp_path: Path) -> None:
    check_files(SMALL, SMALL.smallest(), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_files_of_50_random_architectures_too(tmp_path: Path) -> None:
    rng = random.Random(3)
    for seed in range(50):
        space = (SMALL, EVERYTHING)[seed % 2]
        check_files(space, space.sample(rng), tmp_path / str(seed), seed)


# What cannot be.

STAGE: dict[str, Any] = {
    "embeds": [16], "depths": [1], "heads": [2], "qkv": 32, "ratios": [2.0]
}  # fmt: skip
SPACE: dict[str, Any] = {
    "family": "vit", "classes": 2, "in_channels": 1, "resolution": 8, "patch": 2, "stages": [STAGE]
}  # fmt: skip


def test_the_space_that_impossible_ones_differ_from_is_possible() -> None:
    assert isinstance(space_from_dict(SPACE), VitSpace)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qkv": 33}, r"qkv = 33.*largest divides it"),
        ({"heads": [0]}, "qkv = 32.*heads"),
        ({"heads": []}, "qkv = 32.*heads"),
        ({"heads": [2, 1]}, "ascending"),
        ({"heads": [-1, 2]}, "heads = .*at least 0"),
        ({"heads": 2}, "heads = 2"),
        ({"heads": ["2"]}, "heads = "),
        ({"embeds": [16, 8]}, "embed.*ascending"),
        ({"embeds": [0]}, "embeds = .*at least 1"),
        ({"embeds": None}, "embeds = None"),
        ({"depths": []}, "depth"),
        ({"qkv": "32"}, "qkv = "),
        ({"ratios": [0, 0.01, 2]}, "0.01 of an embedding of .* is no channel"),
        ({"ratios": []}, "ratios = .*hiddens = .*exactly one"),
        ({"hiddens": [8]}, "exactly one"),
        ({"ratios": [float("nan")]}, "ratios"),
        ({"ratios": [float("inf")]}, "ratios"),
        ({"ratios": [-1]}, "ratios"),
        ({"ratios": ["2"]}, "ratios"),
        ({"ratios": [True]}, "ratios"),
        ({"relative": -1}, "relative = "),
        ({"kernel": 3}, "kernel"),
    ],
)
def test_an_impossible_stage_is_an_error_that_names_field_and_value(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        space_from_dict({**SPACE, "stages": [{**STAGE, **fields}]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 3}, "patch = 3; it must divide the resolution, 8"),
        ({"patch": 16}, "patch = 16"),
        ({"patch": 0}, "patch = "),
        ({"resolution": [8]}, "resolution"),
        ({"classes": 1}, "classes"),
        ({"stages": []}, "stages"),
        ({"stages": [3]}, "stages"),
        ({"stages": None}, "stages"),
        ({"stages": [STAGE, {**STAGE, "embeds": [8]}]}, r"stage 1: embeds = \(8,\)"),
        ({"patch": 8, "stages": [STAGE, STAGE]}, "resolution = 8; stage 1 cannot halve the 1×1"),
        ({"stages": [STAGE] * 4}, "resolution = 8; stage 3 cannot halve the 1×1"),
        ({"in_channels": None}, "in_channels"),
        ({"widths": [3]}, "widths"),
    ],
)
def test_an_impossible_space_is_an_error_that_names_field_and_value(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        space_from_dict({**SPACE, **fields})


@pytest.mark.parametrize(
    ("gene", "value", "message"),
    [
        ("s0.embed", 200, "s0.embed = 200; allowed"),
        ("s0.b0.heads", 5, "s0.b0.heads = 5"),
        ("s0.b13.ratio", 3.0, "does not matter"),
        ("s0.b0.hidden", 3, "unknown gene"),
    ],
)
def test_an_architecture_outside_the_space_is_an_error_that_names_the_gene(
    gene: str, value: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        AUTOFORMER.arch({**AUTOFORMER.smallest(), gene: value})
