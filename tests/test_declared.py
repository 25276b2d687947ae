"""A user's own module as a supernet: invariants, what is found out about it, and clear errors."""

import math
import os
import pickle
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import test_cost
import torch
from declared_spaces import RESNET, TRUSTED, declared
from fedofa.protos.manifest import FILE_NAMES
from fedofa.server.config import parse_config
from fedofa.server.operate import train_job
from fedofa.server.training import Training
from fedofa.specialize import onnx_quantize
from fedofa.specialize.export import export_floats
from fedofa.specialize.filesize import predicted_size_bytes
from fedofa.supernet.axes import regions
from fedofa.supernet.called_layers import kernels
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import ExportError
from fedofa.supernet.families.declared import DeclaredSpace
from fedofa.supernet.folding import folded
from fedofa.supernet.kernel_inputs import observed
from fedofa.supernet.subnet import batch_norms, extract
from fedofa.supernet.torchvision_import import import_module
from fedofa.supernet.weights import digest, initial
from hypothesis import given
from hypothesis import strategies as st
from invariants import (
    check_counts,
    check_description,
    check_export,
    check_federated,
    check_views,
    inputs,
    random_subnet,
    shared_weights,
)
from own_networks import Block, scaled
from torch import Tensor, nn
from torch.nn import functional

OWN = ("RESNET", "MIXED", "BORDERED", "SEQUENCE", "STRAIGHT", "ATTENTION")
TORCHVISION = ("MOBILENET", "SQUEEZENET")
ALL = (*OWN, *TORCHVISION)
DOC = Path(__file__).parent.parent / "docs" / "own-module.md"


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", TRUSTED)


@given(st.sampled_from(OWN), st.integers(0, 2**32 - 1))
def test_views_extraction_and_a_separate_module_agree(name: str, seed: int) -> None:
    space, rng = declared(name), random.Random(seed)
    outer = space.sample(rng)
    check_views(space, outer, space.sample_within(outer, rng), seed % 100)


@pytest.mark.parametrize("name", TORCHVISION)
def test_they_agree_for_torchvision_models(name: str) -> None:
    space, rng = declared(name), random.Random(0)
    for seed in range(5):
        outer = space.sample(rng)
        check_views(space, outer, space.sample_within(outer, rng), seed)


@given(st.sampled_from(ALL), st.integers(0, 2**32 - 1))
def test_macs_and_parameters_are_those_of_the_built_module(name: str, seed: int) -> None:
    space = declared(name)
    check_counts(space, space.sample(random.Random(seed)))


@pytest.mark.parametrize("name", ["RESNET", "MOBILENET"])
def test_peak_memory_is_what_stepping_through_the_built_module_finds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (*test_cost.IN_PLACE_LAYERS, nn.ReLU6, nn.Dropout)
    calls = (*test_cost.IN_PLACE_CALLS, functional.relu, torch.relu)
    monkeypatch.setattr(test_cost, "IN_PLACE_LAYERS", layers)
    monkeypatch.setattr(test_cost, "IN_PLACE_CALLS", calls)
    space, rng = declared(name), random.Random(0)
    for arch in (space.largest(), space.smallest(), *(space.sample(rng) for _ in range(8))):
        module, x = space.build(arch), inputs(space, arch, 0, batch=1)
        assert cost(space, arch).peak_activation_bytes == test_cost.counted_peak_bytes(module, x)


def test_an_activation_whose_input_is_read_again_needs_memory_of_its_own() -> None:
    space = DeclaredSpace.from_dict({"module": "own_networks:reread", "input_size": [1, 8, 8]})
    assert cost(space, space.largest()).peak_activation_bytes == 4 * (512 + 512)


@pytest.mark.parametrize("name", ["RESNET", "MIXED", "MOBILENET", "SQUEEZENET"])
def test_training_memory_is_what_autograd_keeps(name: str) -> None:
    space, rng = declared(name), random.Random(0)
    for arch in (space.largest(), space.smallest(), *(space.sample(rng) for _ in range(3))):
        kept = test_cost.kept_bytes(space.build(arch), inputs(space, arch, 0, batch=32))
        assert cost(space, arch).train_activation_bytes == pytest.approx(kept, rel=0.02)


def test_a_fleet_trains_an_own_module(tmp_path: Path) -> None:
    check_federated(declared("RESNET"), tmp_path)


def test_a_fleet_trains_a_torchvision_model(tmp_path: Path) -> None:
    check_federated(declared("MOBILENET"), tmp_path)


def check_export_and_sizes(name: str, folder: Path) -> None:
    space = declared(name)
    check_export(space, space.smallest(), folder)
    for kind, file in FILE_NAMES.items():
        predicted = predicted_size_bytes(kind, space.layers(space.smallest()))
        assert predicted == pytest.approx((folder / file).stat().st_size, rel=0.05), kind


