"""Targets selected before training by a zero-cost score (PreNAS, Wang et al. 2023).

At the initial weights w one gradient g is taken, of the sum of the outputs for Gaussian images (no
data); a subnet's score is Σ|w·g| over its own weights. Scores grow with size, so they are compared
among subnets of one budget only: of `candidates` maximal ones within a client's budget the best is
that budget's target, and the federation trains just these: each client its own, with the smaller
ones inside it as students. Deviations: targets are drawn and scored one by one, in place of the
paper's enumeration of counts with a layer-wise score; scores use the largest subnet's gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from ...supernet.axes import regions, view
from ...supernet.cost import cost
from ...supernet.randomness import stream
from ...supernet.space import Arch, Space
from ...supernet.subnet import static
from ...supernet.weights import initial
from ..limits import Limits
from .assigned import Assigned, Forgetful, Round
from .drawing import maximal_fit

IMAGES = 64


@dataclass(frozen=True, slots=True)
class Preselect(Forgetful):
    """`candidates` subnets are scored for each distinct budget."""

    candidates: int = 64

    def assign(self, this: Round) -> dict[str, Assigned]:
        """Each client's target, with the smaller targets inside it as students."""
        targets = self.targets(this)
        smaller = sorted(set(targets.values()), key=lambda arch: cost(this.space, arch).macs)
        chosen = {}
        for name, target in targets.items():
            inside = [a for a in smaller if a != target and this.space.contains(target, a)]
            chosen[name] = Assigned(target, students=tuple(inside))
        return chosen

    def targets(self, this: Round) -> dict[str, Arch]:
        """Client → target; clients of equal budgets share one. The same in every round."""
        return {
            client.name: target(this.space, client.limits, this.seed, self.candidates)
            for client in this.clients
        }


@lru_cache(maxsize=256)
def target(space: Space, limits: Limits, seed: int, candidates: int) -> Arch:
    """The best by score of some maximal subnets within a budget."""
    rng = stream(seed, "preselect")
    drawn = [maximal_fit(space, partial(limits.fits, space), rng) for _ in range(candidates)]
    scores = saliency(space, seed)
    return max(dict.fromkeys(drawn), key=lambda arch: score(space, arch, scores))


def score(space: Space, arch: Arch, saliencies: Mapping[str, Tensor]) -> float:
    """Σ|w·g| over an architecture's own weights."""
    where = regions(space, arch).items()
    return sum(float(view(saliencies[name], region).sum()) for name, region in where)


@lru_cache(maxsize=4)
def saliency(space: Space, seed: int) -> Mapping[str, Tensor]:
    """|w·g| of every shared weight at its initial value; no data are needed."""
    weights, largest = initial(space, seed), space.largest()
    module = static(space, largest, weights).train()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(IMAGES, *space.input_shape(largest), generator=generator)
    module(x).sum().backward()
    parameters = dict(module.named_parameters())
    return {
        name: (weights[name] * grad).abs()
        if (grad := parameters[name].grad) is not None
        else torch.zeros_like(weights[name])
        for name in weights
    }
