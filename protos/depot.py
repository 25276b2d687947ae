"""What the depot and the devices agree on beyond depot.proto: names, sizes, addresses, tokens.

Importable without torch and without grpc.
"""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..supernet.errors import UsageError

CHUNK_BYTES = 256 * 1024
MANIFEST_BYTES = 16 * 1024 * 1024
MESSAGE_BYTES = MANIFEST_BYTES + 64 * 1024
DETAIL_CHARACTERS = 1000
"""So much is told of why a call is refused."""
STABLE = "stable"
REASON_KEY = "reason"
TOKEN_KEY = "authorization"  # noqa: S105 - the name of a header, not a secret

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DEVICE_NAME = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
_DEVICE = re.compile(DEVICE_NAME)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


def is_name(text: str) -> bool:
    """Whether `text` may name a device class or a channel."""
    return _NAME.fullmatch(text) is not None


def is_model_name(text: str) -> bool:
    """Whether `text` may name a model."""
    return _MODEL.fullmatch(text) is not None


def is_device_name(text: str) -> bool:
    """Whether `text` may be a device's own name."""
    return _DEVICE.fullmatch(text) is not None


def is_sha256(text: str) -> bool:
    """Whether `text` is 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and an ellipsis: `most` characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a TCP port; an IPv6 host is written in brackets in texts only."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, field: str = "server") -> Self:
        """Read HOST:PORT; UsageError names `field` when it is something else."""
        host, colon, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if colon and port.isascii() and port.isdigit() and int(port) <= 65535:
            if bare != host and _is_ip(bare, version=6):
                return cls(bare, int(port))
            if bare == host and _HOST.fullmatch(host):
                return cls(host, int(port))
        raise UsageError(f"{field}: {text!r} is no address; give HOST:PORT, such as 127.0.0.1:9443")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can be at the other end."""
        if _is_ip(self.host):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host.lower() == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_ip(text: str, version: int | None = None) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return version is None or address.version == version


def read_token(path: Path) -> str:
    """The token in a file, without the white space around it; UsageError when there is none."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"token file {path}: {error}; give a readable text file") from None
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            f"token file {path}: a token is 1 to 4096 printable ASCII characters without spaces"
        )
    return token


def read_pem(path: Path, field: str) -> bytes:
    """The bytes of a PEM file; UsageError names `field` when it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{field}: {path}: {error.strerror}; give a readable PEM file") from None
    if b"-----BEGIN " not in data:
        raise UsageError(f"{field}: {path} is no PEM file: it has no '-----BEGIN' line")
    return data
