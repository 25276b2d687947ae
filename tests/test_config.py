"""The configuration: what is wrong is named in one or two lines, and what is right is kept."""

import tomllib
from pathlib import Path

import pytest
from fedofa.client.declared import read_profile
from fedofa.server.config import RunConfig, parse_config, read_config
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS

SMALL_CONFIG: dict[str, object] = {"classes": {"phone": {}}}
WRITTEN = """
name = "night"
seed = 7
[space]
preset = "digits"
head_widths = [32, 64]
[round]
rounds = 3
[recipe]
steps = 5
[server]
optimizer = "adam"
[classes.phone]
macs = 900000
[classes.board]
params = 20000
train_memory_bytes = 4000000
"""


def message(fields: dict[str, object]) -> str:
    with pytest.raises(UsageError) as error:
        parse_config(fields)
    text = str(error.value)
    assert text.count("\n") <= 1
    assert error.value.exit_code == 2
    return text


def test_a_file_says_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "fedofa.toml"
    path.write_text(WRITTEN)
    config = read_config(path)
    assert (config.name, config.seed, config.round.rounds) == ("night", 7, 3)
    assert config.recipe.steps == 5
    assert config.server.optimizer == "adam"
    assert config.classes["phone"].budget() == Budget(macs=900000)
    assert config.classes["board"].budget() == Budget(params=20000, train_memory_bytes=4_000_000)
    space = config.build_space()
    assert space.largest().count("head.width") == 64
    assert dict(space.smallest()) == {**PRESETS["digits"].smallest(), "head.width": 32}


