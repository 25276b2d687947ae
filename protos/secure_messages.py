"""The letters of a secure sum, as bytes: a JSON header, checked, and a tail of raw numbers.

One round takes four requests and four replies, in this order:

    server                                     device
    Invitation  index, threshold          →
                                          ←    Advert      two public keys
    Roster      all keys, cells, own runs →
                                          ←    Shares      a sealed letter for each other device
    Inbox       the letters for it        →
                                          ←    Masked      its values, masked
    Survivors   whose values arrived      →
                                          ←    Reveal      shares of what takes the masks off

Whatever does not have this form raises SecrecyError, and nothing else is ever raised for bad bytes.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..supernet.errors import FedofaError
from .fixed_point import MOST_CLIENTS
from .masks import KEY_BYTES, digest

Holder = Annotated[int, Field(ge=1, le=MOST_CLIENTS)]
Key = Annotated[bytes, Field(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Session = Annotated[bytes, Field(min_length=16, max_length=16)]
Labels = NDArray[np.int16]
MOST_CELLS = 1024
LEFT_OUT = -1
"""The label of values that belong to no cell."""
RUN = np.dtype([("size", "<u4"), ("cell", "<i2")])
_MOST_HEADER_BYTES = 16 * 1024 * 1024


class SecrecyError(FedofaError):
    """A secure sum was stopped, or a letter refused. `code` is its stable reason code.

    Codes: malformed, phase, session, sender, key, roster, threshold, size, survivors, share,
    non_finite.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class Header(BaseModel):
    """Base of every letter: frozen, no unknown fields, no conversion of types."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        allow_inf_nan=False,
    )

    def to_bytes(self, *tail: bytes) -> bytes:
        """The header's size in 4 bytes, the header, the tail."""
        head = self.model_dump_json().encode()
        return b"".join((len(head).to_bytes(4, "little"), head, *tail))

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[Self, memoryview]:
        """Header and tail; SecrecyError names the first wrong field."""
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 + size or not 0 < size <= _MOST_HEADER_BYTES:
            raise SecrecyError("malformed", f"{cls.__name__}: {len(data)} bytes hold no header")
        try:
            found = cls.model_validate_json(data[4 : 4 + size])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "header"
            raise SecrecyError("malformed", f"{cls.__name__}: {where}: {first['msg']}") from None
        return found, memoryview(data)[4 + size :]


class Invitation(Header):
    """Take part in a sum over `clients` devices as number `holder`."""

    step: Literal["invitation"] = "invitation"
    session: Session
    holder: Holder
    clients: Holder
    threshold: Holder


class Advert(Header):
    """A device's public keys, for letters and for masks, and its signature where devices sign."""

    step: Literal["advert"] = "advert"
    session: Session
    holder: Holder
    name: str = Field(max_length=64)
    seal_key: Key
    mask_key: Key
    signature: bytes = Field(b"", max_length=64)

    def signed(self) -> bytes:
        """What is signed: everything but the signature."""
        parts = (self.session, str(self.holder).encode(), self.name.encode())
        return digest(b"fedofa advert", *parts, self.seal_key, self.mask_key)


class Cell(Header):
    """Values that the same devices cover: how many, and the devices' numbers, ascending."""

    size: int = Field(ge=1, le=2**40)
    cover: tuple[Holder, ...]


class Roster(Header):
    """Everything that all devices must agree on; the tail is the reader's own values, run by run.

    `bound` is the largest value that can be summed, `least_cover` the least number of devices whose
    sum of a value is revealed.
    """

    step: Literal["roster"] = "roster"
    session: Session
    clients: Holder
    threshold: Holder
    least_cover: Holder
    bound: float = Field(gt=0)
    adverts: tuple[Advert, ...]
    cells: tuple[Cell, ...] = Field(max_length=MOST_CELLS)

    @property
    def holders(self) -> tuple[int, ...]:
        """Who takes part, ascending."""
        return tuple(advert.holder for advert in self.adverts)

    @staticmethod
    def binding(data: bytes) -> bytes:
        """A digest of a roster's header, the same for all devices.

        It goes into every key: devices that were told different things have no key in common.
        """
        return digest(b"fedofa roster", data[4 : 4 + int.from_bytes(data[:4], "little")])

    def cells_of(self, holder: int) -> tuple[int, ...]:
        """The numbers of a device's cells, ascending."""
        return tuple(n for n, cell in enumerate(self.cells) if holder in cell.cover)

    def kept(self, holders: frozenset[int]) -> frozenset[int]:
        """The cells of which enough devices are among these."""
        least = self.least_cover
        return frozenset(
            n for n, cell in enumerate(self.cells) if len(holders.intersection(cell.cover)) >= least
        )


class Shares(Header):
    """Tail: a commitment for each of the sender's cells, then its letters to the others, ascending."""

    step: Literal["shares"] = "shares"
    session: Session
    holder: Holder


class Inbox(Header):
    """`holders` sent shares. Tail: their letters to the reader, ascending, without its own."""

    step: Literal["inbox"] = "inbox"
    session: Session
    holders: tuple[Holder, ...]


class Masked(Header):
    """Tail: the sender's masked values, cell after cell."""

    step: Literal["masked"] = "masked"
    session: Session
    holder: Holder


class Survivors(Header):
    """The values of `holders` arrived; what hides the sum of exactly these is to be revealed."""

    step: Literal["survivors"] = "survivors"
    session: Session
    holders: tuple[Holder, ...]


class Reveal(Header):
    """Tail: for each device that sent shares, ascending, what the sender holds of one of its secrets.

    Of a survivor the shares of its own masks, cell after cell; of another the share of its mask key.
    """

    step: Literal["reveal"] = "reveal"
    session: Session
    holder: Holder


def runs(labels: Labels) -> bytes:
    """Labels as runs of equal ones."""
    starts = np.flatnonzero(np.diff(labels, prepend=np.int16(LEFT_OUT - 1)))
    found = np.empty(len(starts), RUN)
    found["size"] = np.diff(starts, append=len(labels))
    found["cell"] = labels[starts]
    return found.tobytes()


def labels(data: bytes, size: int) -> Labels:
    """The labels of `size` values; SecrecyError when the runs are not for so many."""
    if len(data) % RUN.itemsize:
        raise SecrecyError("malformed", f"runs of {len(data)} bytes; a multiple of {RUN.itemsize}")
    found = np.frombuffer(data, RUN)
    if int(found["size"].sum(dtype=np.uint64)) != size:
        raise SecrecyError("size", f"the roster is for another number of values than {size}")
    return np.repeat(found["cell"], found["size"]).astype(np.int16, copy=False)


def ascending(holders: tuple[int, ...]) -> bool:
    """Whether no number occurs twice, and they are in order."""
    return all(a < b for a, b in pairwise(holders))
