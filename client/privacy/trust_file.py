"""A device's trust file (TOML): what it asks of secure sums, and whose keys it accepts in them.

    least_cover = 5                  # no sum over fewer devices
    identity = "device.key"          # its own Ed25519 key (PEM), which it signs with
    devices = "devices.toml"         # who may take part: name = "Ed25519 public key, base64 of its DER form"
    operator = "operator.pub"        # the key (PEM) that signed devices.toml, in devices.toml.sig

Paths are relative to the file. The signature is over the list's bytes, raw, as `openssl pkeyutl -sign
-rawin` makes it. List and operator's key must come to the device by another way than the server, which
they guard against.
"""

import base64
import binascii
import tomllib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...supernet.errors import UsageError
from .trust import Trust


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    least_cover: int = Field(2, ge=2)
    identity: str | None = None
    devices: str | None = None
    operator: str | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        given = {name: getattr(self, name) for name in ("identity", "devices", "operator")}
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(
                f"{', '.join(missing)} missing: identity, devices and operator go together, or none"
            )
        return self


@lru_cache(maxsize=64)
def read_trust(path: Path, device: str) -> Trust:
    """What a device's file says, read once per process. UsageError names what is wrong with it."""
    try:
        found = _File.model_validate(tomllib.loads(_read(path).decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"trust file {path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        allowed = ", ".join(_File.model_fields)
        raise UsageError(
            f"trust file {path}: {where}: {first['msg']}; allowed: {allowed}"
        ) from None
    if found.identity is None or found.devices is None or found.operator is None:
        return Trust(found.least_cover)
    own = _private(path.parent / found.identity)
    listed = _listed(path.parent / found.devices, _public(path.parent / found.operator))
    if device not in listed or listed[device] != own.public_key():
        raise UsageError(
            f"trust file {path}: {found.devices} has "
            f"{'another key' if device in listed else 'no key'} for this device, {device}, than "
            f"{found.identity}; let the operator enter it and sign the list again"
        )
    return Trust(found.least_cover, own, listed)


def _listed(path: Path, operator: Ed25519PublicKey) -> Mapping[str, Ed25519PublicKey]:
    data, signature = _read(path), _read(path.with_name(f"{path.name}.sig"))
    try:
        operator.verify(signature, data)
    except InvalidSignature:
        raise UsageError(
            f"device list {path}: {path.name}.sig is not the operator's signature of it"
        ) from None
    try:
        given = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"device list {path}: {error}") from None
    return {name: _of_text(path, name, text) for name, text in given.items()}


def _of_text(path: Path, name: str, text: object) -> Ed25519PublicKey:
    try:
        der = base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise UsageError(f"device list {path}: {name}: {error}; a key in base64 expected") from None
    return _checked(f"device list {path}: {name}", lambda: load_der_public_key(der))


def _public(path: Path) -> Ed25519PublicKey:
    data = _read(path)
    return _checked(f"public key {path}", lambda: load_pem_public_key(data))


def _private(path: Path) -> Ed25519PrivateKey:
    data = _read(path)
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        raise UsageError(
            f"key {path}: others may read it (mode {mode:o}); if none did, chmod 600 {path}"
        )
    key = _loaded(f"key {path}", lambda: load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"key {path}: {type(key).__name__}; an Ed25519 key is needed")
    return key


def _checked(what: str, read: Callable[[], object]) -> Ed25519PublicKey:
    key = _loaded(what, read)
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{what}: {type(key).__name__}; an Ed25519 key is needed")
    return key


def _loaded(what: str, read: Callable[[], object]) -> object:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make it raise
        raise UsageError(f"{what} is no key: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