@pytest.mark.slow
def test_an_own_module_exports_with_files_that_do_what_it_does(tmp_path: Path) -> None:
    check_export_and_sizes("RESNET", tmp_path)


@pytest.mark.slow
def test_a_torchvision_model_exports_with_files_that_do_what_it_does(tmp_path: Path) -> None:
    check_export_and_sizes("MOBILENET", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ALL)
def test_random_architectures_export(name: str, tmp_path: Path) -> None:
    space, rng = declared(name), random.Random(1)
    for seed in range(8):
        check_export(space, space.sample(rng), tmp_path / str(seed), seed)


@pytest.mark.parametrize("name", ALL)
def test_a_declared_space_comes_back_from_its_description_and_from_another_process(
    name: str,
) -> None:
    space = declared(name)
    check_description(space)
    back = pickle.loads(pickle.dumps(space))
    assert back == space
    assert hash(back) == hash(space)
    assert back.layers(back.largest()) == space.layers(space.largest())


def test_the_order_of_a_tables_lines_means_nothing() -> None:
    turned = {**RESNET, "widths": dict(reversed(RESNET["widths"].items()))}
    assert DeclaredSpace.from_dict(turned) == declared("RESNET")


def test_what_is_tied_is_found_out_and_said() -> None:
    lines = declared("RESNET").report().splitlines()
    assert "conv1.width [8, 12, 16]: conv1, layer1.0.conv2, layer1.1.conv2" in lines
    assert (
        "layer2.0.conv2.width [16, 24, 32]: layer2.0.conv2, layer2.0.project.0, layer2.1.conv2"
        in lines
    )
    assert "layer1.0.conv1.width [0.5, 1.0]: layer1.0.conv1" in lines
    assert "resolution [8, 12]: the input" in lines
    assert "layer1.depth [0, 1]: layer1.1" in lines


def test_what_a_left_out_block_joins_is_tied() -> None:
    assert "first.width [4, 8]: first, middle.0, middle.3" in declared("STRAIGHT").report()


def test_genes_of_a_block_matter_only_where_the_block_is_used() -> None:
    space = declared("RESNET")
    assert "layer1.1.conv1.width" in space.largest()
    assert "layer1.1.conv1.width" not in space.smallest()
    assert {gene.name for gene in space.genes if gene.role == "width"} == {
        "conv1.width", "layer1.0.conv1.width", "layer1.1.conv1.width", "layer2.0.conv1.width",
        "layer2.0.conv2.width", "layer2.1.conv1.width",
    }  # fmt: skip


def test_layers_with_one_gene_vary_together() -> None:
    space = declared("MOBILENET")
    assert [gene.name for gene in space.genes] == ["stage2.depth", "stage3.depth", "width"]
    half = space.build(space.arch({**space.largest(), "width": 0.5}))
    whole = space.build(space.largest())
    pairs = zip(half.modules(), whole.modules(), strict=True)
    widths = [(a.out_channels, b.out_channels) for a, b in pairs if isinstance(a, nn.Conv2d)]
    assert widths
    assert all(2 * small == large for small, large in widths)


def test_a_block_that_is_left_out_is_the_identity() -> None:
    space = declared("RESNET")
    arch = space.arch({k: v for k, v in space.largest().items() if not k.startswith("layer1.1")}
                      | {"layer1.depth": 0})  # fmt: skip
    shared = shared_weights(space)
    whole = extract(space, space.largest(), shared).eval()
    whole.layer1 = whole.layer1[:1]  # type: ignore[index]
    cut, x = extract(space, arch, shared).eval(), inputs(space, arch, 0)
    assert torch.equal(cut(x), whole(x))
    assert not [name for name, _ in cut.named_parameters() if name.startswith("layer1.1")]


def test_features_after_flattening_and_joining_follow_their_channels() -> None:
    space = declared("MIXED")
    arch = space.arch({**space.largest(), "left.width": 4, "right.width": 6, "reduce.width": 4})
    where = regions(space, arch)
    joined = (0, 1, 2, 3, *range(8, 14))  # left has 8 channels, right 12
    assert where["depthwise.weight"][0] == joined
    assert where["reduce.weight"] == (slice(0, 4), joined, slice(0, 1), slice(0, 1))
    assert where["hidden.weight"] == (slice(0, 24), slice(0, 4 * 9))
    assert where["expand.weight"][0] == joined  # what gates a tensor has its channels


def test_a_network_that_views_maps_as_vectors_takes_channels_last_images() -> None:
    space = declared("MIXED")
    x = inputs(space, space.largest(), 0)
    module = space.build(space.largest()).eval()
    assert torch.allclose(module(x), module(x.to(memory_format=torch.channels_last)), atol=1e-5)


def test_layers_keep_their_class_and_settings() -> None:
    space = declared("BORDERED")
    module = space.build(space.smallest())
    first, twice = module.get_submodule("first"), module.get_submodule("twice")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(twice, nn.Conv2d)
    assert (first.padding_mode, first.dilation, first.kernel_size) == ("reflect", (2, 2), (1, 1))
    assert (twice.groups, twice.in_channels, twice.out_channels) == (2, 2, 4)


