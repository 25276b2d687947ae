"""The configuration of a finishing: the run's own, with one target in place of its method.

What is trained and how is replaced; data, budgets, merging, codecs, rounds' deadlines stay the run's.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from ...supernet.randomness import stream
from ..config import RunConfig, parse_config

LONGEST_NAME = 40
"""So much of the run's name begins the finishing's: devices take 64 characters."""


def finishing_config(
    config: RunConfig, device_class: str, arch: Mapping[str, int | float], begun: int, rounds: int
) -> RunConfig:
    """The configuration that trains a class's `arch` for `rounds` more, after the run's round `begun`.

    Its seed is another than the run's: with that, the first rounds would repeat the run's draws. The
    server's momentum begins anew. `share` is what it had become by then. UsageError where the run's
    configuration does not go with it.
    """
    given, dump = config.finish, config.model_dump(mode="json")
    surgery = given.method == "surgery"
    fields: dict[str, Any] = {
        **dump,
        "seed": seed_of(config, device_class, begun),
        "round": {**dump["round"], "rounds": rounds},
        "recipe": {**dump["recipe"], **_recipe(config, arch)},
        "sampler": {
            "kind": "expanded" if surgery else "single",
            "arch": dict(arch),
            "most": given.expansion,
        },
        "share": {**dump["share"], "rules": _rules(config, begun + 1)},
    }
    found = parse_config(fields)
    return found.model_copy(update={"name": name_of(config, device_class, begun)})


def name_of(config: RunConfig, device_class: str, begun: int) -> str:
    """What devices and the ledger call a finishing: a name of its own, so that what devices keep of
    the run stays apart."""
    key = f"{config.name}/{device_class}/{begun}"
    return f"{config.name[:LONGEST_NAME]}.finish-{sha256(key.encode()).hexdigest()[:12]}"


def seed_of(config: RunConfig, device_class: str, begun: int) -> int:
    """The seed of all draws of a finishing."""
    return stream(config.seed, "finish", device_class, begun).getrandbits(31)


def _recipe(config: RunConfig, arch: Mapping[str, int | float]) -> dict[str, Any]:
    given = config.finish
    found: dict[str, Any] = {
        "lr": config.recipe.lr * given.lr_share,
        "train_assigned": True,
        "students": "none",
        "listed": [],
        "attentive": "off",
        "one_pass": False,
        "combine": "sum",
        "student_weight": 1.0,
    }
    if given.method == "plain":
        return found
    return found | {
        "students": "listed",
        "listed": [dict(arch)],
        "combine": "project",
        "learn": given.learn,
        "label_weight": given.label_weight,
        "temperature": config.recipe.temperature if given.learn == "kl" else 1.0,
    }


def _rules(config: RunConfig, number: int) -> list[dict[str, Any]]:
    return [
        {"tensors": rule.tensors, "policy": rule.in_round(number)} for rule in config.share.rules
    ]
