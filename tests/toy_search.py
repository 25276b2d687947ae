"""A space of a few hundred architectures, all of them listed, and truths about them."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from fedofa.supernet.cost import cost
from fedofa.supernet.families.mobilenet import MobileNetSpace, Stage
from fedofa.supernet.space import Arch, Space

Truth = Callable[[Arch], float]

TOY = MobileNetSpace(
    classes=3,
    in_channels=1,
    resolutions=(8,),
    stem_widths=(4, 8),
    stages=(
        Stage(widths=(8, 12), depths=(1, 2), expands=(2, 3), kernels=(3, 5)),
        Stage(widths=(8, 16), depths=(1,), expands=(2, 3), kernels=(3,), stride=2),
    ),
    head_widths=(8, 16, 24),
)
FLAT = replace(
    TOY,
    stages=(
        Stage(widths=(8, 12, 16), depths=(1,), expands=(1, 2, 3, 4), kernels=(3, 5, 7)),
        Stage(widths=(8, 16), depths=(1,), expands=(2, 3), kernels=(3,), stride=2),
    ),
)
"""Every gene matters in every architecture."""


def every(space: Space) -> Iterator[Arch]:
    """All architectures, once each: all combinations of options, completed by the space."""
    seen = set()
    for chosen in itertools.product(*(gene.options for gene in space.genes)):
        values = dict(zip((gene.name for gene in space.genes), chosen, strict=True))
        for gene in space.genes:
            if gene.needs and values.get(gene.needs[0], 0) < gene.needs[1]:
                values.pop(gene.name)
        arch = space.arch(values)
        if arch not in seen:
            seen.add(arch)
            yield arch


ALL = list(every(TOY))


def plain_sum(arch: Arch) -> float:
    return float(sum(arch.values()))


def macs_of(arch: Arch) -> int:
    return cost(TOY, arch).macs


def linear_truth(space: Space, seed: int) -> Truth:
    """An accuracy that is a sum of one number per gene and option."""
    rng = np.random.default_rng(seed)
    gain = {(g.name, o): rng.normal() * 0.05 for g in space.genes for o in g.options}

    def truth(arch: Arch) -> float:
        return float(0.5 + sum(gain[name, value] for name, value in arch.items()))

    return truth