class Chained(nn.Module):
    """A norm layer that follows a convolution in forward only; one output read by two, if asked."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.block = Block(2, 4)
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fc, self.bn1d = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.block(x))
        z = self.bn(y) + y if self.shared else self.bn(y)
        out: Tensor = self.bn1d(self.fc(z.mean((2, 3))))
        return out


def test_norm_layers_are_folded_where_forward_calls_them_after_a_convolution() -> None:
    torch.manual_seed(0)
    net = Chained(shared=False).train()
    with torch.no_grad():
        net(torch.randn(64, 2, 5, 5) * 2 + 1)
        x = torch.randn(8, 2, 5, 5)
        before, after = net.eval()(x), folded(net)(x)
    assert torch.allclose(before, after, atol=1e-5)
    assert not batch_norms(folded(net))
    assert len(batch_norms(net)) == 5


def test_a_norm_layer_whose_convolution_others_read_too_is_named() -> None:
    with pytest.raises(ExportError, match=r"^bn: "):
        folded(Chained(shared=True))


def test_an_own_module_starts_with_the_values_that_it_draws_itself() -> None:
    space = declared("SCALED")
    state = torch.get_rng_state()
    values = initial(space, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(values["scale"], torch.full((8, 1, 1), 1e-6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = scaled()
    for name, value in module.named_parameters():
        assert torch.equal(values[name], value), name
    assert all(torch.equal(initial(space, 3)[name], value) for name, value in values.items())
    assert not torch.equal(initial(space, 4)["out.weight"], values["out.weight"])


def test_attention_starts_as_torch_draws_it() -> None:
    values = initial(declared("ATTENTION"), 0)
    assert values["attention.in_proj_weight"].std() > 0.05
    assert not values["token"].any()


def test_an_attention_s_projections_are_kernels_as_its_files_have_them(tmp_path: Path) -> None:
    space = declared("ATTENTION")
    arch = space.smallest()
    held = kernels(space, arch)
    assert list(held)[1:3] == ["attention.in_proj_weight", "attention.out_proj.weight"]
    export_floats(random_subnet(space, arch, 0), ("onnx",), tmp_path)
    shapes = onnx_quantize.kernel_shapes(tmp_path / FILE_NAMES["onnx_fp32"])
    counts = [math.prod(shape) for shape in shapes]
    assert counts == [kernel.weight.numel() for kernel in held.values()]
    assert not observed(space, arch)


def test_the_documented_example_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", DOC.read_text(), re.DOTALL)
    module, *snippets = [code for language, code in blocks if language == "python"]
    config, _ = [code for language, code in blocks if language == "toml"]
    said = [code for language, code in blocks if not language]
    (tmp_path / "mynet.py").write_text(module)
    (tmp_path / "fedofa.toml").write_text(config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FEDOFA_MODULES", "mynet:build")
    names: dict[str, Any] = {}
    try:
        for code in snippets:
            exec(code, names)
    finally:
        sys.modules.pop("mynet", None)
    assert capsys.readouterr().out in said
    job = train_job(Path(".fedofa"), names["config"], resume=True)
    assert Path(job.folder) == names["folder"]
    resumed = Training(names["config"], names["space"], names["store"], names["log"])
    assert resumed.resume()
    assert digest(resumed.weights) == digest(names["ordered"].weights)
    check_counts(names["space"], names["space"].smallest())
    check_views(names["space"], names["space"].largest(), names["space"].smallest(), 0)


def test_the_documented_torchvision_space_varies_what_it_says() -> None:
    _, config = re.findall(r"```toml\n(.*?)```", DOC.read_text(), re.DOTALL)
    space = parse_config(tomllib.loads(config)).build_space()
    lines = dict(line.split(" ", 1) for line in space.report().splitlines())  # type: ignore[attr-defined]
    assert lines["layer2.0.conv1.width"] == "[0.5, 1.0]: layer2.0.conv1"
    assert "conv1, layer1.0.conv2" in lines["width"]
    assert lines["late.depth"] == "[0, 1, 2]: layer3.1, layer4.1"
    check_counts(space, space.smallest())


def test_torchvision_can_be_imported_beside_a_cpu_build_of_torch() -> None:
    assert import_module("torchvision.models").mobilenet_v2.__name__ == "mobilenet_v2"
    with pytest.raises(ImportError):
        import_module("torchvision.nothing")


@pytest.mark.slow
def test_the_torchvision_example_runs() -> None:
    root = DOC.parent.parent
    done = subprocess.run(
        [sys.executable, str(root / "examples" / "torchvision_supernet.py")],
        env={**os.environ, "FEDOFA_MODULES": "torchvision.models"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "round 2: loss" in done.stdout
