"""The cost model against counts taken from the built modules."""

import operator
import random
from collections.abc import Mapping

import pytest
import torch
from fedofa.supernet.cost import Budget, Cost, cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS
from fedofa.supernet.space import Arch, Space
from hypothesis import given
from invariants import check_counts
from strategies import DIGITS, SMALL, architectures
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

MOBILE = PRESETS["mobile"]
IN_PLACE_LAYERS = (
    nn.BatchNorm2d, nn.GroupNorm, nn.ReLU, nn.Hardswish, nn.SiLU, nn.Hardsigmoid, nn.Identity,
)  # fmt: skip
IN_PLACE_CALLS = (operator.add, operator.mul, "flatten")


def built(space: Space, arch: Arch, device: str = "cpu") -> nn.Module:
    with torch.device(device):
        return space.build(arch)


class _Sizes(fx.Interpreter):
    """Runs a traced module and notes the number of elements of every value."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.elements: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.elements[n] = value.numel()
        return value


def counted_peak_bytes(module: nn.Module, x: Tensor) -> int:
    """Largest sum of buffers alive at once, stepping through the traced module.

    Normalization, activation, addition and scaling write into a buffer that nobody needs any more.
    """
    traced = fx.symbolic_trace(module.eval())
    sizes = _Sizes(traced)
    with torch.no_grad():
        sizes.run(x)
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    layers = dict(traced.named_modules())
    buffer: dict[fx.Node, fx.Node] = {}
    for node in order:
        if node.op != "output":
            buffer[node] = _reused(node, layers, order, buffer, sizes.elements) or node
    last_use: dict[fx.Node, int] = {}
    for node, held in buffer.items():
        ends = [order[user] for user in node.users]
        last_use[held] = max([last_use.get(held, 0), order[node], *ends])
    alive = [
        sum(sizes.elements[b] for b in set(buffer.values()) if order[b] <= now <= last_use[b])
        for now in range(len(order))
    ]
    return 4 * max(alive)


def _reused(
    node: fx.Node,
    layers: Mapping[str, nn.Module],
    order: Mapping[fx.Node, int],
    buffer: Mapping[fx.Node, fx.Node],
    elements: Mapping[fx.Node, int],
) -> fx.Node | None:
    layer = layers.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(layer, IN_PLACE_LAYERS) and node.target not in IN_PLACE_CALLS:
        return None
    for source in node.all_input_nodes:
        free = max(order[user] for user in source.users) == order[node]
        if elements[source] == elements[node] and (free or isinstance(layer, nn.Identity)):
            return buffer[source]
    raise AssertionError(f"{node}: no buffer to write into")


def kept_bytes(module: nn.Module, x: Tensor) -> float:
    """Bytes per example of what autograd holds between forward and backward, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        functional.cross_entropy(module.train()(x), torch.zeros(len(x), dtype=torch.int64))
    stored = (t.untyped_storage().nbytes() for at, t in held.items() if at not in weights)
    return sum(stored) / len(x)


@given(architectures())
def test_macs_and_parameters_are_those_of_the_built_module(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    check_counts(space, arch)


@given(architectures())
def test_peak_memory_is_what_stepping_through_the_module_finds(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    module, x = built(space, arch, "meta"), torch.zeros(1, *space.input_shape(arch), device="meta")
    assert cost(space, arch).peak_activation_bytes == counted_peak_bytes(module, x)


@given(architectures())
def test_training_memory_is_what_autograd_keeps(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    module, x = built(space, arch), torch.randn(32, *space.input_shape(arch))
    kept = kept_bytes(module, x)
    assert cost(space, arch).train_activation_bytes == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("space", [DIGITS, SMALL])
def test_training_memory_of_the_presets_is_never_estimated_too_low(space: Space) -> None:
    rng = random.Random(0)
    for arch in (space.smallest(), space.largest(), space.sample(rng)):
        kept = kept_bytes(built(space, arch), torch.randn(32, *space.input_shape(arch)))
        assert 0.99 * kept <= cost(space, arch).train_activation_bytes <= 1.05 * kept


def test_the_largest_mobile_network_costs_what_once_for_all_published() -> None:
    """Width 1.0, depth 4, expand 6, kernel 7, 224 pixels."""
    spent = cost(MOBILE, MOBILE.largest())
    assert spent.macs == 566_170_656
    assert spent.params == 7_664_760


@given(architectures())
def test_a_larger_neighbour_costs_no_less(drawn: tuple[Space, Arch]) -> None:
    space, arch = drawn
    spent = cost(space, arch).to_dict()
    for grown in space.grown(arch):
        more = cost(space, grown).to_dict()
        assert all(more[name] >= spent[name] for name in spent)


def test_a_budget_names_the_bounds_that_are_broken() -> None:
    spent = Cost(macs=10, params=100, peak_activation_bytes=40, train_activation_bytes=7)
    assert spent.train_memory_bytes(3) == 12 * 100 + 3 * 7
    assert Budget().fits(spent, batch=10**6)
    assert Budget(macs=10, params=100, peak_activation_bytes=40).fits(spent)
    assert Budget(macs=9, params=99).excess(spent) == ["macs 10 > 9", "params 100 > 99"]
    assert Budget(train_memory_bytes=1221).fits(spent, batch=3)
    assert Budget(train_memory_bytes=1220).excess(spent, batch=3) == [
        "train_memory_bytes 1221 > 1220"
    ]
    assert Budget(file_bytes=5).fits(spent)
    assert Budget(file_bytes=5).excess(spent, file_bytes=6) == ["file_bytes 6 > 5"]


def test_tightening_keeps_the_smaller_bound_and_what_only_one_has() -> None:
    tight = Budget(macs=5, params=7).tightened(Budget(macs=6, params=3, file_bytes=1))
    assert tight == Budget(macs=5, params=3, file_bytes=1)
    assert Budget.from_dict(tight.to_dict()) == tight
    assert Budget().tightened(Budget()) == Budget()


@pytest.mark.parametrize(
    "bounds", [{"macs": 0}, {"params": -1}, {"mac": 3}, {"macs": "3"}, {"macs": float("nan")}]
)
def test_a_budget_that_cannot_be_is_a_usage_error(bounds: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="budget"):
        Budget.from_dict(bounds)
