"""A device pulls by its own name what the newest settled plan gives it, over a real depot."""

import json
import random
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from artifacts import draft, sha256, write
from delivery import KIND, NEW, OLD, fails, get, in_use
from fedofa.client.pull import PullResult
from fedofa.client.store import DeviceStore
from fedofa.client.stores import open_stores
from fedofa.protos import depot_pb2, depot_pb2_grpc
from fedofa.protos.depot import DETAIL_CHARACTERS
from fedofa.protos.manifest import FileKind
from fedofa.server import cli
from fedofa.server.depot import serve_depot
from fedofa.server.registry import Registry
from fedofa.server.registry_plans import Settled, resolve, settle
from fedofa.supernet.errors import ArtifactError, DepotError, FedofaError, UsageError
from typer.testing import CliRunner

SMALL: dict[FileKind, bytes] = {KIND: b"small" * 100}


class Site:
    """A registry with its depot, in which plans are settled, and devices that pull from it."""

    def __init__(self, folder: Path, registry: Registry, port: int) -> None:
        self.folder, self.registry, self.port = folder, registry, port

    def publish(self, name: str, contents: dict[FileKind, bytes] = OLD) -> tuple[str, int]:
        made = draft(contents, f"run.{name}", name)
        manifest = self.registry.publish(made, write(self.folder / "source", contents))
        return manifest.model, manifest.version

    def settle(
        self,
        fleet: str = "sensors",
        run: str = "run",
        channel: str = "stable",
        not_served: dict[str, str] | None = None,
        **served: tuple[str, int],
    ) -> dict[str, int]:
        plan = Settled(run, fleet, served, not_served or {})
        return settle(self.registry, plan, channel)

    def store(self, device: str) -> DeviceStore:
        return DeviceStore(self.folder / "device", device=device)

    def pull(self, device: str, **more: Any) -> PullResult:
        return get(self.port, self.store(device), **more)

    def class_of(self, device: str, channel: str = "stable") -> str:
        return resolve(self.registry, device, channel).device_class


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Registry(tmp_path / "registry") as registry:
        depot = serve_depot(registry, "127.0.0.1:0")
        yield Site(tmp_path, registry, depot.port)
        depot.stop(0)


def test_a_device_follows_its_plans_from_class_to_class_and_back(site: Site) -> None:
    large, small = site.publish("large", NEW), site.publish("small", SMALL)
    site.settle(pi=large, door=small)
    found = site.pull("pi")
    assert (found.activated, found.model.manifest.device_class) == (True, "large")
    assert not site.pull("pi").activated
    assert site.pull("door").model.manifest.device_class == "small"
    assert site.settle(pi=small, door=small) == {}
    assert site.pull("pi").activated
    store = site.store("pi")
    assert in_use(store) == SMALL[KIND]
    # Both are the first version of their class.
    assert store.rollback().manifest.device_class == "large"
    assert in_use(store) == NEW[KIND]
    assert in_use(site.store("door")) == SMALL[KIND]
    previous = store.previous()
    assert previous is not None
    assert previous.manifest.device_class == "small"


def test_a_model_of_the_next_plan_that_fails_its_test_leaves_the_one_before(site: Site) -> None:
    site.settle(pi=site.publish("large", NEW))
    site.pull("pi")
    site.settle(pi=site.publish("small", SMALL))
    with pytest.raises(ArtifactError, match=r"was not activated .*1-[0-9a-f]{8} stays in use"):
        site.pull("pi", golden=fails)
    assert in_use(site.store("pi")) == NEW[KIND]


def test_a_device_gets_the_very_version_that_its_plan_was_settled_on(site: Site) -> None:
    """A version that is published for its class later was not compared with its bounds."""
    first = site.publish("large", OLD)
    site.settle(pi=first)
    site.publish("large", NEW)
    assert site.pull("pi").model.manifest.version == 1
    site.settle(pi=(first[0], 2))
    assert site.pull("pi").model.manifest.version == 2


