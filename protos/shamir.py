"""Shamir's secret sharing: any `threshold` of the shares give the secret, fewer give nothing.

A secret of 32 bytes is an element of the field of 2^255 - 19 elements, the value at 0 of a random
polynomial of degree threshold - 1; holder x gets its value at x (Shamir 1979).
"""

from collections.abc import Mapping
from functools import lru_cache

from .noise import Entropy

PRIME = 2**255 - 19
SHARE_BYTES = 32
# So many bytes modulo the prime are uniform to one part in 2^129.
_DRAWN_BYTES = 48


def drawn_secret(entropy: Entropy) -> bytes:
    """A uniformly random secret."""
    return _element(entropy(_DRAWN_BYTES)).to_bytes(SHARE_BYTES, "little")


def split(secret: bytes, threshold: int, holders: int, entropy: Entropy) -> list[bytes]:
    """The shares of holders 1, 2, …, `holders`. ValueError unless 1 <= threshold <= holders."""
    if not 1 <= threshold <= holders:
        raise ValueError(f"threshold = {threshold} of {holders} holders; 1 to {holders}")
    drawn = entropy(_DRAWN_BYTES * (threshold - 1))
    rising = [_number(secret)] + [
        _element(drawn[at : at + _DRAWN_BYTES]) for at in range(0, len(drawn), _DRAWN_BYTES)
    ]
    return [_at(rising, x).to_bytes(SHARE_BYTES, "little") for x in range(1, holders + 1)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of the shares of these holders: at least as many as the threshold.

    With fewer, or with a wrong one, this is another number: check what you get. ValueError for a share
    that is no element of the field.
    """
    points = tuple(sorted(shares))
    total = sum(
        factor * _number(shares[x]) for x, factor in zip(points, _at_zero(points), strict=True)
    )
    return (total % PRIME).to_bytes(SHARE_BYTES, "little")


def _at(rising: list[int], x: int) -> int:
    found = 0
    for coefficient in reversed(rising):
        found = (found * x + coefficient) % PRIME
    return found


@lru_cache(maxsize=64)
def _at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's factors of the values at these points for the value at 0."""
    factors = []
    for x in points:
        over, under = 1, 1
        for other in points:
            if other != x:
                over = over * other % PRIME
                under = under * (other - x) % PRIME
        factors.append(over * pow(under, -1, PRIME) % PRIME)
    return tuple(factors)


def _element(data: bytes) -> int:
    return int.from_bytes(data, "little") % PRIME


def _number(data: bytes) -> int:
    found = int.from_bytes(data, "little")
    if len(data) != SHARE_BYTES or found >= PRIME:
        raise ValueError("32 bytes below 2^255 - 19 are expected")
    return found
