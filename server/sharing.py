"""Which shared tensors leave the devices, and which are trained: the `share` of a configuration.

Presets after FedPer (Arivazhagan et al. 2019: `local-head`), FedBN (Li et al. 2021: `local-bn`), FedBABU
(Oh et al. 2022: `body-only`, the head stays as it was drawn) and FedSA-LoRA (Guo et al. 2025:
`fedsa-lora`, ΔW = BA with A merged and B, like the head, at home; all else is the frozen base).
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..supernet.axes import Regions, layout, regions, without
from ..supernet.errors import UsageError
from ..supernet.space import Arch, Space
from ..supernet.subnet import batch_norms
from ..supernet.weights import Flat, shapes_of, split
from .samplers.assigned import Assigned

Policy = Literal["aggregate", "keep_local", "freeze"]
Preset = Literal["local-head", "local-bn", "body-only", "fedsa-lora"]
PRESET, RULES = "preset", "rules"
LORA_A, LORA_B = "*lora_[aA]*", "*lora_[bB]*"
NEAR, SHOWN = 3, 3


class ShareRule(BaseModel):
    """What becomes of the tensors whose names match the glob `tensors`.

    `aggregate`: trained and sent back. `keep_local`: trained, and the device keeps them. `freeze`:
    neither. With `aggregate_after` this is so up to that round, and then they are aggregated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensors: str
    policy: Policy
    aggregate_after: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _until_then_something_else(self) -> Self:
        if self.aggregate_after is not None and self.policy == "aggregate":
            raise ValueError(
                "aggregate_after says when another policy ends; allowed with keep_local, freeze"
            )
        return self

    def in_round(self, number: int) -> Policy:
        """The policy of a round."""
        ended = self.aggregate_after is not None and number > self.aggregate_after
        return "aggregate" if ended else self.policy


class ShareConfig(BaseModel):
    """Rules, of which the first that matches a tensor counts, and then those of a preset.

    Tensors that none matches are aggregated. Written as the preset's name alone, or as a table of
    glob = policy or glob = { policy, aggregate_after }, with `preset` beside them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Preset | None = None
    rules: tuple[ShareRule, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _by_name_or_table(cls, value: object) -> object:
        if isinstance(value, str):
            value = {PRESET: value}
        if not isinstance(value, Mapping):
            return value
        if (name := value.get(PRESET)) is not None and name not in list(PRESETS):
            raise ValueError(f"preset {name!r} is unknown; known: {', '.join(PRESETS)}")
        if isinstance(value.get(RULES), list | tuple):
            return value
        rules = [_rule(glob, given) for glob, given in value.items() if glob != PRESET]
        return {PRESET: name, RULES: rules}

    def plan(self, space: Space) -> "SharePlan":
        """The policy of each shared tensor of a space; UsageError where that makes no sense."""
        names, found = list(layout(space)), dict[str, ShareRule]()
        of_preset = PRESETS[self.preset](space) if self.preset else ()
        for rule in (*self.rules, *of_preset):
            matched = [name for name in names if fnmatchcase(name, rule.tensors)]
            if not matched:
                raise UsageError(_unknown(rule.tensors, names))
            fresh = [name for name in matched if name not in found]
            if not fresh and rule in self.rules:
                raise UsageError(
                    f"share: {rule.tensors!r} has no effect: rules before it match all of its "
                    "tensors, and the first that matches counts. Put it before them"
                )
            found.update(dict.fromkeys(fresh, rule))
        plan = SharePlan(found)
        plan.in_round(1).check(space)
        return plan


@dataclass(frozen=True, slots=True)
class Kept:
    """What no device sends in a round: tensors that it keeps, and tensors that nobody trains."""

    local: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Both."""
        return self.local | self.frozen

    def leaving(self, space: Space, assigned: Assigned) -> Regions:
        """Where the values lie in the shared weights that a device sends back."""
        if not self.names:
            return assigned.regions(space)
        return _leaving(space, assigned.arch, assigned.offset, self.names)

    def part(self, space: Space, assigned: Assigned, values: Flat) -> Flat:
        """Of a subnet's values, in the order of its regions, those that a device sends back."""
        if not self.names:
            return values
        tensors = split(values, shapes_of(assigned.regions(space)))
        parts = [t.numpy().reshape(-1) for name, t in tensors.items() if name not in self.names]
        return np.concatenate(parts)

    def among(self, where: Regions) -> dict[str, tuple[str, ...]]:
        """Those of one subnet, as a device is told them."""
        return {
            "local": tuple(name for name in where if name in self.local),
            "frozen": tuple(name for name in where if name in self.frozen),
        }

    def check(self, space: Space) -> None:
        """UsageError where some subnet would have nothing to send."""
        for arch in (space.smallest(), space.largest()):
            if not without(regions(space, arch), self.names):
                raise UsageError(
                    f"share: nothing is left to aggregate of {space.describe(arch)}; let some of "
                    "its tensors be aggregated from the first round on"
                )

    def refuse_export(self) -> None:
        """UsageError where a model of the shared weights would have untrained tensors in it."""
        if self.local:
            raise UsageError(
                f"share keeps {shown(sorted(self.local))} on the devices: the server has but their "
                "initial values, so no class's model is exported. `fedofa evaluate` measures the "
                "devices' own models; to export one, aggregate these tensors"
            )