def test_a_device_that_no_plan_names_is_told_what_to_do(site: Site) -> None:
    site.settle(pi=site.publish("large"))
    with pytest.raises(DepotError, match=r"names device 'pie' in channel 'stable'; .*--fleet") as e:
        site.pull("pie")
    assert e.value.code == "unknown_device"
    with pytest.raises(DepotError, match=r"it is named in channel stable: pull with --channel"):
        site.pull("pi", channel="beta")
    assert not (site.store("pie").folder / "state.json").exists()


def test_a_device_that_is_not_served_is_told_the_plans_reason(site: Site) -> None:
    site.settle(pi=site.publish("large"))
    site.pull("pi")
    site.settle(not_served={"pi": "budget.macs: no subnet fits"})
    with pytest.raises(
        DepotError, match=r"fleet sensors \(run run\): budget.macs: no subnet fits"
    ) as caught:
        site.pull("pi")
    assert caught.value.code == "not_served"
    assert in_use(site.store("pi")) == OLD[KIND]
    site.settle(not_served={"pi": "x" * 100_000})
    with pytest.raises(DepotError, match=r"not_served.*x") as caught:
        site.pull("pi")
    assert len(str(caught.value)) < DETAIL_CHARACTERS + 100


def test_of_several_plans_the_one_settled_last_counts_until_it_names_the_device_no_more(
    site: Site,
) -> None:
    one, two, three = (site.publish(name) for name in ("one", "two", "three"))
    assert site.settle("a", pi=one, door=one) == {}
    assert site.settle("b", pi=two) == {"run/a": 1}
    assert site.settle("b", run="other", pi=three, door=three) == {"run/b": 1, "run/a": 1}
    assert site.class_of("pi") == "three"
    assert site.settle("a", pi=one, door=one) == {"other/b": 2}
    assert site.class_of("pi") == "one"
    site.settle("a", door=one)
    assert (site.class_of("pi"), site.class_of("door")) == ("three", "one")
    site.settle("b", run="other")
    assert site.class_of("pi") == "two"
    site.settle("b", channel="beta", pi=three)
    assert (site.class_of("pi"), site.class_of("pi", "beta")) == ("two", "three")


def test_what_the_registry_says_is_what_a_list_of_plans_says(site: Site) -> None:
    rng = random.Random(5)
    made = [site.publish(f"c{place}", SMALL) for place in range(4)]
    plans: dict[str, dict[str, tuple[str, int] | None]] = {}
    for _ in range(40):
        fleet = f"f{rng.randrange(3)}"
        named = {f"d{k}": rng.choice([*made, None]) for k in range(6) if rng.random() < 0.5}
        site.settle(
            fleet,
            not_served={device: "why" for device, got in named.items() if got is None},
            **{device: got for device, got in named.items() if got is not None},
        )
        plans.pop(fleet, None)
        plans[fleet] = named
        for device in (f"d{k}" for k in range(6)):
            naming = [plan[device] for plan in plans.values() if device in plan]
            try:
                got: Any = resolve(site.registry, device).device_class
            except DepotError as error:
                got = error.code
            expected = "unknown_device" if not naming else "not_served"
            assert got == (
                naming[-1][0].removeprefix("run.") if naming and naming[-1] else expected
            )


