"""What a device is sent to train a subnet: only the selected values, and what they are."""

from ..protos.messages import TrainRequest, tensor_shapes
from ..supernet.space import Space, plain
from ..supernet.weights import Flat, shapes_of
from .config import RunConfig
from .exchange import Request
from .intake import Asked


def train_request(config: RunConfig, space: Space, asked: Asked, values: Flat) -> Request:
    """The message; `values` are the shared weights' at the subnet's place."""
    assigned, codec = asked.assigned, config.codec
    where = assigned.regions(space)
    body = TrainRequest(
        run=config.name,
        round=asked.number,
        seed=config.seed,
        lr=asked.lr,
        deadline_s=config.round.deadline_s,
        space=plain(space.to_dict()),
        arch=dict(assigned.arch),
        offset=assigned.offset,
        codec=codec and codec.codec(),
        error_memory=codec is not None and codec.error_memory,
        noise=asked.noise,
        recipe=assigned.recipe(config.recipe),
        tensors=tensor_shapes(shapes_of(where)),
        **asked.kept.among(where),
    )
    return Request(asked.member.node, body, values)
