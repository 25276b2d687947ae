"""Named recipes: one line of configuration, each trains, and none where the space cannot serve it."""

from pathlib import Path
from typing import Any

import pytest
from fedofa.server.config import parse_config
from fedofa.server.recipes import RECIPES
from fedofa.supernet.errors import UsageError
from fleets import run_of, small_config

CLASSES: dict[str, Any] = {"phone": {}}
NO_WIDTHS = {
    "preset": "digits",
    "stem_widths": [8],
    "stages": [{"widths": [16], "depths": [1, 2], "expands": [2, 3], "kernels": [3]}],
    "head_widths": [32],
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_one_line_and_comes_back_from_its_dump(name: str) -> None:
    config = parse_config({"recipe": name, "classes": CLASSES})
    assert config == parse_config({"recipe": {"name": name}, "classes": CLASSES})
    assert config.recipe.name == name
    for section, fields in RECIPES[name].items():
        for field, value in fields.items():
            assert getattr(getattr(config, section), field) == value
    assert parse_config(config.model_dump(mode="json")) == config


def test_what_a_configuration_gives_itself_counts_more_than_the_recipe() -> None:
    config = parse_config(
        {"recipe": {"name": "bignas", "random_subnets": 5, "lr": 0.7}, "classes": CLASSES}
    )
    assert (config.recipe.random_subnets, config.recipe.lr) == (5, 0.7)
    assert config.sampler.kind == "sandwich"
    ramped = {"recipe": "bignas", "sampler": {"kind": "ramp"}, "classes": CLASSES}
    assert parse_config(ramped).sampler.kind == "ramp"


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_trains_a_fleet(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, small_config(recipe={"name": name, "random_subnets": 1})).start()
    rounds = run.events("round")
    assert [event["accepted"] for event in rounds] == [3, 3]
    assert all(event["train_macs"] > 0 for event in rounds)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"recipe": "hetrofl"}, "recipe 'hetrofl' is unknown; known: fedofa, .*'heterofl'"),
        ({"recipe": {"name": 7}}, "recipe 7 is unknown"),
        ({"recipe": "heterofl", "space": NO_WIDTHS}, "'tiers' scales widths, .* no elastic width"),
        ({"recipe": "fjord", "space": NO_WIDTHS}, "'nested' scales widths"),
        (
            {"recipe": "fedrolex", "space": {"preset": "digits", "norm_group": 8}},
            "cannot roll its channels",
        ),
        ({"sampler": {"kind": "single", "arch": {"depth": 3}}}, "architecture: .* missing"),
        (
            {"sampler": {"kind": "delayed"}},
            "'delayed' has devices train students, .* 'none'; allowed: smallest, random, sandwich",
        ),
        (
            {"sampler": {"kind": "nested"}, "recipe": {"students": "smallest"}},
            "'nested' has devices train students, .* 'smallest'; allowed: random, sandwich, listed",
        ),
        (
            {"recipe": {"name": "fjord"}, "sampler": {"kind": "delayed"}},
            "begins with the assigned subnet alone, .* set it to true",
        ),
        (
            {"sampler": {"kind": "single", "coverage_floor": 3}},
            "coverage_floor = 3: .* one network on purpose",
        ),
        ({"sampler": {"kind": "tiers", "arch": {}}}, "'single' or 'expanded' only, not 'tiers'"),
        ({"sampler": {"kinds": "tiers"}}, r"unknown key 'kinds' in \[sampler\]"),
        ({"sampler": {"coverage_floor": 0}}, "sampler.coverage_floor = 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_config({"classes": CLASSES, **fields})
