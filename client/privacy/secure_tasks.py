"""What a device does with a letter of a secure sum, Flower-free: body and bytes in, the same out.

`session` is the device's part in the sum; what it must remember between letters is in its `state`, which
`client/app.py` keeps in Flower's context of the run: in the memory of the device's processes, and
nowhere else.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from ...protos.device import Device
from ...protos.flower import Values
from ...protos.messages import MessageError
from ...protos.noise import Flat, GaussianNoise
from ...protos.places import places
from ...protos.secure_figures import Figures, share_beyond
from ...protos.secure_requests import LetterReply, LetterRequest, MaskedReply, MaskedRequest, Step
from ...supernet.axes import layout
from ..update_task import LocalUpdate, local_update, octets
from .local_noise import noised
from .secure_client import SecureClient

ANSWERS: Mapping[Step, Callable[[SecureClient, bytes], bytes]] = MappingProxyType(
    {
        "advertise": SecureClient.advertise,
        "share": SecureClient.share,
        "unmask": SecureClient.unmask,
    }
)


def run_letter(
    session: SecureClient, device: Device, body: LetterRequest, values: Values | None
) -> tuple[LetterReply, Values]:
    """Answer a letter; SecrecyError where the device will not."""
    answer = ANSWERS[body.step](session, octets(values, "letters"))
    return LetterReply(run=body.run, round=body.round, device=device.name), _array(answer)


def run_masked(
    session: SecureClient, device: Device, body: MaskedRequest, values: Values | None
) -> tuple[MaskedReply, Values]:
    """Train, and mask the change; SecrecyError where the device will not, or the change is no number."""
    data = octets(values, "a letter and weights")
    if (len(data) - body.inbox_bytes) % 4 or len(data) < body.inbox_bytes:
        raise MessageError(f"{len(data)} bytes hold no letter of {body.inbox_bytes} and weights")
    inbox, sent = data[: body.inbox_bytes], np.frombuffer(data, "<f4", offset=body.inbox_bytes)
    bound = session.bound  # asked before the training, which would be for nothing
    found = local_update(device, body.train, sent.astype(np.float32))
    change = found.after - found.before
    if body.train.noise is not None:
        change = noised(change, body.train.noise.clip, body.train.noise.std, GaussianNoise())
    figures = Figures(found.done.loss, share_beyond(change, bound))
    told = np.concatenate([_ascending(found, change), figures.values(bound)])
    reply = MaskedReply(
        run=body.train.run,
        round=body.train.round,
        device=device.name,
        arch=dict(found.arch),
        steps=found.done.steps,
        train_macs=found.done.train_macs,
    )
    return reply, _array(session.mask(inbox, told))


def _ascending(found: LocalUpdate, change: Flat) -> Flat:
    """In the order of their places in the supernet, in which secure sums want values."""
    shared = {name: tensor.shape for name, tensor in layout(found.space).items()}
    at = places(shared, found.leaving)
    return change if np.all(at[:-1] < at[1:]) else change[np.argsort(at)]


def _array(letter: bytes) -> Values:
    return np.frombuffer(letter, np.uint8)
