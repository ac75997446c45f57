"""The console under gunicorn while clients send nothing or half a request, or wait for a frozen Postgres."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import redis

from demo.gunicorn import http_get
from tests.support.browser import run_console
from tests.support.operators import LiveNetwork

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
BODY = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nname"
CHUNKS = BODY.replace(b"Content-Length: 9", b"Transfer-Encoding: chunked").replace(b"name", b"ZZ\r\nname")
CLOSE = HEAD + b"Connection: close\r\n\r\n"


def test_slow_clients_and_a_frozen_postgres_stop_nobody_else(tmp_path: Path) -> None:
    with ExitStack() as stack:
        postgres = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=50))
        postgres.settimeout(20)
        database_url = f"postgresql://postgres@127.0.0.1:{postgres.getsockname()[1]}/postgres"
        cache = redis.Redis()
        servers = LiveNetwork(database_url, "redis://127.0.0.1:1/0", tmp_path, cache)
        url = stack.enter_context(run_console(servers, tmp_path))

        def send(sent: bytes) -> socket.socket:
            address = urlsplit(url)
            client = socket.create_connection((address.hostname, address.port or 0), timeout=20)
            client.sendall(sent)
            return stack.enter_context(client)

        # Each kind alone would stop gunicorn's own worker with as many threads, for ten seconds or for good.
        silent = [send(b"") for _ in range(100)]
        unread = [send(CLOSE) for _ in range(16)]
        heads, bodies = [send(HEAD) for _ in range(8)], [send(BODY) for _ in range(8)]
        threads = stack.enter_context(ThreadPoolExecutor(12))
        pages = [threads.submit(http_get, f"{url}/runs") for _ in range(12)]
        for _ in pages:
            stack.enter_context(postgres.accept()[0])
        assert http_get(f"{url}/healthz").status == 200
        assert send(CHUNKS).recv(12) == b"HTTP/1.1 400"
        assert {page.result().status for page in pages} == {200}
        assert all("Not read" in page.result().body for page in pages)

        # A request that does not arrive in time is given up; who answers slowly at first is answered.
        assert {client.recv(100) for client in heads} == {b""}
        assert {client.recv(12) for client in bodies} == {b"HTTP/1.1 400"}
        assert {client.recv(12) for client in unread} == {b"HTTP/1.1 200"}
        silent[0].sendall(CLOSE)
        assert silent[0].recv(12) == b"HTTP/1.1 200"