def test_a_configuration_comes_back_from_its_dump() -> None:
    config = parse_config(tomllib.loads(WRITTEN))
    assert parse_config(config.model_dump(mode="json")) == config
    assert RunConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"roud": {}}, ["'roud'", "top level", "did you mean 'round'"]),
        ({"round": {"round": 3}}, ["'round'", "[round]", "'rounds'", "deadline_s"]),
        ({"recipe": {"epoch": 3}}, ["'epoch'", "[recipe]", "did you mean 'epochs'"]),
        ({"server": {"beta": 1}}, ["'beta'", "[server]", "beta1"]),
        ({"classes": {"phone": {"mac": 3}}}, ["'mac'", "[classes.phone]", "did you mean 'macs'"]),
        ({"search": {"zzz": 3}}, ["'zzz'", "[search]", "samples"]),
        ({"simulation": {"client": {}}}, ["'client'", "[simulation]", "'clients'"]),
        (
            {"space": {"preset": "digits", "head_width": 3}},
            ["'head_width'", "[space]", "head_widths"],
        ),
        ({"export": {"format": []}}, ["'format'", "[export]", "'formats'"]),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(
    change: dict[str, object], words: list[str]
) -> None:
    text = message({**SMALL_CONFIG, **change})
    assert all(word in text for word in ["unknown key", "Allowed: ", *words]), text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": "x"}, ["seed = 'x'"]),
        ({"seed": None}, ["seed"]),
        ({"name": "a/b"}, ["name = 'a/b'"]),
        ({"name": ""}, ["name = ''"]),
        ({"round": 3}, ["round = 3"]),
        ({"round": {"rounds": 0}}, ["round.rounds = 0", "greater than or equal to 1"]),
        ({"round": {"rounds": "many"}}, ["round.rounds = 'many'"]),
        ({"round": {"rounds": 1.5}}, ["round.rounds = 1.5"]),
        ({"round": {"deadline_s": float("inf")}}, ["round.deadline_s = inf"]),
        ({"round": {"max_examples_ratio": 1}}, ["round.max_examples_ratio = 1"]),
        ({"recipe": {"lr": 0}}, ["recipe.lr = 0"]),
        ({"recipe": {"lr": float("nan")}}, ["recipe.lr = nan"]),
        ({"recipe": {"optimizer": "lion"}}, ["recipe.optimizer = 'lion'", "sgd", "adam"]),
        ({"recipe": {"batch_size": 1}}, ["recipe.batch_size = 1"]),
        ({"server": {"optimizer": "adagrad"}}, ["server.optimizer = 'adagrad'", "momentum"]),
        ({"server": {"momentum": 1.0}}, ["server.momentum = 1.0"]),
        ({"classes": {}}, ["classes", "at least one device class", "[classes.phone]"]),
        ({"classes": {"phone": 3}}, ["classes.phone = 3"]),
        ({"classes": {"phone": {"macs": -3}}}, ["classes.phone.macs = -3", "greater than 0"]),
        ({"classes": {"../up": {}}}, ["classes", "../up"]),
        ({"export": {"formats": ["coreml"]}}, ["export.formats", "coreml", "tflite"]),
        ({"export": {"formats": []}}, ["export.formats", "at least 1"]),
        ({"export": {"formats": ["onnx", "onnx"]}}, ["export.formats", "one stands twice"]),
        ({"simulation": {"clients": {"phone": "two"}}}, ["simulation.clients.phone = 'two'"]),
        ({"space": {"preset": "digitz"}}, ["'digitz'", "did you mean 'digits'"]),
        ({"space": {"preset": 3}}, ["preset 3", "digits"]),
        ({"space": {}}, ["family", "mobilenet"]),
        ({"space": {"family": "resnext"}}, ["resnext", "mobilenet"]),
        ({"space": 3}, ["space = 3"]),
        ({"space": {"preset": "digits", "head_widths": "wide"}}, ["head_widths", "wide"]),
        ({"space": {"preset": "digits", "stages": [{"widths": [8]}]}}, ["depths"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    change: dict[str, object], words: list[str]
) -> None:
    text = message({**SMALL_CONFIG, **change})
    assert all(word in text for word in words), text


def test_a_configuration_without_classes_is_refused() -> None:
    assert "classes" in message({})


@pytest.mark.parametrize("name", Budget.__match_args__[:4])
def test_a_budget_that_no_subnet_fits_is_refused_naming_class_bound_and_need(name: str) -> None:
    space, batch = PRESETS["digits"], 32
    spent = cost(space, space.smallest())
    least = {**spent.to_dict(), "train_memory_bytes": spent.train_memory_bytes(batch)}[name]
    recipe = {"batch_size": batch}
    text = message({"recipe": recipe, "classes": {"ok": {}, "tiny": {name: least - 1}}})
    assert all(word in text for word in ("classes.tiny", f"{name} {least} > {least - 1}")), text
    parse_config({"recipe": recipe, "classes": {"tiny": {name: least}}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rounds = [", ["config", "at end of document"]),
        (b"a = 1\na = 2\n", ["config", "line 2"]),
        (b"\xff\xfe", ["config"]),
        (b"", ["config", "classes"]),
        (b"[classes.phone]\nmacs = true\n[classes.phone]\n", ["config", "line 3"]),
        (b"[clases.phone]\n", ["did you mean 'classes'"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_config(path)
    text = str(error.value)
    assert str(path) in text
    assert text.count("\n") <= 1
    assert all(word in text for word in words), text


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml does not exist"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("cores = 0", ["cores"]),
        ("core = 1", ["core", "allowed: ", "cores"]),
        ("train_macs_per_s = inf", ["train_macs_per_s"]),
        ("[budget]\nmac = 3", ["'mac'", "macs"]),
        ("[budget]\nmacs = 0", ["macs = 0"]),
        ("[budget]\nmacs = 'x'", ["budget.macs"]),
        ("cores = ", ["at end of document"]),
    ],
)
def test_a_wrong_profile_file_names_file_and_field(
    tmp_path: Path, content: str, words: list[str]
) -> None:
    path = tmp_path / "phone.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_profile(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value
    assert str(error.value).count("\n") <= 1


def test_a_profile_file_that_is_no_file_or_no_text_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "binary"):
        (tmp_path / "binary").write_bytes(b"\xff")
        with pytest.raises(UsageError, match=str(path)):
            read_profile(path)


def test_a_profile_file_says_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "phone.toml"
    path.write_text('device_class = "phone"\ncores = 2\n[budget]\nmacs = 5\n')
    declared = read_profile(path)
    assert (declared.device_class, declared.cores, declared.budget) == ("phone", 2, {"macs": 5})
