"""How Flower's own server processes are run: one SuperLink and one SuperExec.

`--isolation process`, a separate SuperExec and a database file together let a run survive a killed
SuperLink. The SuperLink listens on loopback only: whoever reaches its control paths can run code
on the server and on every node. Devices come in through the gateway.
"""

import http.client
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ..supernet.errors import RunError
from .children import Child

LOOPBACK = "127.0.0.1"

# Flower reads these when it is imported, so they are set before a process starts.
QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def superlink(state: Path, port: int, durable: bool = True) -> Child:
    """The SuperLink on a loopback port, with its database in the state folder if `durable`.

    In memory it needs 0.4 times the CPU per message, and a crash ends every run.
    """
    address = f"{LOOPBACK}:{port}"
    command = (
        _script("flower-superlink"),
        "--insecure",
        "--host",
        LOOPBACK,
        "--port",
        str(port),
        "--isolation",
        "process",
        "--disable-runtime-dependency-installation",
        *(("--database", str(state / "flower.db")) if durable else ()),
    )
    return Child("superlink", command, lambda _log: healthy(address), environment(state))


def superexec(state: Path, port: int) -> Child:
    """The SuperExec, which starts a process for each ServerApp."""
    command = (
        _script("flower-superexec"),
        "--insecure",
        "--runtime-api-address",
        f"{LOOPBACK}:{port}",
    )
    return Child("superexec", command, env=environment(state))


def environment(state: Path) -> dict[str, str]:
    """What every Flower process gets: no calls home, its files in the state folder."""
    # The SuperExec finds the commands that it starts by name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**QUIET, "FLWR_HOME": str(state / "flwr"), "PATH": path, "PYTHONUNBUFFERED": "1"}


def healthy(address: str, timeout_s: float = 2.0) -> bool:
    """Whether the SuperLink at HOST:PORT answers its health check."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _script(name: str) -> str:
    # Beside the interpreter that runs us: the environment need not be activated.
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RunError(f"{name} not found beside {sys.executable}; install fedofa[server]")
    return found
