"""Named recipes: for each paper which subnets are trained, and how, as fields of a configuration.

`recipe = "heterofl"` in a configuration, or `name = "heterofl"` in its [recipe] table, fills in the
fields below; what the configuration itself gives counts more. Learning rate, batch size, epochs and
the rest are the configuration's: recipes differ in method, not in tuning. Each method's formula and
deviations are in the file of its sampler (`samplers/`) and of its loss (`supernet/losses/`).
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..supernet.errors import UsageError

Fields = Mapping[str, Mapping[str, Any]]

PLAIN = {"students": "none"}
SANDWICH = {"students": "sandwich", "random_subnets": 2, "learn": "kl"}

RECIPES: Mapping[str, Fields] = MappingProxyType(
    {
        "fedofa": {
            "sampler": {"kind": "growing"},
            "recipe": {**PLAIN, "logit_adjustment": 1.0},
            "server": {"optimizer": "momentum"},
        },
        "fedavg": {"sampler": {"kind": "single"}, "recipe": PLAIN},
        "heterofl": {"sampler": {"kind": "tiers"}, "recipe": PLAIN},
        "fjord": {
            "sampler": {"kind": "nested"},
            "recipe": {
                "train_assigned": False,
                "students": "random",
                "random_subnets": 1,
                "learn": "labels",
                "redraw": "step",
            },
        },
        "fedrolex": {"sampler": {"kind": "rolling"}, "recipe": PLAIN},
        "superfednas": {"sampler": {"kind": "maxnet"}, "recipe": PLAIN},
        "bignas": {"sampler": {"kind": "sandwich"}, "recipe": SANDWICH},
        "alphanet": {
            "sampler": {"kind": "sandwich"},
            "recipe": {**SANDWICH, "learn": "alpha", "clip_value": 1.0},
        },
        "attentivenas": {
            "sampler": {"kind": "sandwich"},
            "recipe": {**SANDWICH, "attentive": "best", "attentive_candidates": 3},
        },
        "deps": {"sampler": {"kind": "delayed"}, "recipe": SANDWICH},
        "spos": {"sampler": {"kind": "uniform"}, "recipe": PLAIN},
        "shiftnas": {"sampler": {"kind": "budget_bins"}, "recipe": PLAIN},
        "pada": {"sampler": {"kind": "importance"}, "recipe": PLAIN},
        "prenas": {
            "sampler": {"kind": "preselect", "candidates": 64},
            "recipe": {"students": "random", "random_subnets": 1, "learn": "kl"},
        },
        "ramp": {"sampler": {"kind": "ramp"}, "recipe": PLAIN},
    }
)


def with_recipe(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's fields with those of the recipe that it names filled in.

    UsageError lists the known names.
    """
    given = fields.get("recipe", {})
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        return dict(fields)  # its own error is said by the model
    name = given.get("name", "fedofa")
    if name not in list(RECIPES):
        near = difflib.get_close_matches(str(name), list(RECIPES), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"recipe {name!r} is unknown; known: {', '.join(RECIPES)}{hint}")
    found = {**fields, "recipe": given}
    for section, values in RECIPES[name].items():
        own = found.get(section, {})
        if isinstance(own, Mapping):
            found[section] = {**values, **own}
    return found
