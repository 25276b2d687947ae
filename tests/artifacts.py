"""Small artifacts to publish, and a disk that fails on demand."""

import datetime
import hashlib
import io
import ipaddress
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fedofa.protos.manifest import (
    FILE_NAMES,
    FileEntry,
    FileKind,
    Golden,
    Manifest,
    Normalization,
    TensorSpec,
)
from fedofa.server.depot import TlsFiles


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(kind: FileKind, data: bytes) -> FileEntry:
    return FileEntry(
        kind=kind,
        name=FILE_NAMES[kind],
        size_bytes=len(data),
        sha256=sha256(data),
        inputs=(TensorSpec(name="x", shape=(1, 2), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(1, 2), dtype="float32"),),
    )


def draft(
    contents: Mapping[FileKind, bytes], model: str = "net", device_class: str = "board"
) -> Manifest:
    """A manifest of a model that swaps its two inputs."""
    return Manifest(
        model=model,
        version=1,
        device_class=device_class,
        layout="NC",
        normalization=Normalization(mean=(0.5,), std=(2.0,)),
        classes=("a", "b"),
        space={"name": "none"},
        arch={"depth": 1},
        supernet_sha256="0" * 64,
        cost={"macs": 4},
        budget={"macs": 4},
        golden=Golden(
            input_shape=(1, 2),
            input=(1.0, -1.0),
            output=(-1.0, 1.0),
            tolerance=dict.fromkeys(contents, 0.001),
        ),
        files=tuple(entry(kind, data) for kind, data in contents.items()),
    )


def write(folder: Path, contents: Mapping[FileKind, bytes]) -> dict[FileKind, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[FileKind, Path] = {}
    for kind, data in contents.items():
        paths[kind] = folder / FILE_NAMES[kind]
        paths[kind].write_bytes(data)
    return paths


@contextmanager
def closing_on_error(file: io.IOBase) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise


class Died(BaseException):
    """Stands for the end of the process: no `except Exception` may see it."""


class Disk:
    """Counts this thread's calls that change or open files; call number `fails_at` fails.

    With `dies`, all later calls raise too, so that no clean-up takes place: as after kill -9.
    """

    NAMES = ("replace", "fsync", "open", "unlink", "mkdir", "rmdir", "truncate")

    def __init__(self, fails_at: int | None, dies: bool) -> None:
        self.calls = 0
        self._fails_at, self._dies = fails_at, dies
        self._thread = threading.get_ident()

    def watch(self, patch: pytest.MonkeyPatch) -> "Disk":
        for name in self.NAMES:
            patch.setattr(os, name, self._wrap(getattr(os, name)))
        patch.setattr(io, "open", self._wrap(io.open))
        return self

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return call(*args, **kwargs)
            self._step()
            result = call(*args, **kwargs)
            if isinstance(result, io.IOBase) and result.writable():
                # Opening may have emptied the file: it matters what happens before the first write.
                with closing_on_error(result):
                    self._step()
            return result

        return counted

    def _step(self) -> None:
        self.calls += 1
        if self._fails_at is not None:
            if self._dies and self.calls >= self._fails_at:
                raise Died
            if self.calls == self._fails_at:
                raise OSError(28, "No space left on device")

    @property
    def failed(self) -> bool:
        return self._fails_at is not None and self.calls >= self._fails_at


def swapping_onnx(swaps: bool = True, note: str = "") -> bytes:
    """A model of two inputs that gives them back, in the other order if it `swaps`.

    The note makes it another file, as long as one likes.
    """
    from onnx import TensorProto, helper

    order = helper.make_tensor("order", TensorProto.INT64, [2], [1, 0] if swaps else [0, 1])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "order"], ["y"], axis=1)],
        "swap",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [order],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8, doc_string=note)
    data: bytes = model.SerializeToString()
    return data


def certificate(folder: Path) -> TlsFiles:
    """A certificate for localhost that signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(folder / "cert.pem", folder / "key.pem")
    files.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