@lru_cache(maxsize=4096)
def _leaving(space: Space, arch: Arch, offset: int, names: frozenset[str]) -> Regions:
    # One object for equal regions: updates of one subnet are added up faster where they share it.
    return without(Assigned(arch, offset).regions(space), names)


class SharePlan:
    """The rule of each tensor that has one."""

    def __init__(self, rules: Mapping[str, ShareRule]) -> None:
        self._rules = dict(rules)

    def in_round(self, number: int) -> Kept:
        """What is kept in a round."""
        policies = {name: rule.in_round(number) for name, rule in self._rules.items()}
        return Kept(
            frozenset(name for name, policy in policies.items() if policy == "keep_local"),
            frozenset(name for name, policy in policies.items() if policy == "freeze"),
        )


def shown(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _rule(glob: object, given: object) -> ShareRule:
    fields = {"policy": given} if isinstance(given, str) else given
    if not isinstance(fields, Mapping):
        raise ValueError(f"{glob!r} = {given!r}; a policy, or {{ policy, aggregate_after }}")
    try:
        return ShareRule(tensors=str(glob), **fields)
    except ValidationError as error:
        # A key that is none explains a missing one.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"]))
        # An unquoted name with dots is a table of tables in TOML.
        hint = "; quote a name that has dots in it" if first["type"] == "extra_forbidden" else ""
        raise ValueError(f"{glob!r}: {where}: {first['msg']}{hint}") from None
    except TypeError as error:
        raise ValueError(f"{glob!r}: {error}") from None


def _unknown(glob: str, names: list[str]) -> str:
    prefixes = [name[:at] for name in names for at, c in enumerate(name) if c == "."]
    globs = [f"{prefix}.*" for prefix in dict.fromkeys(prefixes)]
    near = difflib.get_close_matches(glob, [*globs, *names], NEAR)
    top = dict.fromkeys(name.partition(".")[0] + ".*" for name in names)
    hint = f"near: {', '.join(near)}" if near else f"there are {shown(top)}"
    return f"share: {glob!r} matches no shared tensor; {hint} (* stands for anything)"


def _head(space: Space) -> str:
    return f"{space.layers(space.largest())[-1].name}.*"


def _local_head(space: Space) -> list[ShareRule]:
    return [ShareRule(tensors=_head(space), policy="keep_local")]


def _body_only(space: Space) -> list[ShareRule]:
    return [ShareRule(tensors=_head(space), policy="freeze")]


def _local_bn(space: Space) -> list[ShareRule]:
    with torch.device("meta"):
        layers = batch_norms(space.build(space.largest()))
    found = [f"{name}.*" for name in layers if any(n.startswith(f"{name}.") for n in layout(space))]
    if not found:
        raise UsageError(
            f"share: local-bn keeps batch normalization local; family {space.family} has none here. "
            "Name its layers by a glob instead"
        )
    return [ShareRule(tensors=glob, policy="keep_local") for glob in found]


def _fedsa_lora(space: Space) -> list[ShareRule]:
    names = list(layout(space))
    for glob in (LORA_A, LORA_B):
        if not any(fnmatchcase(name, glob) for name in names):
            raise UsageError(
                f"share: fedsa-lora needs low-rank factors, tensors named {LORA_A} and {LORA_B}; "
                f"family {space.family} has no {glob} here. Name what you mean by globs instead"
            )
    return [
        ShareRule(tensors=LORA_A, policy="aggregate"),
        ShareRule(tensors=LORA_B, policy="keep_local"),
        ShareRule(tensors=_head(space), policy="keep_local"),
        ShareRule(tensors="*", policy="freeze"),
    ]


PRESETS: Mapping[str, Callable[[Space], list[ShareRule]]] = MappingProxyType(
    {
        "local-head": _local_head,
        "local-bn": _local_bn,
        "body-only": _body_only,
        "fedsa-lora": _fedsa_lora,
    }
)
