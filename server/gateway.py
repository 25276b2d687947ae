"""What devices reach of Flower: the Fleet paths, and nothing else.

The SuperLink serves control, runtime and fleet paths on one port, and whoever reaches the control
paths can run code on the server and on every node. So it listens on loopback, and devices talk to
this reverse proxy, which passes an exact list of paths and refuses everything else itself.

Run as `python -m fedofa.server.gateway --upstream HOST:PORT --bind HOST:PORT`.
"""

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send

FLEET_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "register-node",
        "activate-node",
        "deactivate-node",
        "unregister-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
HEALTH_PATH = "/health"
# Flower cuts arrays into objects of 5 MiB; a message's own request holds its tree of objects.
MAX_BODY_BYTES = 32 * 1024 * 1024
BODY_TIMEOUT_S = 600.0
UPSTREAM_TIMEOUT_S = 120.0
MAX_REQUESTS_AT_ONCE = 256
# Bodies are held whole on their way, so that a slow device keeps nobody else waiting.
MAX_HELD_BYTES = 512 * 1024 * 1024
# The SuperLink uses one core and one database: more at once only wait for its locks.
UPSTREAM_AT_ONCE = 2
# They describe one connection and not the message (RFC 9110, 7.6.1); `host` names the server.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade host expect".split()
)

Headers = list[tuple[bytes, bytes]]

_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that is answered here and not passed on."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class FleetGateway:
    """ASGI application: a reverse proxy for Flower's Fleet paths."""

    def __init__(self, upstream: str, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._slots = asyncio.Semaphore(UPSTREAM_AT_ONCE)
        self._held_bytes = 0
        self._client = httpx.AsyncClient(
            base_url=f"http://{upstream}",
            timeout=httpx.Timeout(UPSTREAM_TIMEOUT_S, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            # The proxy settings of the machine are for the internet, not for loopback.
            trust_env=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            path = self._check(scope)
            if path == HEALTH_PATH:
                await _answer(send, HTTPStatus.OK, "ok")
            else:
                await self._pass_on(path, scope, receive, send)
        except RefusedError as refusal:
            await _answer(send, refusal.status, str(refusal))

    def _check(self, scope: Scope) -> str:
        """The path, when the request may be answered; no parsing beyond comparing it."""
        path: str = scope["raw_path"].decode("latin-1")
        if path == HEALTH_PATH and scope["method"] == "GET":
            return path
        if path not in FLEET_PATHS:
            client = (scope.get("client") or ("?",))[0]
            _log.warning("refused %s %.200r from %s", scope["method"], path, client)
            raise RefusedError(HTTPStatus.NOT_FOUND, "devices reach only Flower's fleet paths here")
        if scope["method"] != "POST":
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "POST only")
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdigit():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "one Content-Length is required")
        if len(lengths[0]) > 12 or int(lengths[0]) > self._max_body_bytes:
            limit = f"the limit is {self._max_body_bytes} bytes"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, limit)
        return path

    async def _pass_on(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        with self._holding(int(dict(scope["headers"])[b"content-length"])):
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    body = await _read(receive)
            except TimeoutError:
                raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly") from None
            if body is None:
                return
            response = await self._ask(path, scope, body)
        headers = _end_to_end(response.headers.raw)
        with self._holding(len(response.content)):
            await send(
                {"type": "http.response.start", "status": response.status_code, "headers": headers}
            )
            await send({"type": "http.response.body", "body": response.content})

    async def _ask(self, path: str, scope: Scope, body: bytes) -> httpx.Response:
        # What comes back is passed on as it is, so it must not come compressed.
        headers = [
            *(pair for pair in _end_to_end(scope["headers"]) if pair[0] != b"accept-encoding"),
            (b"accept-encoding", b"identity"),
        ]
        try:
            async with self._slots:
                return await self._client.post(path, headers=headers, content=body)
        except httpx.HTTPError:
            # Flower's nodes try again after 503, with growing pauses.
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is restarting") from None

    @contextmanager
    def _holding(self, size_bytes: int) -> Iterator[None]:
        if self._held_bytes + size_bytes > MAX_HELD_BYTES:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too much at once; try again")
        self._held_bytes += size_bytes
        try:
            yield
        finally:
            self._held_bytes -= size_bytes

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "lifespan.shutdown":
                await self._client.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})


async def _read(receive: Receive) -> bytes | None:
    """The request's body, as long as its Content-Length; None when the device hung up."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message.get("more_body"):
            return bytes(body)


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]


async def _answer(send: Send, status: HTTPStatus, text: str) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
    ]
    if status is not HTTPStatus.OK:
        # Whatever of the body is still on its way is not read.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            sys.stdout.write(f"gateway ready {host}:{port}\n")
            sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--bind", required=True, metavar="HOST:PORT")
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    options = parser.parse_args(arguments)
    host, _, port = options.bind.rpartition(":")
    config = uvicorn.Config(
        FleetGateway(options.upstream),
        host=host.strip("[]"),
        port=int(port),
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        lifespan="on",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_REQUESTS_AT_ONCE,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    logging.basicConfig(level=logging.WARNING)
    _Server(config).run()


if __name__ == "__main__":
    main()
