"""The ClientApp: Flower's messages to the device's tasks and back, and nothing else."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from ..protos.device import Device
from ..protos.flower import Values, from_record, to_record
from ..protos.messages import (
    Body,
    EvaluateRequest,
    InputsRequest,
    MomentsRequest,
    ProfileRequest,
    RangesRequest,
    TrainRequest,
    VerifyRequest,
)
from ..protos.secure_requests import LetterRequest, MaskedRequest
from . import tasks
from .device import of_node
from .privacy import secure_tasks
from .privacy.secure_client import SecureClient
from .privacy.trust_file import read_trust

B = TypeVar("B", bound=Body)
Task = Callable[[Device, B, Values | None], Body | tuple[Body, Values]]

SecureTask = Callable[[SecureClient, Device, B, Values | None], tuple[Body, Values]]

SESSION, STATE = "secure-sum", "state"
"""Where a context keeps what a device must remember between the letters of a secure sum."""

app = ClientApp()


def _serve(kind: type[B], task: Task[B], message: Message, context: Context) -> Message:
    device = of_node(context.node_config, context.run_config)
    # A device's share of a machine; one thread also makes sums independent of the machine.
    torch.set_num_threads(device.threads)
    body, values = from_record(kind, message.content)
    done = task(device, body, values)
    reply = to_record(*done) if isinstance(done, tuple) else to_record(done)
    return Message(reply, reply_to=message)


def _serve_secure(
    kind: type[B], task: SecureTask[B], message: Message, context: Context
) -> Message:
    """As `_serve`, with a secure sum's secrets, which the context holds: in memory, not on disk.

    The context goes back with the reply or, where the task fails, as it came: either both take effect
    or neither, so that no step is taken twice.
    """
    record = context.state.config_records.get(SESSION)
    kept = None if record is None else record[STATE]
    device = of_node(context.node_config, context.run_config)
    trust = read_trust(Path(device.trust), device.name) if device.trust else None
    session = SecureClient(device.name, trust, kept if isinstance(kept, bytes) else None)
    reply = _serve(kind, functools.partial(task, session), message, context)
    context.state[SESSION] = ConfigRecord({STATE: session.state})
    return reply


app.query("profile")(functools.partial(_serve, ProfileRequest, tasks.run_profile))
app.train()(functools.partial(_serve, TrainRequest, tasks.run_train))
app.query("moments")(functools.partial(_serve, MomentsRequest, tasks.run_moments))
app.query("inputs")(functools.partial(_serve, InputsRequest, tasks.run_inputs))
app.evaluate()(functools.partial(_serve, EvaluateRequest, tasks.run_evaluate))
app.query("ranges")(functools.partial(_serve, RangesRequest, tasks.run_ranges))
app.evaluate("files")(functools.partial(_serve, VerifyRequest, tasks.run_verify))
app.query("letter")(functools.partial(_serve_secure, LetterRequest, secure_tasks.run_letter))
app.train("masked")(functools.partial(_serve_secure, MaskedRequest, secure_tasks.run_masked))
