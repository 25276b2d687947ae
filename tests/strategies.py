"""Hypothesis strategies: architectures of the presets, and small spaces with every kind of block."""

import random
from dataclasses import replace
from typing import Any

from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS
from fedofa.supernet.families.mobilenet import MobileNetSpace, Stage
from fedofa.supernet.space import Arch, Space
from hypothesis import strategies as st

DIGITS, SMALL = PRESETS["digits"], PRESETS["small"]


def ascending(options: tuple[int, ...], most: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    """One to `most` of these options, ascending."""
    subsets = st.lists(st.sampled_from(options), min_size=1, max_size=most, unique=True)
    return subsets.map(lambda chosen: tuple(sorted(chosen)))


stages = st.builds(
    Stage,
    widths=ascending((4, 8, 12, 16)),
    depths=ascending((1, 2, 3)),
    expands=st.one_of(st.just((1,)), ascending((1, 2, 3, 4))),
    kernels=ascending((3, 5, 7), most=3),
    stride=st.sampled_from((1, 2)),
    act=st.sampled_from(("relu", "hswish", "silu")),
    se=st.booleans(),
)


def space_of(
    stages: tuple[Stage, ...], stem_stride: int, *, project: bool, **fields: Any
) -> MobileNetSpace:
    """A space whose strides leave at least a pixel of the smallest resolution."""
    total, kept = stem_stride, list[Stage]()
    for stage in stages:
        stride = stage.stride if total * stage.stride <= RESOLUTIONS[0] else 1
        kept.append(replace(stage, stride=stride))
        total *= stride
    made = MobileNetSpace(stages=tuple(kept), stem_stride=stem_stride, **fields)
    try:
        return replace(made, project=project)
    except UsageError:  # a map that the stride does not divide
        return made


RESOLUTIONS = (7, 8, 11, 12)
spaces = st.builds(
    space_of,
    classes=st.integers(2, 5),
    in_channels=st.sampled_from((1, 3)),
    resolutions=ascending(RESOLUTIONS),
    stem_widths=ascending((4, 8, 12)),
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    head_widths=ascending((8, 16)),
    feature_widths=st.sampled_from(((), (12,), (8, 12))),
    stem_stride=st.sampled_from((1, 2)),
    stem_act=st.sampled_from(("relu", "hswish", "silu")),
    head_act=st.sampled_from(("hswish", "silu")),
    divisor=st.sampled_from((4, 8)),
    tied=st.booleans(),
    project=st.booleans(),
    norm_group=st.sampled_from((0, 4)),
)
"""Small spaces: with and without squeeze-and-excitation, expansion, feature layer; kernels to 7."""

some_space: st.SearchStrategy[Space] = st.one_of(st.sampled_from((DIGITS, SMALL)), spaces)


@st.composite
def architectures(draw: st.DrawFn, of: st.SearchStrategy[Space] = some_space) -> tuple[Space, Arch]:
    """A space and one of its architectures; the largest and the smallest are likely."""
    space = draw(of)
    return space, draw(archs_of(space))


def archs_of(space: Space) -> st.SearchStrategy[Arch]:
    """Architectures of one space."""
    drawn = st.integers(0, 2**32 - 1).map(lambda seed: space.sample(random.Random(seed)))
    return st.one_of(drawn, drawn, drawn, st.sampled_from((space.smallest(), space.largest())))


@st.composite
def nested(draw: st.DrawFn, of: st.SearchStrategy[Space] = some_space) -> tuple[Space, Arch, Arch]:
    """A space, an architecture, and one inside it."""
    space, outer = draw(architectures(of))
    inner = space.sample_within(outer, random.Random(draw(st.integers(0, 2**32 - 1))))
    return space, outer, inner
