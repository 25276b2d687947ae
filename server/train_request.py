"""What a device is sent to train a subnet: only the selected values, and what they are."""

from dataclasses import dataclass

from ..protos.flower import Values
from ..protos.holding import Holding
from ..protos.messages import TrainRequest, tensor_shapes
from ..supernet.space import Space, plain
from ..supernet.weights import Flat, shapes_of
from .config import RunConfig
from .exchange import Request
from .intake import Asked


@dataclass(frozen=True, slots=True)
class Parcel:
    """The values for a device, packed in `array`; `values` are those that it unpacks, float32."""

    array: Values
    values: Flat
    holding: Holding | None = None


def train_request(config: RunConfig, space: Space, asked: Asked, parcel: Parcel) -> Request:
    """The message; the parcel's values are the shared weights' at the subnet's place."""
    body = train_body(config, space, asked, parcel.holding)
    return Request(asked.member.node, body, parcel.array)


def train_body(
    config: RunConfig, space: Space, asked: Asked, holding: Holding | None = None
) -> TrainRequest:
    """What is asked; `holding` says what the values that go along are to be added to."""
    assigned, codec = asked.assigned, config.codec
    where = assigned.regions(space)
    return TrainRequest(
        run=config.name,
        round=asked.number,
        seed=config.seed,
        lr=asked.lr,
        deadline_s=config.round.deadline_s,
        space=plain(space.to_dict()),
        arch=dict(assigned.arch),
        offset=assigned.offset,
        codec=codec and codec.codec(),
        error_memory=codec is not None and codec.remembers,
        noise=asked.noise,
        holding=holding,
        recipe=assigned.recipe(config.recipe),
        tensors=tensor_shapes(shapes_of(where)),
        **asked.kept.among(where),
    )