def test_an_operator_sees_what_a_device_gets_and_why_it_gets_nothing(site: Site) -> None:
    state = site.folder  # its registry lies where a server's would
    site.settle(pi=site.publish("large"), not_served={"tiny": "budget.macs: no subnet fits"})
    arguments = ["models", "--state", str(state), "--device"]
    shown = CliRunner().invoke(cli.app, [*arguments, "pi", "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.output)
    assert (told["device"], told["device_class"], told["version"]) == ("pi", "large", 1)
    assert told["manifest_sha256"] == resolve(site.registry, "pi").sha256
    refused = CliRunner().invoke(cli.app, [*arguments, "tiny"])
    assert isinstance(refused.exception, DepotError)
    assert "budget.macs: no subnet fits" in str(refused.exception)


def test_a_plan_that_cannot_be_entered_whole_changes_nothing(site: Site) -> None:
    large = site.publish("large")
    site.settle(pi=large)
    for bad in ({"pi": ("run.large", 7)}, {"pi": large, "a b": large}, {"../pi": large}):
        with pytest.raises(FedofaError):
            site.settle(**bad)
        assert site.class_of("pi") == "large"
        assert site.pull("pi").model.manifest.version == 1


def test_a_class_and_a_device_of_one_name_are_kept_apart(site: Site) -> None:
    large = site.publish("large", NEW)
    site.publish("pi", OLD)
    site.settle(**{"pi": large, "a:b": large})
    by_class = DeviceStore(site.folder / "device", "pi")
    get(site.port, by_class, device="pi")
    site.pull("pi")
    site.pull("a:b")
    assert (in_use(by_class), in_use(site.store("pi"))) == (OLD[KIND], NEW[KIND])
    found = open_stores(site.folder / "device")
    assert [(one.device_class, one.device) for one in found] == [
        ("pi", ""),
        ("", "a:b"),
        ("", "pi"),
    ]
    (one,) = open_stores(site.folder / "device", device="pi")
    assert one.folder == site.store("pi").folder


@pytest.mark.parametrize("name", ["../a", "a/b", ".", "@a", "a\n", "x" * 129, "é", "a\0"])
def test_names_that_are_no_devices_reach_neither_disk_nor_depot(site: Site, name: str) -> None:
    with pytest.raises(UsageError, match="1 to 128 letters"):
        site.store(name)
    with grpc.insecure_channel(f"127.0.0.1:{site.port}") as channel:
        stub: Any = depot_pb2_grpc.DepotStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Resolve(depot_pb2.ResolveRequest(device=name), timeout=20)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


class Odd(depot_pb2_grpc.DepotServicer):
    """A depot that says one class, and sends a manifest; or one of before, which says none."""

    def __init__(self, said: str, sent: str) -> None:
        self.said, self.sent = said, sent

    def Resolve(self, request: Any, context: Any) -> Any:
        if not self.said and not request.device_class:
            context.set_trailing_metadata((("reason", "name"),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "device class '' is not allowed")
        data = draft(OLD, device_class=self.sent).to_json()
        return depot_pb2.ResolveReply(manifest=data, sha256=sha256(data), device_class=self.said)

    def Download(self, request: Any, context: Any) -> Iterator[Any]:
        context.abort(grpc.StatusCode.INTERNAL, "a model that must not be asked for")
        yield depot_pb2.Chunk()


@pytest.mark.parametrize(
    ("said", "sent", "device", "words"),
    [
        (
            "small",
            "large",
            "pi",
            "gave device 'pi' the class 'small', and a model for class 'large'",
        ),
        ("large", "small", "", "gave a model for class 'small' to class 'large'"),
        (
            "small",
            "large",
            "",
            "gave class 'large' the class 'small', and a model for class 'large'",
        ),
        ("", "large", "pi", "no_devices: .* give --device-class NAME, or update the server"),
    ],
)
def test_an_answer_about_another_class_is_refused(
    said: str, sent: str, device: str, words: str, tmp_path: Path
) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add = depot_pb2_grpc.add_DepotServicer_to_server
    add(Odd(said, sent), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    store = DeviceStore(tmp_path, "" if device else "large", device=device)
    with pytest.raises(FedofaError, match=words):
        get(port, store)
    assert store.current() is None
    server.stop(0).wait()


def test_a_depot_of_before_still_serves_classes(tmp_path: Path) -> None:
    from fedofa.client.link import Address, Link

    server = grpc.server(futures.ThreadPoolExecutor(2))
    add = depot_pb2_grpc.add_DepotServicer_to_server
    add(Odd("", "large"), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Link(Address(f"127.0.0.1:{port}")) as link:
        assert link.resolve("large", "stable", "pi")[1].device_class == "large"
    server.stop(0).wait()
