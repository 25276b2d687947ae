"""Equalization changes weights and no output; what it cannot pair it leaves alone."""

import pytest
import torch
from fedofa.specialize.equalize import equalized
from fedofa.supernet.folding import folded
from torch import Tensor, nn
from toy_networks import digits, digits_files


class Residual(nn.Module):
    """Its first convolution is read once, its second's output twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.act, self.head = nn.ReLU(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.act(self.first(x)))
        y = self.act(x + y)
        found: Tensor = self.head(y.mean((2, 3)))
        return found


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.Conv2d(8, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 2))


def unequal(net: nn.Module, seed: int) -> nn.Module:
    """Channels of very different sizes, one without weights."""
    generator = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            size = len(layer.weight)
            scale = 10 ** (4 * torch.rand(size, generator=generator) - 2)
            layer.weight.data *= scale.view(-1, *[1] * (layer.weight.dim() - 1))
    next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)).weight.data[
        0
    ] = 0
    return net.eval()


@pytest.mark.parametrize(
    ("make", "shape", "pairs"),
    [(Residual, (3, 5, 5), 1), (depthwise, (3, 6, 6), 3), (linear, (6,), 2)],
)
@pytest.mark.parametrize("seed", range(3))
def test_an_equalized_network_computes_the_same_with_ranges_that_agree(
    make: type[nn.Module], shape: tuple[int, ...], pairs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    net = unequal(make(), seed)
    x = torch.randn(16, *shape)
    before = [p.clone() for p in net.parameters()]
    done = equalized(net)
    assert done.pairs == pairs
    with torch.no_grad():
        want, got = net(x), done.module(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    first, second = [m for m in done.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:2]
    dim = 0 if getattr(second, "groups", 1) > 1 else 1
    mine = first.weight.detach().flatten(1).abs().amax(1)[1:]
    theirs = second.weight.detach().abs().movedim(dim, 0).flatten(1).amax(1)[1:]
    torch.testing.assert_close(mine, theirs, rtol=0.01, atol=0)


def test_layers_after_other_activations_are_left_alone() -> None:
    """Hard-swish and ReLU6 do not let a factor through."""
    net = nn.Sequential(
        nn.Linear(4, 5), nn.Hardswish(), nn.Linear(5, 6), nn.ReLU6(), nn.Linear(6, 2)
    )
    done = equalized(net)
    assert done.pairs == 0
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), done.module.parameters(), strict=True)
    )


@pytest.mark.slow
def test_a_trained_network_of_hard_swish_and_relu_keeps_its_outputs() -> None:
    net, x = folded(digits_files().net), torch.from_numpy(digits().test_x[:100])
    done = equalized(net)
    assert done.pairs > 0  # within the gates
    with torch.no_grad():
        torch.testing.assert_close(done.module(x), net(x), rtol=1e-5, atol=1e-4)


def test_a_flattened_map_is_no_channel_and_a_network_that_cannot_be_traced_no_chain() -> None:
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 3))
    assert equalized(flat).pairs == 0

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x) if x.sum() > 0 else x
            return found

    assert equalized(Branching()).pairs == 0
