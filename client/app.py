"""The ClientApp: Flower's messages to the device's tasks and back, and nothing else."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..protos.device import Device
from ..protos.flower import Values, from_record, to_record
from ..protos.messages import (
    Body,
    EvaluateRequest,
    MomentsRequest,
    ProfileRequest,
    RangesRequest,
    TrainRequest,
    VerifyRequest,
)
from . import tasks
from .device import of_node

B = TypeVar("B", bound=Body)
Task = Callable[[Device, B, Values | None], Body | tuple[Body, Values]]

app = ClientApp()


def _serve(kind: type[B], task: Task[B], message: Message, context: Context) -> Message:
    device = of_node(context.node_config, context.run_config)
    # A device's share of a machine; one thread also makes sums independent of the machine.
    torch.set_num_threads(device.threads)
    body, values = from_record(kind, message.content)
    done = task(device, body, values)
    reply = to_record(*done) if isinstance(done, tuple) else to_record(done)
    return Message(reply, reply_to=message)


app.query("profile")(functools.partial(_serve, ProfileRequest, tasks.run_profile))
app.train()(functools.partial(_serve, TrainRequest, tasks.run_train))
app.query("moments")(functools.partial(_serve, MomentsRequest, tasks.run_moments))
app.evaluate()(functools.partial(_serve, EvaluateRequest, tasks.run_evaluate))
app.query("ranges")(functools.partial(_serve, RangesRequest, tasks.run_ranges))
app.evaluate("files")(functools.partial(_serve, VerifyRequest, tasks.run_verify))
