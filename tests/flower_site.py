"""A real server and real devices for tests: processes, sockets, and their end."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from fedofa.server.serve import Addresses, ServeOptions, run_server
from fedofa.server.submit import Apps

HERE = Path(__file__).parent
APPS = Apps("toy_flower_app:server_app", "toy_flower_app:client_app")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE)}

FAKE_DEPOT = (
    sys.executable,
    "-c",
    "import sys, time; print('depot ready', sys.argv[sys.argv.index('--bind') + 1], flush=True); "
    "time.sleep(600)",
)
SERVE = """
import json, sys
from pathlib import Path
from fedofa.server.serve import ServeOptions, serve
state, depot = Path(sys.argv[1]), tuple(json.loads(sys.argv[2]))
options = ServeOptions(state, state / "registry", port=0, depot_port=0, depot_command=depot,
                       on_ready=lambda found: print(found.devices, flush=True))
sys.exit(serve(options))
"""
JOIN = """
import json, sys
from pathlib import Path
from fedofa.client.join import JoinOptions, join
from fedofa.supernet.errors import FedofaError
fields = json.loads(sys.argv[1])
if "root_certificates" in fields:
    fields["root_certificates"] = Path(fields["root_certificates"])
try:
    sys.exit(join(JoinOptions(**fields, on_joined=lambda node: print("joined", node, flush=True))))
except FedofaError as error:
    sys.stderr.write(f"{error}\\n")
    sys.exit(error.exit_code)
"""


@dataclass(frozen=True)
class Server:
    addresses: Addresses
    options: ServeOptions


@contextmanager
def server(state: Path, **fields: object) -> Iterator[Server]:
    """A server in this process's threads and child processes, with a depot that does nothing."""
    os.environ["PYTHONPATH"] = str(HERE)
    ready, stop, found = threading.Event(), threading.Event(), []

    def on_ready(addresses: Addresses) -> None:
        found.append(addresses)
        ready.set()

    options = ServeOptions(
        state,
        state / "registry",
        **{
            "port": 0,
            "depot_port": 0,
            "depot_command": FAKE_DEPOT,
            "on_ready": on_ready,
            **fields,
        },  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=run_server, args=(options, stop), daemon=True)
    thread.start()
    try:
        assert ready.wait(60), "the server did not start"
        yield Server(found[0], options)
    finally:
        stop.set()
        thread.join(30)


def device(address: str, **fields: object) -> "subprocess.Popen[str]":
    """A device's process; its output is its node ids, its errors text."""
    options = {"server": address, "client_app": APPS.client_app, **fields}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )


def node_id(process: "subprocess.Popen[str]") -> int:
    """Waits until the device has joined."""
    assert process.stdout is not None
    word, number = process.stdout.readline().split()
    assert word == "joined"
    return int(number)


def end(process: "subprocess.Popen[str]", number: int = 15) -> str:
    """End a device and give what it wrote to its error output."""
    with process:
        process.send_signal(number)
        return process.communicate(timeout=20)[1]


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descends from it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def left(processes: list[psutil.Process], within_s: float = 15) -> list[str]:
    """Those that still run after a while."""
    end_s = time.monotonic() + within_s
    while True:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive or time.monotonic() > end_s:
            return [" ".join(p.cmdline()) for p in alive]
        time.sleep(0.1)


def config(out: Path, **fields: object) -> Mapping[str, str | int | float | bool]:
    """A run's configuration for the toy ServerApp."""
    return {
        "out": str(out),
        "nodes": 1,
        "rounds": 1,
        "values": 1000,
        "fail": False,
        "bytes": False,
        "trick-round": 0,
        "pause": 0.0,
        "ttl": 60.0,
        "greeting": "hello",
        **fields,  # type: ignore[dict-item]
    }


def rounds(out: Path) -> list[dict[str, list[object]]]:
    """What the toy ServerApp noted for each round."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return [line for line in lines if line["event"] == "round"]


def errors(found: dict[str, list[object]]) -> list[tuple[int, str]]:
    """The error replies of one round: code and reason."""
    pairs: list[tuple[int, str]] = []
    for pair in found["errors"]:
        assert isinstance(pair, list)
        pairs.append((int(pair[0]), str(pair[1])))
    return pairs
