"""How the letters of a secure sum travel: a body that says what they are for, their bytes as array.

The four letters are in `secure_messages.py`. The third comes with the training itself: what a device
masks is the change that it has just trained.
"""

from typing import ClassVar, Literal

from pydantic import Field

from .messages import Body, Count, TrainRequest
from .recipe import ArchValues

Step = Literal["advertise", "share", "unmask"]


class LetterRequest(Body):
    """One letter of a round's secure sum; the array holds its bytes (uint8)."""

    action: ClassVar[str] = "query.letter"
    run: str
    round: int = Field(ge=1)
    step: Step


class LetterReply(Body):
    """The answer to a letter; the array holds its bytes (uint8)."""

    action: ClassVar[str] = "query.letter"
    run: str
    round: int
    device: str


class MaskedRequest(Body):
    """Train a subnet, and send its change masked.

    The array (uint8) holds the letter `Inbox`, of so many bytes, and then `train`'s values.
    """

    action: ClassVar[str] = "train.masked"
    train: TrainRequest
    inbox_bytes: int = Field(ge=1)


class MaskedReply(Body):
    """What a device says in the clear beside its masked change: nothing that hangs on its data's values.

    Its loss is in the masked sum (`secure_figures.py`). The array (uint8) holds the letter `Masked`.
    """

    action: ClassVar[str] = "train.masked"
    run: str
    round: int
    device: str
    arch: ArchValues
    steps: Count
    train_macs: Count
