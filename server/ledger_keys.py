"""The run's Ed25519 key: made at first use, private to the run folder, its public half beside it."""

import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..protos import durable
from ..supernet.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

KEY, PUBLIC = "ledger.key", "ledger.pub"


class PublicKey:
    """What verifies a signature. `text` is its 32 bytes as hex, for people to compare."""

    def __init__(self, key: "ed25519.Ed25519PublicKey") -> None:
        self._key = key
        self.text = key.public_bytes_raw().hex()

    @classmethod
    def read(cls, path: Path, advice: str = "name it with --key") -> "PublicKey":
        """From a PEM file; UsageError when it is missing (`advice` says what to do) or something else."""
        serialization, ed25519 = _cryptography()
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except OSError as error:
            raise UsageError(f"public key {path}: {error.strerror}; {advice}") from None
        except Exception as error:  # noqa: BLE001 - whatever a stranger's file makes it raise
            raise UsageError(f"public key {path} is no PEM public key: {error}") from None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise UsageError(f"public key {path}: {type(key).__name__}; an Ed25519 key is needed")
        return cls(key)

    def confirms(self, signature: bytes, message: bytes) -> bool:
        """Whether the private half signed this message."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def write(self, path: Path) -> None:
        """Write a PEM file."""
        serialization, _ = _cryptography()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        durable.write(path, self._key.public_bytes(serialization.Encoding.PEM, form))


class SigningKey:
    """What signs; `public` is what verifies."""

    def __init__(self, key: "ed25519.Ed25519PrivateKey") -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def drawn(cls) -> "SigningKey":
        """A new key, from the system's randomness."""
        _, ed25519 = _cryptography()
        return cls(ed25519.Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)

    def write(self, path: Path) -> None:
        """Write a PEM file that only its owner can read, also while it is being written."""
        serialization, _ = _cryptography()
        data = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            durable.move(Path(draft), path)
        finally:
            Path(draft).unlink(missing_ok=True)


def run_key(folder: Path, *, new: bool) -> SigningKey:
    """The key of the run in this folder; with `new` it is made where there is none.

    UsageError when it is missing (a ledger goes on with the key that it began with), unreadable,
    or readable by others.
    """
    path = folder / KEY
    if new and not path.exists():
        durable.make_folder(folder)
        SigningKey.drawn().write(path)
    key = _read(path)
    if not (folder / PUBLIC).exists():
        key.public.write(folder / PUBLIC)
    return key


def _read(path: Path) -> SigningKey:
    serialization, ed25519 = _cryptography()
    try:
        if (mode := path.stat().st_mode & 0o777) & 0o077:
            raise UsageError(
                f"key {path}: others may read it (mode {mode:o}); if none did, chmod 600 {path}"
            )
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UsageError(
            f"key {path}: {error.strerror}; the ledger beside it goes on with this key only: "
            "restore it, or move the ledger aside to begin another"
        ) from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"key {path} is damaged ({error}); restore it") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"key {path}: {type(key).__name__}; an Ed25519 key is needed")
    return SigningKey(key)


def _cryptography() -> tuple[ModuleType, ModuleType]:
    """Comes with flwr; who only verifies may have neither."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UsageError("signatures need cryptography: pip install cryptography") from None
    return serialization, ed25519
