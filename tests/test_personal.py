"""A device's own model: better for its owner, the published one untouched and a rollback away."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from artifacts import Died, Disk
from fedofa.client.personal.adapter import Adapter, Change
from fedofa.client.personal.network import Network
from fedofa.client.personal.training import Schedule, trained
from fedofa.protos.data import Examples
from fedofa.protos.file_layers import read, written
from fedofa.protos.inference import open_model
from fedofa.protos.manifest import FileKind
from fedofa.protos.trainable import TRAINABLE_NAME, Trainable
from fedofa.specialize.export import complete
from fedofa.supernet.errors import ArtifactError, RunError, UsageError
from personal_site import KINDS, QUICK, Home, Made, make, open_home, sha256, subnet_of, swapped
from personal_site import trained as trained_net


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def home(tmp_path: Path, made: Made) -> Iterator[Home]:
    with open_home(tmp_path, made) as found:
        found.publish()
        yield found


@pytest.fixture(scope="module")
def network(made: Made) -> Network:
    return Network(made.draft, trainable(made), "onnx_fp32")


def trainable(made: Made) -> Trainable:
    return Trainable.from_bytes(made.files["trainable"].read_bytes())


def normalized(client: int) -> Examples:
    data = swapped(client=client)
    return Examples(data.normalized(data.train.x), data.train.y)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_has_a_place_in_every_file(kind: FileKind, made: Made) -> None:
    content, places = made.files[kind].read_bytes(), trainable(made).placed[kind]
    net = Network(made.draft, trainable(made), kind)
    assert tuple(net.layers) == net.all_layers
    layers = {name: net.values(name) for name in net.layers}
    assert written(content, places, layers) == content
    held = read(content, places, {name: layer.kernel.shape for name, layer in layers.items()})
    for name, layer in layers.items():
        steps = places[name].steps
        most = 0.0 if steps is None else float(np.abs(layer.kernel).max()) / steps.levels
        assert np.abs(held[name].kernel - layer.kernel).max() <= 0.51 * most


def test_a_model_is_one_without_what_devices_train_it_on(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in KINDS[:2]:
        shutil.copy(made.files[kind], tmp_path)
    subnet = subnet_of(trained_net())
    without = complete(subnet, tmp_path, made.ranges, trainable=False)
    assert (without.trainable, without.why_not) == (None, "")
    assert not (tmp_path / TRAINABLE_NAME).exists()

    def lost(*_: object) -> Trainable:
        raise ValueError("no such layer")

    monkeypatch.setattr("fedofa.specialize.export.trainable_of", lost)
    failed = complete(subnet, tmp_path, made.ranges)
    assert (failed.trainable, failed.why_not) == (None, "ValueError: no such layer")
    assert failed.entries == without.entries == list(made.draft.files)


def test_int8_files_say_what_logits_they_can_give(made: Made) -> None:
    limits = trainable(made).logits
    assert limits.keys() == {"tflite_int8", "onnx_int8"}
    x = 1e4 * np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
    for kind, (least, most) in limits.items():
        got = open_model(made.files[kind], made.draft.file(kind)).run(x)
        step = (most - least) / 255
        assert least - step / 10 <= got.min() <= least + 20 * step
        assert most - 20 * step <= got.max() <= most + step / 10


def test_the_network_is_that_which_was_trained(network: Network) -> None:
    x = torch.randn(16, *network.input_shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.logits(x, {}), trained_net()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_gets_a_better_model_of_its_own_and_can_go_back(
    kind: FileKind, home: Home
) -> None:
    home.pull(kind)
    published = home.bytes_in_use()
    found = home.personalize()
    assert found.activated
    assert found.base_accuracy is not None
    assert found.accuracy is not None
    assert found.base_accuracy < 0.65 < 0.85 < found.accuracy
    own = home.store.require_current()
    personal = own.manifest.personal
    assert personal is not None
    assert personal.layers == found.layers
    assert len(home.bytes_in_use()) == len(published)
    assert home.bytes_in_use() != published
    # The file does what the network with the kept changes does.
    data = swapped(client=1)
    x = data.normalized(data.validation.x)
    net = Network(home.made.draft, trainable(home.made), kind)
    layers = {n: net.values(n) for n in net.layers}
    adapter = Adapter.from_bytes(found.adapter.read_bytes(), layers)
    wanted = net.outputs(x, {n: c.applied(layers[n]) for n, c in adapter.changes.items()})
    got = open_model(own.model_path, own.manifest.file(kind)).run(x)
    if kind.endswith("fp32"):
        np.testing.assert_allclose(got, wanted, atol=1e-3)
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.95
    assert sha256(found.adapter) == personal.adapter_sha256
    home.store.rollback()
    assert home.bytes_in_use() == published
    assert home.store.require_current().manifest.personal is None


def test_its_own_model_stays_until_another_is_published(home: Home) -> None:
    home.pull("onnx_fp32")
    kept = home.personalize().adapter
    own = home.bytes_in_use()
    again = home.pull()
    assert (again.activated, again.left_own) == (False, False)
    assert home.bytes_in_use() == own
    home.publish(metrics={"new": 1.0})
    newer = home.pull("onnx_fp32")
    assert (newer.activated, newer.left_own, newer.model.manifest.version) == (True, True, 2)
    with pytest.raises(UsageError, match=r"belongs to the manifest .* personalize again"):
        home.personalize(adapter=kept)
    assert home.personalize().activated
    home.store.rollback()
    assert home.store.require_current().manifest.version == 2


def test_personalized_twice_it_still_goes_back_to_the_published_one(home: Home) -> None:
    home.pull("tflite_fp32")
    published = home.bytes_in_use()
    home.personalize(replace(QUICK, epochs=2))
    first = home.bytes_in_use()
    home.personalize(depot=False)
    assert home.bytes_in_use() not in (first, published)
    home.store.rollback()
    assert home.bytes_in_use() == published


def test_a_worse_one_replaces_neither_the_published_model_nor_its_own(home: Home) -> None:
    home.pull("tflite_fp32")
    first = home.personalize()
    own = home.bytes_in_use()
    again = home.personalize(replace(QUICK, method="norm", epochs=1))
    assert not again.activated
    assert again.base_accuracy is not None
    assert again.accuracy is not None
    assert again.before_accuracy == first.accuracy
    assert again.base_accuracy < again.accuracy < first.accuracy  # type: ignore[operator]
    assert again.model.manifest.personal is not None
    assert home.bytes_in_use() == own
    assert again.adapter.exists()


def test_a_kept_adapter_gives_the_same_file_again(home: Home, tmp_path: Path) -> None:
    home.pull("tflite_int8")
    kept = home.personalize().adapter
    own = home.bytes_in_use()
    home.store.rollback()
    home.personalize(adapter=kept)
    assert home.bytes_in_use() == own
    broken = tmp_path / "broken"
    broken.write_bytes(kept.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"broken: no file that fedofa wrote"):
        home.personalize(adapter=broken)
    assert home.bytes_in_use() == own


def test_what_is_worse_is_not_used_unless_forced(home: Home) -> None:
    home.pull("onnx_fp32")
    published = home.bytes_in_use()
    # Trained on another owner's names, validated on those that the model knows.
    other = replace(swapped(client=0), train=swapped(client=1).train)
    found = home.personalize(data=other)
    assert not found.activated
    assert found.base_accuracy is not None
    assert found.accuracy is not None
    assert found.accuracy < found.base_accuracy
    assert home.bytes_in_use() == published
    assert not list(home.store.folder.glob("parts/*"))
    assert home.personalize(data=other, force=True).activated


def test_where_its_base_is_gone_a_pull_brings_it_back(home: Home) -> None:
    home.pull("onnx_fp32")
    home.personalize()
    home.publish(metrics={"new": 1.0})
    home.pull("onnx_fp32")
    home.store.rollback()  # to its own of version 1, whose base was removed
    with pytest.raises(ArtifactError, match=r"is here no longer; pull again"):
        home.personalize()
    home.registry.promote("board", "stable", "digits.board", 1)
    assert home.pull("onnx_fp32").left_own
    assert home.personalize().activated


def test_another_kind_pulled_meanwhile_changes_no_kind(home: Home) -> None:
    home.pull("tflite_fp32")
    home.personalize()
    home.pull("onnx_fp32")
    home.store.rollback()
    assert home.store.published().kind == "tflite_fp32"
    assert home.personalize(replace(QUICK, seed=1), force=True).model.kind == "tflite_fp32"


@pytest.mark.parametrize("damage", ["manifest", "model"])
def test_a_damaged_own_model_is_replaced_by_a_pull(damage: str, home: Home) -> None:
    home.pull("onnx_fp32")
    published = home.bytes_in_use()
    home.personalize()
    own = home.store.require_current()
    path = own.model_path if damage == "model" else own.folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-10])
    assert home.pull("onnx_fp32").activated
    assert home.bytes_in_use() == published


def test_what_was_learned_outlives_a_store_that_is_held(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.pull("onnx_fp32")
    monkeypatch.setattr("fedofa.client.personal.personalize.PATIENCE_S", 0.2)
    held = home.store.lock()

    def held_meanwhile(*arguments: object) -> object:
        found = trained(*arguments)  # type: ignore[arg-type]
        held.__enter__()
        return found

    monkeypatch.setattr("fedofa.client.personal.personalize.trained", held_meanwhile)
    with pytest.raises(ArtifactError, match="another process is changing it"):
        home.personalize()
    held.__exit__(None, None, None)
    (kept,) = home.store.folder.glob("adapters/*")
    assert home.personalize(adapter=kept).activated


def test_a_death_at_any_moment_leaves_a_whole_model_in_use(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.pull("onnx_fp32")
    published, kept = home.bytes_in_use(), adapter_of(home)
    passes = "fedofa.client.personal.personalize.run_golden"
    monkeypatch.setattr(passes, lambda _folder, _kind: None)  # no process of its own
    home.personalize(adapter=kept)  # the file to train on is here from now on
    own, died = home.bytes_in_use(), True
    for fails in itertools.count(1):
        if not died:
            break
        if home.bytes_in_use() == own:
            home.store.rollback()
        with pytest.MonkeyPatch.context() as patch:
            Disk(fails, dies=True).watch(patch)
            try:
                home.personalize(adapter=kept)
                died = False
            except Died:
                pass
        assert home.bytes_in_use() in (published, own)
    assert fails > 20
    assert home.bytes_in_use() == own


def adapter_of(home: Home) -> Path:
    """What personalization learns, without the training of it."""
    base = home.store.require_current()
    net = Network(base.manifest, trainable(home.made), base.kind)
    gain = np.full(10, 0.001, np.float32)
    path = home.store.root / "kept"
    changes = {net.head: Change(gain=gain)}
    path.write_bytes(Adapter(base.manifest_sha256, "norm", changes).to_bytes())
    return path


def test_where_changes_are_too_dear_it_is_the_head_alone(network: Network) -> None:
    data = swapped(client=1)
    x = data.normalized(data.validation.x)

    def right(changes: dict[str, Change]) -> float:
        layers = {name: change.applied(network.values(name)) for name, change in changes.items()}
        return float((network.outputs(x, layers).argmax(1) == data.validation.y).mean())

    dear = replace(QUICK, penalty=1e6, free_epochs=0)
    found = trained(network, normalized(1), dear)
    head = trained(network, normalized(1), replace(dear, method="head"))
    assert found.keys() == head.keys() == {network.head}
    assert right(found) == pytest.approx(right(head), abs=0.02)
    cheap = trained(network, normalized(1), replace(QUICK, penalty=0.0))
    assert {network.head} < cheap.keys()


@pytest.mark.parametrize("method", ["norm", "full", "head"])
def test_each_method_learns_and_leaves_the_published_values(
    method: str, network: Network, made: Made
) -> None:
    before = {n: v.clone() for n, v in network.module.state_dict().items()}
    losses: list[float] = []
    schedule = replace(QUICK, method=method)
    changes = trained(network, normalized(1), schedule, tell=lambda _e, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
    after = network.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    again = trained(network, normalized(1), schedule)
    for name, change in changes.items():
        for part, values in change.parts().items():
            assert (again[name].parts()[part] == values).all()
    assert len(changes) == (1 if method == "head" else len(network.layers))
    assert all(
        (change.gain is None) == (method != "norm" or n == network.head)
        for n, change in changes.items()
    )


def test_what_cannot_be_personalized_says_why(home: Home, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model for device class 'board'"):
        home.personalize()
    home.pull("onnx_int8")
    published = home.bytes_in_use()
    data = swapped(client=1)
    with pytest.raises(
        UsageError, match=r"trainable.safetensors of version 1 is not here .*--server"
    ):
        home.personalize(depot=False)
    binary = Examples(data.train.x, data.train.y % 2)
    other = replace(data, classes=("a", "b"), train=binary, validation=binary)
    with pytest.raises(UsageError, match=r"classes are a, b; the model's are 0, 1"):
        home.personalize(data=other)
    scale = data.normalization.model_copy(update={"mean": (1.0,)})
    with pytest.raises(UsageError, match="normalizes by"):
        home.personalize(data=replace(data, normalization=scale))
    nothing = Examples(data.train.x[:0], data.train.y[:0])
    with pytest.raises(UsageError, match=r"no validation examples.*--force"):
        home.personalize(data=replace(data, validation=nothing))
    for lr, epochs in ((1e30, 8), (3e38, 1)):
        with pytest.raises(RunError, match=r"diverged.*; give a smaller --lr"):
            home.personalize(replace(QUICK, lr=lr, epochs=epochs, batch_size=10_000))
    assert home.bytes_in_use() == published
    assert home.personalize(data=replace(data, validation=nothing), force=True).accuracy is None
    home.store.rollback()
    home.publish(trainable=None)
    home.pull("onnx_int8")
    with pytest.raises(UsageError, match=r"version 2 .* published without .*export.trainable"):
        home.personalize()


def test_another_model_put_in_use_meanwhile_is_not_replaced(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.pull("onnx_fp32")
    home.publish(metrics={"new": 1.0})

    def pulled_meanwhile(*arguments: object) -> object:
        home.pull("onnx_fp32")
        return trained(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("fedofa.client.personal.personalize.trained", pulled_meanwhile)
    with pytest.raises(RunError, match=r"another model than version 1 .* personalize again"):
        home.personalize()
    assert home.store.require_current().manifest.version == 2


def test_the_commands_of_a_device_with_a_model_of_its_own(home: Home, tmp_path: Path) -> None:
    def device(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "fedofa.client.cli", *arguments, "--device-class", "board"]
        inherited = os.environ.get("PYTHONPATH", "")
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [inherited])])
        own = {"FEDOFA_STORE": str(home.store.root), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, **own}
        )

    server = ("--server", home.address.server)
    assert device("pull", *server, "--kind", "tflite_int8").returncode == 0
    data = ("--data", "personal_site:swapped", "--client", "1", "--clients", "2")
    done = device("personalize", *server, *data, "--epochs", "8", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["activated"]
    assert told["base_accuracy"] < 0.65 < 0.85 < told["accuracy"]
    assert "head.classifier" in told["changed_layers"]
    assert done.stderr.count("epoch ") == 8
    shown = device("status").stdout
    assert "personal taps" in shown
    back = json.loads(device("rollback", "--json").stdout)
    assert back["personal"] is None
    refused = device("personalize", *server, *data, "--method", "lora")
    assert refused.returncode == 2
    assert refused.stderr == "error: method 'lora': allowed: taps, norm, head, full\n"
    refused = device("personalize", *server, *data, "--adapter", told["adapter"], "--lr", "1")
    assert refused.returncode == 2
    assert refused.stderr == "error: --adapter trains nothing: leave out --lr\n"
    again = device("personalize", *server, *data, "--adapter", told["adapter"], "--json")
    assert json.loads(again.stdout)["accuracy"] == told["accuracy"]


@pytest.mark.parametrize("damage", ["cut", "metadata", "shape", "name"])
def test_a_damaged_trainable_file_is_refused(damage: str, made: Made) -> None:
    content, found = made.files["trainable"].read_bytes(), trainable(made)
    values = dict(found.values)
    name = sorted(values)[0]
    if damage == "shape":
        values[name] = values[name][:1]
    elif damage == "name":
        values["stranger"] = values.pop(name)
    if damage in ("shape", "name"):
        changed = Trainable(values, found.placed)
        with pytest.raises(ArtifactError, match=TRAINABLE_NAME):
            Network(made.draft, changed, "onnx_fp32")
    else:
        bad = content[:-4] if damage == "cut" else content.replace(b'"fedofa"', b'"fedofx"')
        with pytest.raises(ArtifactError, match=TRAINABLE_NAME):
            Trainable.from_bytes(bad)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "lora"),
        ("epochs", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("penalty", -1.0),
        ("batch_size", 1),
    ],
)
def test_an_impossible_schedule_is_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{field}"):
        Schedule(**{field: value})  # type: ignore[arg-type]
