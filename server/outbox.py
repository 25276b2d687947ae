"""Requests for training: packed, and until their answer what each device was sent with them."""

from pathlib import Path

from ..protos.messages import TrainReply
from ..supernet.axes import Weights
from ..supernet.space import Space
from ..supernet.weights import Flat, gather
from .config import RunConfig
from .downlink import Downlink
from .exchange import Answer, Request
from .intake import Asked
from .shelf import Place, Shelf
from .train_request import Parcel, train_request

HELD = "held"


class Outbox:
    """Sends the values of subnets; a device has one request at a time.

    What was sent waits on `shelf`, but where it can be gathered again from weights that have not moved
    since. What devices hold, where they are to, is kept in `folder`.
    """

    def __init__(self, config: RunConfig, space: Space, shelf: Shelf, folder: Path) -> None:
        self._config, self._space, self.shelf = config, space, shelf
        self._downlink = (
            None
            if config.downlink is None
            else Downlink(config.downlink, config.name, config.seed, space, folder / HELD)
        )
        self._keeps = self._downlink is not None or config.round.mode == "async"
        self._places: dict[str, Place] = {}
        self._bytes: dict[str, int] = {}

    def send(self, asked: Asked, weights: Weights) -> Request:
        """The request, with the subnet's values of these weights or as close as their code gets."""
        name, now = asked.member.name, self._gathered(asked, weights)
        parcel = Parcel(now, now) if self._downlink is None else self._downlink.pack(asked, now)
        self._bytes[name] = parcel.array.nbytes
        if self._keeps:
            self._places[name] = self.shelf.put(parcel.values)
        return train_request(self._config, self._space, asked, parcel)

    def answered(self, asked: Asked, answer: Answer[TrainReply], weights: Weights) -> Flat:
        """The values that the device started from; what it says it holds is noted."""
        if self._downlink is not None:
            self._downlink.answered(asked, answer)
        if self._keeps:
            return self.shelf.take(self._places.pop(asked.member.name))
        return self._gathered(asked, weights)

    def sent_bytes(self, asked: Asked) -> int:
        """Bytes of the array that its device was last sent."""
        return self._bytes.get(asked.member.name, 0)

    def clear(self) -> None:
        """Wait for no answer any longer."""
        while self._places:
            self.shelf.take(self._places.popitem()[1])

    def _gathered(self, asked: Asked, weights: Weights) -> Flat:
        return gather(weights, asked.assigned.regions(self._space))
