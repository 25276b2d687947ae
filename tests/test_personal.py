"""A device's own model: better for its owner, the published one untouched and a rollback away."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fedofa.client.personal.adapter import ADAPTER_NAME, Adapter, Change
from fedofa.client.personal.network import Network
from fedofa.client.personal.training import Schedule, trained
from fedofa.protos.data import Examples
from fedofa.protos.file_layers import read, written
from fedofa.protos.inference import open_model
from fedofa.protos.manifest import FileKind
from fedofa.protos.trainable import TRAINABLE_NAME, Trainable
from fedofa.supernet.errors import ArtifactError, RunError, UsageError
from personal_site import KINDS, QUICK, Home, Made, make, open_home, sha256, swapped
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
    adapter = Adapter.from_bytes((own.folder / ADAPTER_NAME).read_bytes(), layers)
    wanted = net.outputs(x, {n: c.applied(layers[n]) for n, c in adapter.changes.items()})
    got = open_model(own.model_path, own.manifest.file(kind)).run(x)
    if kind.endswith("fp32"):
        np.testing.assert_allclose(got, wanted, atol=1e-3)
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.95
    assert sha256(own.folder / ADAPTER_NAME) == personal.adapter_sha256
    home.store.rollback()
    assert home.bytes_in_use() == published
    assert home.store.require_current().manifest.personal is None


def test_its_own_model_stays_until_another_is_published(home: Home) -> None:
    home.pull("onnx_fp32")
    home.personalize()
    own = home.bytes_in_use()
    again = home.pull()
    assert (again.activated, again.left_own) == (False, False)
    assert home.bytes_in_use() == own
    home.publish(metrics={"new": 1.0})
    newer = home.pull("onnx_fp32")
    assert (newer.activated, newer.left_own, newer.model.manifest.version) == (True, True, 2)
    adapter = home.store.folder / "versions" / home.store.state().previous.version / ADAPTER_NAME  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"belongs to the manifest .* personalize again"):
        home.personalize(adapter=adapter)
    assert home.personalize().activated
    home.store.rollback()
    assert home.store.require_current().manifest.version == 2


def test_personalized_twice_it_still_goes_back_to_the_published_one(home: Home) -> None:
    home.pull("tflite_fp32")
    published = home.bytes_in_use()
    home.personalize()
    first = home.bytes_in_use()
    home.personalize(replace(QUICK, seed=1), depot=False)
    assert home.bytes_in_use() not in (first, published)
    home.store.rollback()
    assert home.bytes_in_use() == published


def test_a_kept_adapter_gives_the_same_file_again(home: Home, tmp_path: Path) -> None:
    home.pull("tflite_int8")
    home.personalize()
    own, kept = home.bytes_in_use(), tmp_path / "kept"
    kept.write_bytes((home.store.require_current().folder / ADAPTER_NAME).read_bytes())
    home.store.rollback()
    home.personalize(adapter=kept)
    assert home.bytes_in_use() == own
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"kept: no file that fedofa wrote"):
        home.personalize(adapter=kept)
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
    with pytest.raises(RunError, match=r"diverged in epoch 1; give a smaller --lr"):
        home.personalize(replace(QUICK, lr=1e30))
    assert home.bytes_in_use() == published
    assert home.personalize(data=replace(data, validation=nothing), force=True).accuracy is None
    home.store.rollback()
    home.publish(trainable=None)
    home.pull("onnx_int8")
    with pytest.raises(UsageError, match=r"version 2 .* published without .*specializes again"):
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
