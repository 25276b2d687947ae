"""Keys that two devices agree on, sealed letters between them, and masks made from a key.

X25519 for agreement, HKDF-SHA256 for keys, ChaCha20-Poly1305 for letters and ChaCha20 for masks: fast
on processors without AES instructions too, which many devices have.
"""

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .fixed_point import Words

KEY_BYTES = 32
SEAL_BYTES = 16


def public_of(private: bytes) -> bytes:
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """The key that only the holders of either private half can work out, for one purpose.

    ValueError for a public half that would give a key that everybody knows.
    """
    own = X25519PrivateKey.from_private_bytes(private)
    secret = own.exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose).derive(secret)


def letter_key(private: bytes, public: bytes, binding: bytes, way: tuple[int, int]) -> bytes:
    """The key of the one letter that goes this way, from one device's number to another's."""
    return agreed(private, public, digest(b"fedofa letter", binding, *map(_bytes, way)))


def pair_key(private: bytes, public: bytes, binding: bytes) -> bytes:
    """The key of the masks that two devices share: one adds them, the other takes them off."""
    return agreed(private, public, digest(b"fedofa mask", binding))


def sealed(key: bytes, letter: bytes) -> bytes:
    """The letter, encrypted and authenticated. A key is used for one letter: the nonce is zero."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), letter, None)


def opened(key: bytes, letter: bytes) -> bytes:
    """What was sealed; ValueError when it was changed or sealed with another key."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), letter, None)
    except InvalidTag:
        raise ValueError("the letter was changed, or sealed with another key") from None


def mask(key: bytes, cell: int, size: int) -> Words:
    """`size` numbers modulo 2^32 that look random to whoever has no key; others for each cell."""
    # A counter of 4 bytes from 0, then the nonce.
    stream = Cipher(ChaCha20(key, bytes(4) + cell.to_bytes(12, "little")), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * size)), dtype="<u4")


def commitment(secret: bytes) -> bytes:
    """What a secret is checked against when it is put together from shares."""
    return digest(b"fedofa commitment", secret)


def digest(*parts: bytes) -> bytes:
    """SHA-256 of parts, each with its length before it."""
    found = Hash(SHA256())
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.finalize()


def _bytes(number: int) -> bytes:
    return number.to_bytes(8, "little")
