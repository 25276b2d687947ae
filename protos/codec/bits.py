"""Reading a stranger's bytes, and numbers of few bits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import CodecError

Bytes = NDArray[np.uint8]
Widths = NDArray[np.integer] | int


@dataclass(slots=True)
class Reader:
    """Takes a message apart; CodecError where it ends too early or goes on after its end.

    The last `padding` bytes may be left over if they are zeros.
    """

    data: memoryview
    padding: int = 0
    at: int = 0

    def take(self, size: int, what: str) -> memoryview:
        """The next bytes, without a copy."""
        if size > len(self.data) - self.at:
            raise CodecError(
                f"{what}: {size} bytes expected at byte {self.at}, {len(self.data) - self.at} left"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, what: str) -> int:
        """The next whole number of `size` bytes."""
        return int.from_bytes(self.take(size, what), "little")

    def end(self) -> None:
        """Nothing may follow."""
        left = self.data[self.at :]
        if len(left) > self.padding or any(left):
            raise CodecError(f"{len(left)} bytes too many after byte {self.at}")


def pack_bits(values: NDArray[np.unsignedinteger], widths: Widths) -> bytes:
    """The lowest `widths` bits of each value: everybody's lowest bit, then the next one, and so on."""
    if isinstance(widths, int) and widths == 8:
        return values.astype(np.uint8).tobytes()
    planes = [np.empty(0, np.uint8)]
    for place in range(int(np.max(widths, initial=0))):
        held = values if isinstance(widths, int) else values[widths > place]
        planes.append(((held >> place) & 1).astype(np.uint8))
    return np.packbits(np.concatenate(planes), bitorder="little").tobytes()


def packed_size(count: int, widths: Widths) -> int:
    """Bytes that `pack_bits` makes of `count` values."""
    total = widths * count if isinstance(widths, int) else int(widths.sum(dtype=np.int64))
    return (total + 7) // 8


def unpack_symbols(data: memoryview, count: int, width: int) -> Bytes:
    """The values that `pack_bits` packed with one width of at most 8."""
    raw = np.frombuffer(data, np.uint8)
    if width == 8:
        return raw
    bits = np.unpackbits(raw, count=width * count, bitorder="little").reshape(width, count)
    values = np.zeros(count, np.uint8)
    for place, plane in enumerate(bits):
        values |= plane << np.uint8(place)
    return values


def unpack_numbers(data: memoryview, widths: NDArray[np.integer]) -> NDArray[np.uint32]:
    """The values that `pack_bits` packed with a width each, of at most 32."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    values, at = np.zeros(len(widths), np.uint32), 0
    for place in range(int(widths.max(initial=0))):
        held = np.flatnonzero(widths > place)
        values[held] |= bits[at : at + len(held)].astype(np.uint32) << np.uint32(place)
        at += len(held)
    return values
