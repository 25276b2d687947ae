"""A Flower grid in one process: the same ServerApp code, strategy and ClientApp, no network."""

import uuid
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

# Flower has no public way to say which run and node a process speaks for; every Message asks.
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
FIRST_NODE = 100
APP_RAISED = 2


class LocalGrid(Grid):
    """Runs the ClientApp when its reply is pulled, one node after the other.

    A client that raises gives the error reply that Flower's runtime would give.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Sequence[Mapping[str, bool | float | int | str]],
        run_config: Mapping[str, bool | float | int | str] | None = None,
    ) -> None:
        self._app = client_app
        self._run = Run.create_empty(run_id=uuid.uuid4().int >> 65)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
            self._run.run_id,
            SERVER_NODE,
            1,
        )
        self._contexts = {
            FIRST_NODE + place: Context(
                run_id=self._run.run_id,
                node_id=FIRST_NODE + place,
                node_config=dict(node),
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for place, node in enumerate(nodes)
        }
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Take on another run's identity."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message as the deployment runtime's grid would make it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: they are always there."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; they are worked on when their replies are pulled."""
        ids = []
        for message in messages:
            ids.append(str(uuid.uuid4()))
            # The runtime's grids set the id in the same way; the field has no setter.
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the nodes work on these messages, and return their replies."""
        return [self._work(self._waiting.pop(i)) for i in list(message_ids) if i in self._waiting]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull in one; in one process there is nothing to wait for."""
        return self.pull_messages(self.push_messages(messages))

    def _work(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(code=5, reason="no such node"), reply_to=message)
        try:
            return self._app(message=message, context=context)
        except Exception as error:  # noqa: BLE001 - whatever the app raises becomes its reply
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(code=APP_RAISED, reason=reason), reply_to=message)
