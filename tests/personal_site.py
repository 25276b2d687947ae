"""A published model that was trained on digits, and devices whose owners call them otherwise."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedofa.client.datasets import digits
from fedofa.client.link import Address
from fedofa.client.personal.personalize import Personalized, Source, personalize
from fedofa.client.personal.training import Schedule
from fedofa.client.pull import PullRequest, PullResult, pull
from fedofa.client.store import DeviceStore
from fedofa.protos.data import ClientData, Examples
from fedofa.protos.inference import Ranges
from fedofa.protos.manifest import FLOATS, FileEntry, FileKind, Golden, Manifest
from fedofa.protos.observing import observe_ranges
from fedofa.server.depot import serve_depot
from fedofa.server.registry import Registry
from fedofa.specialize.export import Completed, Subnet, complete, export_floats, module_of
from fedofa.supernet.cost import cost
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.space import plain
from fedofa.supernet.subnet import batch_norms
from torch import nn

SPACE = preset("digits")
ARCH = SPACE.smallest()
KINDS: tuple[FileKind, ...] = ("tflite_fp32", "onnx_fp32", "tflite_int8", "onnx_int8")
QUICK = Schedule(epochs=8)


def swapped(root: str | None = None, *, client: int, clients: int = 1) -> ClientData:
    """All digits of the clients; every second device's owner calls 0 to 3 by their successors."""
    found = digits(root, client=0, clients=1)
    if client % 2 == 0:
        return found

    def renamed(part: Examples) -> Examples:
        return Examples(part.x, np.where(part.y < 4, (part.y + 1) % 4, part.y))

    return replace(found, train=renamed(found.train), validation=renamed(found.validation))


@cache
def trained() -> nn.Module:
    """The space's smallest subnet after some epochs on the digits as most people call them."""
    torch.manual_seed(0)
    net, data = SPACE.build(ARCH).train(), digits(client=0, clients=1)
    x, y = torch.from_numpy(data.normalized(data.train.x)), torch.from_numpy(data.train.y)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


def subnet_of(net: nn.Module) -> Subnet:
    values = [p.detach().numpy().ravel() for p in net.parameters()]
    norms = batch_norms(net).values()
    statistics = [part.numpy() for n in norms for part in (n.running_mean, n.running_var)]
    flat = np.concatenate([*values, *statistics]).astype(np.float32)
    return Subnet(plain(SPACE.to_dict()), dict(ARCH), flat)


@dataclass(frozen=True)
class Made:
    """A published model's draft, its files, and the ranges that they were quantized with."""

    draft: Manifest
    files: dict[str, Path]
    ranges: dict[str, Ranges]


def make(folder: Path) -> Made:
    """Export what was trained, in all kinds, as a specialization does."""
    subnet = subnet_of(trained())
    data = digits(client=0, clients=1)
    x = data.normalized(data.train.x[:256])
    exported = export_floats(subnet, ("tflite", "onnx"), folder)
    ranges = {
        form: observe_ranges(content, FLOATS[form], x)
        for form, content in exported.observable.items()
    }
    completed = complete(subnet, folder, ranges)
    return Made(manifest(subnet, completed, x[:1]), named(folder, completed), ranges)


def named(folder: Path, completed: Completed) -> dict[str, Path]:
    files = {entry.kind: folder / entry.name for entry in completed.entries}
    assert completed.trainable is not None
    return {**files, "trainable": folder / completed.trainable.name}


def manifest(subnet: Subnet, completed: Completed, x: Any) -> Manifest:
    data = digits(client=0, clients=1)
    with torch.no_grad():
        output = module_of(subnet)(torch.from_numpy(x)).numpy()
    return Manifest(
        model="digits.board",
        version=1,
        device_class="board",
        layout="NCHW",
        normalization=data.normalization,
        classes=data.classes,
        space=plain(SPACE.to_dict()),
        arch=dict(ARCH),
        supernet_sha256="0" * 64,
        cost=cost(SPACE, ARCH).to_dict(),
        budget={},
        golden=Golden(
            input_shape=x.shape,
            input=tuple(x.ravel().tolist()),
            output=tuple(output.ravel().tolist()),
            tolerance={k: 1.0 if k.endswith("int8") else 1e-3 for k in KINDS},
        ),
        files=tuple(completed.entries),
        trainable=completed.trainable,
    )


@dataclass(frozen=True)
class Home:
    """A depot with the model, and a device's store."""

    registry: Registry
    address: Address
    store: DeviceStore
    made: Made

    def publish(self, **fields: Any) -> Manifest:
        """The model's next version."""
        draft = self.made.draft.model_copy(update=fields)
        return self.registry.publish(draft, {n: self.made.files[n] for n in draft.named()})

    def pull(self, kind: FileKind | None = None) -> PullResult:
        return pull(self.address, self.store, PullRequest(kind))

    def personalize(
        self,
        schedule: Schedule = QUICK,
        *,
        client: int = 1,
        data: ClientData | None = None,
        adapter: Path | None = None,
        depot: bool = True,
        force: bool = False,
    ) -> Personalized:
        source = Source(self.address if depot else None, adapter)
        given = swapped(client=client) if data is None else data
        return personalize(self.store, given, schedule, source, force=force)

    def bytes_in_use(self) -> bytes:
        return self.store.require_current().model_path.read_bytes()


@contextmanager
def open_home(folder: Path, made: Made) -> Iterator[Home]:
    """A home that ends with the `with` statement."""
    with Registry(folder / "registry") as registry:
        depot = serve_depot(registry, "127.0.0.1:0")
        try:
            store = DeviceStore(folder / "device", "board")
            yield Home(registry, Address(f"127.0.0.1:{depot.port}"), store, made)
        finally:
            depot.stop(0)


def entry_of(made: Made, kind: FileKind) -> FileEntry:
    return made.draft.file(kind)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
