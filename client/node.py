"""A device's side of Flower's Fleet API: take a message, hand it on, send the reply.

Flower's own connection does registration, signatures, heartbeats and retries. The loop around it
is ours, because `flower-supernode` sleeps 3 s between messages, waits for a ClientApp for ever,
and installs and runs the code that the server sends. Here the server's app bundle is read for its
configuration only; the code that runs is the one installed on the device.

Everything here uses Flower internals of the pinned version; nothing else on the device does.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.common.config import get_fused_config_from_fab
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.fleet_http_connection import http_request_response

_log = logging.getLogger(__name__)

# A message can be seen a moment before its objects are uploaded; Flower would then pause 1 s.
OBJECT_PAUSE_S = 0.05
OBJECT_PAUSE_MAX_S = 2.0
OBJECT_WAIT_S = 180.0
# Right after a message the next one is near; then each look costs the server 20 ms for nothing.
IDLE_GROWTH = 1.15
ASKING_SHARE = 8
# State of a run's ClientApp is kept for this many runs, the latest ones.
MAX_RUNS = 8


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How a node connects and how often it asks for work (`poll_s`, up to `idle_poll_s`)."""

    server: str
    insecure: bool
    root_certificates: Path | None
    node_config: UserConfig
    retry_for_s: float
    poll_s: float
    idle_poll_s: float


@dataclass(frozen=True, slots=True)
class FleetConnection:
    """The callbacks of Flower's Fleet connection, by name."""

    node_id: int
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    get_run: Callable[[int], Run]
    get_fab: Callable[[str, int], Fab]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


def run_node(options: NodeOptions, executor: Connection) -> None:
    """Serve as a node until the connection is lost for good or the process is ended.

    Announces itself to the executor with its node id (decimal text), then sends a context and a
    message per task and expects a context and a message back, each as Flower's protobuf bytes.
    """
    with _connected(options) as fleet:
        executor.send_bytes(str(fleet.node_id).encode())
        contexts: dict[int, Context] = {}
        pause_s = options.poll_s
        while True:
            begin_s = time.monotonic()
            if _serve_one(fleet, options.node_config, contexts, executor):
                pause_s = options.poll_s
                continue
            asked_s = time.monotonic() - begin_s
            # A server under load is asked less often, by every node that notices.
            time.sleep(max(pause_s, ASKING_SHARE * asked_s))
            pause_s = min(pause_s * IDLE_GROWTH, options.idle_poll_s)


@contextmanager
def _connected(options: NodeOptions) -> Iterator[FleetConnection]:
    with http_request_response(
        options.server,
        options.insecure,
        str(options.root_certificates) if options.root_certificates else None,
        max_wait_time=options.retry_for_s,
    ) as callbacks:
        yield FleetConnection(*callbacks)


def _serve_one(
    fleet: FleetConnection,
    node_config: UserConfig,
    contexts: dict[int, Context],
    executor: Connection,
) -> bool:
    """Take and answer one message, if there is one."""
    try:
        received = fleet.receive()
        if received is None:
            return False
        header, tree = received
        run_id = header.metadata.run_id
        if run_id not in contexts:
            contexts[run_id] = _context(fleet, run_id, node_config)
            if len(contexts) > MAX_RUNS:
                del contexts[next(iter(contexts))]
        message = _pull(fleet, run_id, tree)
        begin_s = time.monotonic()
        reply, contexts[run_id] = _execute(executor, message, contexts[run_id])
        _push(fleet, run_id, reply, time.monotonic() - begin_s)
    except RunNotRunningException:
        _log.info("the run has ended; its message is dropped")
    except (ObjectPullError, ObjectPushError) as error:
        _log.warning("a message was lost on its way: %s", error)
    return True


def _context(fleet: FleetConnection, run_id: int, node_config: UserConfig) -> Context:
    run = fleet.get_run(run_id)
    fab = fleet.get_fab(run.fab_hash, run_id)
    return Context(
        run_id=run_id,
        node_id=fleet.node_id,
        node_config=node_config,
        state=RecordDict(),
        run_config=get_fused_config_from_fab(fab.content, run),
        series_id=run.series_id,
    )


def _pull(fleet: FleetConnection, run_id: int, tree: ObjectTree) -> Message:
    contents = pull_objects(
        [part.object_id for part in iterate_object_tree(tree)],
        partial(fleet.pull_object, run_id),
        max_time=OBJECT_WAIT_S,
        initial_backoff=OBJECT_PAUSE_S,
        backoff_cap=OBJECT_PAUSE_MAX_S,
    )
    fleet.confirm(run_id, tree.object_id)
    message = inflate_object_from_contents(tree.object_id, contents)
    if not isinstance(message, Message):
        raise ObjectPullError(tree.object_id, f"not a message but a {type(message).__name__}")
    # A message's id is its object's id, which its own bytes cannot hold.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _execute(executor: Connection, message: Message, context: Context) -> tuple[Message, Context]:
    executor.send_bytes(context_to_proto(context).SerializeToString())
    executor.send_bytes(message_to_proto(message).SerializeToString())
    context = context_from_proto(ProtoContext.FromString(executor.recv_bytes()))
    reply = message_from_proto(ProtoMessage.FromString(executor.recv_bytes()))
    return reply, context


def _push(fleet: FleetConnection, run_id: int, reply: Message, runtime_s: float) -> None:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        wanted, session = fleet.send(reply, get_object_tree(reply), runtime_s)
        push_objects(
            get_all_nested_objects(reply),
            partial(fleet.push_object, run_id, session),
            object_ids_to_push=wanted,
        )
