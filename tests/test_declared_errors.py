"""What cannot be declared is refused with the reason; what is not trusted is not imported."""

from typing import Any

import pytest
import torch
from declared_spaces import MIXED, RESNET, TRUSTED, declared
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import space_from_dict
from fedofa.supernet.families.declared import DeclaredSpace
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", TRUSTED)


class Apart(nn.Module):
    """A convolution whose norm is where it stays when the other one is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.out = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.norm(self.conv(self.first(x))).mean((2, 3)))


class Tokenwise(nn.Module):
    """As many tokens as channels, so that a batch norm takes the wrong dimension without notice."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.out = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.norm(self.up(x)).mean(1))


class Broken(nn.Module):
    """A small network; `fault` says what is wrong with it."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.even = nn.Conv2d(16, 16, 2)
        self.out = nn.Linear(16, 3)
        if fault == "unused":
            self.spare = nn.Linear(2, 2)
        if fault == "plain":
            self.factor = torch.tensor(0.5)
        if fault == "listed":
            self.factors = [torch.tensor(0.5)]
        if fault == "tied, by value":
            self.p = torch.linspace(0, 1, 3)[
                1
            ].item()  # needs values, so that it is made with memory
        if fault.startswith("tied"):
            self.again = nn.Linear(16, 3)
            self.again.weight = self.out.weight
        if fault == "computed":
            nn.utils.parametrizations.weight_norm(self.first)
        if fault == "buffer":
            self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.fault == "flow" and x.sum() > 0:
            x = -x
        x = self.norm(torch.relu(x) if self.fault == "norm" else x)
        if self.fault == "twice":
            x = self.first(x.mean(1, keepdim=True))
        if self.fault == "number":
            x = x.reshape(-1, 8, 8, 8) + 0.0
        silent = x.reshape(-1, 8 * 8 * 8).mean(1, keepdim=True) if self.fault == "silent" else 0.0
        if self.fault == "regroup":
            x = x.reshape(x.size(0), 2, 4, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)
        x = self.even(self.second(x))
        if self.fault == "maps":
            return x
        logits = self.out(x.mean((2, 3))) + silent
        return (logits, logits) if self.fault == "pair" and self.training else logits


def broken(fault: str = "") -> nn.Module:
    return Broken(fault)


def apart() -> nn.Module:
    return Apart()


def tokenwise() -> nn.Module:
    return Tokenwise()


def a_number() -> int:
    return 3


HERE = {"module": f"{__name__}:broken", "input_size": [1, 8, 8]}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unused", ["spare.bias is used nowhere"]),
        ("buffer", ["buffer mean", "parameter"]),
        ("plain", ["factor holds a tensor", "number"]),
        ("listed", ["factors holds a tensor"]),
        ("tied", ["out.weight and again.weight are one parameter", "its own"]),
        ("tied, by value", ["out.weight and again.weight are one parameter"]),
        ("computed", ["first.weight is computed", "weight_norm"]),
        ("flow", ["cannot be traced", "values"]),
        ("norm", ["norm layer norm", "folded"]),
        ("twice", ["layer first is called twice"]),
        ("number", ["fails at second", "smallest widths", "written there as a number"]),
        ("silent", ["`reshape` in forward gives (512,) where (256,) follows", "as a number"]),
        ("regroup", ["first cannot vary", "`reshape`", "regroups"]),
        ("maps", ["one tensor (batch, classes)"]),
        ("pair", ["training mode", "one tensor"]),
    ],
)
def test_a_module_that_cannot_be_a_supernet_is_refused_with_the_reason(
    fault: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", HERE["module"])  # type: ignore[arg-type]
    with pytest.raises(UsageError) as error:
        DeclaredSpace.from_dict(
            {**HERE, "arguments": {"fault": fault}, "widths": {"first": [4, 8]}}
        )
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_size": None}, ["input_size"]),
        ({"input_size": []}, ["input_size = []", "above 0"]),
        ({"input_size": [1, 8.5]}, ["input_size"]),
        ({"input_size": [2, 12, 12]}, ["forward fails", "(2, 12, 12)"]),
        ({"colour": 1}, ["unknown field 'colour'", "widths"]),
        ({"module": 3}, ["module = 3", "mypackage.net:build"]),
        ({"module": "own_networks"}, ["mypackage.net:build"]),
        ({"module": "own_networks:nothing"}, ["no function 'nothing'"]),
        ({"arguments": {"width": {"a": 1}}}, ["arguments.width"]),
        ({"arguments": {"colour": 1}}, ["own_networks:resnet called with", "colour"]),
        ({"arguments": [1]}, ["arguments", "table"]),
        ({"widths": 3}, ["widths", "table"]),
        ({"widths": {"conv1": 8}}, ["widths.conv1", "list of whole numbers"]),
        ({"widths": {"conv1": []}}, ["widths.conv1"]),
        ({"widths": {"conv1": [8, "x"]}}, ["widths.conv1"]),
        ({"widths": {"conv1": [16, 8]}}, ["conv1 = [16, 8]", "ascending"]),
        ({"widths": {"conv1": [8, 12]}}, ["conv1 = [8, 12]", "the last of them 16"]),
        ({"widths": {"conv1": [0, 16]}}, ["conv1 = [0, 16]", "above 0"]),
        ({"widths": {"conv1": [0.5, 2.0]}}, ["widths.conv1"]),
        ({"widths": {"conv1": {"options": [8, 16]}}}, ["widths.conv1", "gene"]),
        ({"widths": {"conv1": [0.5, 0.51, 1.0]}}, ["0.5 and 0.51", "8 channels in conv1"]),
        ({"widths": {"conv": [8, 16]}}, ["'conv'", "did you mean 'conv1'"]),
        ({"widths": {"*.conv9": [8, 16]}}, ["'*.conv9'", "known: conv1, layer1.0.conv1"]),
        ({"widths": {"bn1": [8, 16]}}, ["bn1 has the channels of conv1"]),
        ({"widths": {"fc": [2, 4]}}, ["fc cannot vary", "the network's output"]),
        ({"widths": {"fc*": [2, 4]}}, ["'fc*' matches nothing that can vary"]),
        (
            {"widths": {"conv1": [8, 16], "layer1.1.conv2": [8, 16]}},
            ["conv1 and layer1.1.conv2 have the same channels", "`add` in layer1", "one of them"],
        ),
        ({"widths": {"layer*.conv1": [0.5, 1.0], "*.[01].conv1": [0.5, 1.0]}}, ["both", "narrower"]),
        (
            {"widths": {"*.conv1": {"options": [0.5, 1.0], "gene": "w"},
                        "conv1": {"options": [8, 16], "gene": "w"}}},
            ["gene 'w' has options"],
        ),
        ({"kernels": {"conv1": [3, 4, 5]}}, ["conv1 = 4", "odd"]),
        ({"kernels": {"*": [0.5, 1.0]}}, ["* = 0.5", "odd"]),
        ({"kernels": {"conv1": [3]}}, ["conv1 = [3]", "own size, 5"]),
        ({"kernels": {"conv1": [0.5]}}, ["kernels"]),
        ({"kernels": {"fc": [1]}}, ["no layer is called 'fc'"]),
        ({"kernels": {"layer2.0.project.0": [1], "*": [3, 7]}}, ["'*' matches nothing"]),
        ({"depths": {"a": []}}, ["depths.a"]),
        ({"depths": {"a": ["layer9"]}}, ["no part 'layer9'"]),
        ({"depths": {"a": ["layer2.0"]}}, ["layer2.0 turns (16, 6, 6) into (32, 3, 3)"]),
        ({"depths": {"a": ["layer1.0"], "b": ["layer1"]}}, ["layer1.0 and layer1", "one way only"]),
        ({"depths": {"a": ["layer1.1", "layer1.1"]}}, ["one way only"]),
        (
            {"depths": {"a": ["layer1.1"]},
             "widths": {"*.conv1": {"options": [0.5, 1.0], "gene": "a.depth"}}},
            ["two genes are called 'a.depth'"],
        ),
        ({"resolutions": [8, 10]}, ["resolutions = [8, 10]", "input_size"]),
        ({"resolutions": [12, 8]}, ["ascending"]),
    ],
)  # fmt: skip
def test_an_impossible_declaration_is_refused_naming_what_and_why(
    change: dict[str, Any], words: list[str]
) -> None:
    plain = {"module": RESNET["module"], "input_size": RESNET["input_size"]}
    with pytest.raises(UsageError) as error:
        space_from_dict({"family": "declared", **plain, **change})
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_an_even_or_lopsided_kernel_and_a_group_cut_in_two_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", f"{TRUSTED},{HERE['module']}")
    with pytest.raises(UsageError, match="even cannot vary: its kernel must be square and odd"):
        DeclaredSpace.from_dict({**HERE, "kernels": {"even": [1, 2]}})
    with pytest.raises(UsageError, match="5 is no multiple of 2, the channels of one group"):
        DeclaredSpace.from_dict({**MIXED, "widths": {"reduce": [5, 8]}})


@pytest.mark.parametrize("block", ["conv", "norm"])
def test_a_norm_layer_is_left_out_with_its_convolution_or_not_at_all(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", f"{__name__}:apart")
    fields = {"module": f"{__name__}:apart", "input_size": [1, 8, 8]}
    DeclaredSpace.from_dict(fields)
    with pytest.raises(UsageError, match=f"norm layer norm is folded into conv .* in {block},"):
        DeclaredSpace.from_dict({**fields, "depths": {"d": [block]}})


def test_a_batch_norm_over_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", f"{__name__}:tokenwise")
    with pytest.raises(UsageError, match="norm normalizes dimension 1 of up's output"):
        DeclaredSpace.from_dict({"module": f"{__name__}:tokenwise", "input_size": [8, 8]})


def test_weights_that_depend_on_the_resolution_are_refused() -> None:
    with pytest.raises(UsageError, match=r"fails at hidden on an input of shape \(2, 4, 4\)"):
        DeclaredSpace.from_dict({**MIXED, "resolutions": [4, 6]})


def test_only_what_this_machine_trusts_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    space = declared("RESNET")
    fields = {"module": "not_imported_yet:build", "input_size": [1]}
    for trusted in ("", "not_imported", "not_imported_yet.other", "not_imported_yet:other"):
        monkeypatch.setenv("FEDOFA_MODULES", trusted)
        with pytest.raises(UsageError, match="FEDOFA_MODULES=not_imported_yet:build"):
            DeclaredSpace.from_dict(fields)
    monkeypatch.setenv("FEDOFA_MODULES", "another, not_imported_yet")
    with pytest.raises(UsageError, match="cannot be imported: ModuleNotFoundError"):
        DeclaredSpace.from_dict(fields)
    monkeypatch.setenv("FEDOFA_MODULES", "")
    with pytest.raises(UsageError, match="not trusted"):  # known from before is not trusted now
        DeclaredSpace.from_dict(RESNET)
    with pytest.raises(UsageError, match="not trusted on this machine; trusted: none"):
        space.build(space.largest())


def test_a_trusted_modules_own_imports_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", "own_networks")
    with pytest.raises(UsageError, match=r"Callable is defined in .*, which is not trusted"):
        DeclaredSpace.from_dict({"module": "own_networks:Callable", "input_size": [1]})
    monkeypatch.setenv("FEDOFA_MODULES", f"{__name__}:a_number")
    with pytest.raises(UsageError, match="returned int"):
        DeclaredSpace.from_dict({"module": f"{__name__}:a_number", "input_size": [1]})
