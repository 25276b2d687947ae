"""Costs of published architectures against the published and recounted numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fedofa.server.cli import app
from fedofa.supernet.cost import cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.families.mobilenet_presets import ofa_mbv3
from fedofa.supernet.families.published import read_published, unused_params
from typer.testing import CliRunner

# Resolution, widths, depths, kernels, expand ratios, MACs, parameters of AttentiveNAS and AlphaNet.
# fmt: off
ATTENTIVE = (
    # a0
    (192, (16, 16, 24, 32, 64, 112, 192, 216, 1792), (1, 3, 3, 3, 3, 3, 1), (3, 3, 3, 3, 3, 3, 3), (1, 4, 4, 4, 4, 6, 6), 203_389_568, 9_064_648),
    # a1
    (224, (16, 16, 24, 32, 64, 112, 192, 216, 1984), (1, 3, 3, 3, 3, 3, 1), (3, 3, 3, 5, 3, 5, 3), (1, 4, 4, 4, 4, 6, 6), 279_238_816, 9_563_336),
    # a2
    (224, (16, 16, 24, 32, 64, 112, 200, 224, 1984), (1, 3, 3, 3, 3, 4, 1), (3, 3, 3, 3, 3, 5, 3), (1, 4, 5, 4, 4, 6, 6), 316_730_080, 11_306_560),
    # a3
    (224, (16, 16, 24, 32, 64, 112, 208, 224, 1984), (2, 3, 3, 4, 3, 5, 1), (3, 3, 3, 5, 3, 3, 3), (1, 4, 4, 4, 4, 6, 6), 356_518_400, 12_999_072),
    # a4
    (256, (16, 16, 24, 32, 64, 112, 192, 216, 1984), (1, 3, 3, 4, 3, 5, 1), (3, 3, 3, 5, 3, 5, 3), (1, 4, 4, 5, 4, 6, 6), 443_530_752, 11_997_928),
    # a5
    (256, (16, 16, 24, 32, 72, 112, 192, 216, 1792), (1, 3, 3, 3, 4, 6, 1), (3, 3, 3, 5, 3, 3, 3), (1, 4, 5, 4, 4, 6, 6), 490_520_064, 12_833_240),
    # a6
    (288, (16, 16, 24, 32, 64, 112, 216, 224, 1984), (1, 3, 3, 4, 4, 6, 1), (3, 3, 3, 3, 3, 5, 3), (1, 4, 6, 5, 4, 6, 6), 709_007_232, 15_441_448),
    # a5
    (256, (16, 16, 24, 32, 64, 112, 208, 216, 1984), (1, 3, 3, 4, 4, 5, 1), (3, 3, 3, 3, 3, 5, 3), (1, 4, 4, 5, 4, 6, 6), 491_481_088, 13_196_944),
    # a5_1
    (288, (16, 16, 24, 32, 64, 112, 200, 216, 1984), (2, 3, 4, 3, 3, 5, 1), (3, 3, 5, 5, 3, 3, 3), (1, 4, 4, 4, 5, 6, 6), 594_786_000, 12_602_440),
)
OFA = (
    ("33335553555355555535", "33443334343463334433", "22222", 224, 146_764_640, 3_815_536),
    ("53375555733735555533", "33364336344344336443", "23334", 224, 211_791_008, 4_891_928),
    ("75377337555357735735", "66466643646346446666", "44344", 224, 424_105_248, 6_825_256),
    ("75355535575355553375", "43334444644434663644", "24333", 224, 254_451_472, 5_023_376),
    ("33773553535335535375", "44444366436433346434", "22222", 224, 151_698_912, 3_847_968),
    ("77555337335535557353", "44446364646444464446", "23232", 224, 224_460_928, 4_079_520),
    ("53573757777535555575", "64466644446634466446", "44443", 224, 397_041_248, 5_350_496),
    ("73577753575537355535", "44434643336464464446", "44443", 224, 346_097_248, 5_170_648),
    ("57375555733737555533", "33364334344344336444", "23334", 224, 225_599_040, 5_048_640),
    ("33757375373355555333", "43433343633333346443", "23334", 224, 210_445_952, 4_781_792),
)
# fmt: on


def attentive(row: tuple[Any, ...]) -> dict[str, Any]:
    names = ("resolution", "width", "depth", "kernel_size", "expand_ratio")
    return dict(zip(names, row[:5], strict=True))


def ofa(row: tuple[Any, ...]) -> dict[str, Any]:
    digits = {
        name: [int(c) for c in text] for name, text in zip(("ks", "e", "d"), row, strict=False)
    }
    return {**digits, "r": row[3]}


@pytest.mark.parametrize("row", ATTENTIVE)
def test_attentive_nas_networks_cost_what_was_counted(row: tuple[Any, ...]) -> None:
    space = preset("attentive-nas")
    arch = read_published("attentive-nas", space, attentive(row))
    spent = cost(space, arch)
    assert (spent.macs, spent.params + unused_params("attentive-nas", space, arch)) == row[5:]


@pytest.mark.parametrize("row", OFA)
def test_once_for_all_networks_cost_what_was_counted(row: tuple[Any, ...]) -> None:
    space = preset("ofa-mbv3")
    spent = cost(space, read_published("ofa-mbv3", space, ofa(row)))
    assert (spent.macs, spent.params) == row[4:]


def test_the_width_multiplier_of_once_for_all_scales_every_layer() -> None:
    space = ofa_mbv3(1.2)
    spent = cost(space, space.largest())
    assert (spent.macs, spent.params) == (843_101_040, 10_701_632)


@pytest.mark.parametrize("name", ["ofa-mbv3", "attentive-nas"])
def test_published_networks_run_at_their_resolution(name: str) -> None:
    space = preset(name)
    arch = space.smallest()
    with torch.no_grad():
        logits = space.build(arch).eval()(torch.zeros(1, *space.input_shape(arch)))
    assert logits.shape == (1, 1000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ks": [3] * 19}, "ks = .* list of 20 numbers"),
        ({"d": [2, 2, 2, 2, 5]}, "s5.depth = 5; allowed: "),
        ({"r": 226}, "resolution = 226; allowed"),
        ({"r": "224"}, "r = '224'; a number"),
        ({"ks": None}, "ks = None"),
        ({"kernels": [3]}, "unknown field 'kernels'; fields: ks, e, d, r"),
    ],
)
def test_a_wrong_published_architecture_is_refused_by_field(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        read_published("ofa-mbv3", preset("ofa-mbv3"), {**ofa(OFA[0]), **change})


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cost", *arguments])


def test_the_command_prints_one_architecture_as_json() -> None:
    done = run("--space", "attentive-nas", "--arch", json.dumps(attentive(ATTENTIVE[0])), "--json")
    found = json.loads(done.stdout)
    assert (found["macs"], found["params"]) == ATTENTIVE[0][5:]
    assert found["peak_activation_bytes"] > 4 * 3 * 192 * 192


def test_the_command_prints_a_line_for_each_line_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "archs.jsonl"
    path.write_text("\n".join(json.dumps(ofa(row)) for row in OFA))
    done = run("--space", "ofa-mbv3", "--archs", str(path), "--json")
    assert [json.loads(line)["macs"] for line in done.stdout.splitlines()] == [r[4] for r in OFA]
    path.write_text("{}\n")
    error = run("--space", "ofa-mbv3", "--archs", str(path)).exception
    assert isinstance(error, UsageError)
    assert "line 1" in str(error)


def test_layers_add_up_to_the_whole() -> None:
    done = run("--space", "ofa-mbv3", "--arch", "smallest", "--layers", "--json")
    found = json.loads(done.stdout)
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert sum(layer["params"] for layer in found["layers"]) == found["params"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--space", "digits"), "either --arch"),
        (("--space", "digits", "--arch", "{"), "no JSON"),
        (("--space", "digits", "--arch", "[]"), "a JSON object"),
        (("--space", "digits", "--arch", "largest", "--width", "2"), "no width multiplier"),
        (("--space", "ofa-mbv3", "--arch", "largest", "--width", "0"), "width = 0"),
        (("--space", "mobil", "--arch", "largest"), "did you mean 'mobile'"),
    ],
)
def test_wrong_use_of_the_command_is_named(arguments: tuple[str, ...], words: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, UsageError)
    assert words in str(error)
