"""A ServerApp and a ClientApp as small as they can be: the server adds up what devices send back."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Add one to what came; do what the message or the device's config says beside that."""
    config = message.content["config"]
    node = context.node_config
    trick = str(node.get("trick", "")) if config["round"] == config["trick-round"] else ""
    if trick == "raise":
        raise ValueError("no such data folder")
    if trick == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trick == "exit":
        sys.exit(3)
    if trick == "hang":
        time.sleep(3600)
    context.state["seen"] = MetricRecord({"count": _seen(context) + 1})
    values = _values(message.content)
    reply = RecordDict(
        {
            "values": _record(values + np.float32(1), "flat" in message.content["values"]),
            "metrics": MetricRecord({"seen": _seen(context), "pid": os.getpid()}),
            "config": ConfigRecord(
                {
                    "device": str(node.get("device", node.get("partition-id", ""))),
                    "greeting": str(context.run_config.get("greeting", "")),
                }
            ),
        }
    )
    return Message(reply, reply_to=message)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Say who this is."""
    config = ConfigRecord({"device": str(context.node_config.get("device", ""))})
    return Message(RecordDict({"config": config}), reply_to=message)


def _seen(context: Context) -> int:
    seen = context.state.metric_records.get("seen", MetricRecord({"count": 0}))
    return int(str(seen["count"]))


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """`rounds` rounds with `nodes` nodes; one JSON line per round goes to the file `out`."""
    config = context.run_config
    out = Path(str(config["out"]))
    _note(out, event="main", time=time.time())
    if config["fail"]:
        raise RuntimeError("the job file is not there")
    nodes = sorted(_nodes(grid, int(config["nodes"])))
    values = np.zeros(int(config["values"]), np.float32)
    for number in range(1, int(config["rounds"]) + 1):
        begin_s = time.monotonic()
        replies = list(_ask(grid, nodes, values + np.arange(values.size) % 7, number, config))
        good = [reply.content for reply in replies if reply.has_content()]
        _note(
            out,
            event="round",
            round=number,
            seconds=time.monotonic() - begin_s,
            devices=sorted(str(c["config"]["device"]) for c in good),
            greetings=sorted({str(c["config"]["greeting"]) for c in good}),
            seen=sorted(int(str(c["metrics"]["seen"])) for c in good),
            pids=sorted(int(str(c["metrics"]["pid"])) for c in good),
            sums=[float(_values(c)[:8].sum()) for c in good],
            errors=[[r.error.code, r.error.reason] for r in replies if r.has_error()],
        )
        time.sleep(float(config["pause"]))


def _nodes(grid: Grid, count: int) -> list[int]:
    end_s = time.monotonic() + 60
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > end_s:
            raise RuntimeError(f"{len(nodes)} of {count} nodes came")
        time.sleep(0.1)
    return nodes


def _ask(grid: Grid, nodes: list[int], values, number: int, config) -> list[Message]:  # type: ignore[no-untyped-def]
    messages = []
    for index, node in enumerate(nodes):
        content = RecordDict(
            {
                "values": _record((values + index).astype(np.float32), not config["bytes"]),
                "config": ConfigRecord(
                    {"round": number, "trick-round": int(config["trick-round"])}
                ),
            }
        )
        messages.append(Message(content, node, "train", ttl=float(config["ttl"])))
    waiting = [*grid.push_messages(messages)]
    replies: list[Message] = []
    end_s = time.monotonic() + float(config["ttl"])
    while waiting and time.monotonic() < end_s:
        came = list(grid.pull_messages(waiting))
        replies.extend(came)
        done = {reply.metadata.reply_to_message_id for reply in came}
        waiting = [message for message in waiting if message not in done]
        if waiting:
            time.sleep(0.3)
    return replies


def _record(values, as_array: bool) -> ArrayRecord | ConfigRecord:  # type: ignore[no-untyped-def]
    if as_array:
        return ArrayRecord({"flat": Array(values)})
    return ConfigRecord({"bytes": values.tobytes()})


def _values(records: RecordDict):  # type: ignore[no-untyped-def]
    record = records["values"]
    if isinstance(record, ArrayRecord):
        return record["flat"].numpy()
    assert isinstance(record, ConfigRecord)
    content = record["bytes"]
    assert isinstance(content, bytes)
    return np.frombuffer(content, np.float32)


def _note(out: Path, **fields: object) -> None:
    with out.open("a") as file:
        file.write(json.dumps(fields) + "\n")
