"""Serving over TLS: Redis is read as over a plain connection, by connections opened off the request path."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import trustme
from redis.connection import Connection

from benchmarks.faults.tls_terminator import TlsTerminator
from demo.processes import free_port
from serving.app import EXTENSION
from tests.support.gunicorn import get, gunicorn
from tests.support.serving import KNOWN_USER, ask, publish, recommend, serving, settings_for, wait_until

PATH = f"/users/{KNOWN_USER}/recommendations"
THREADS, REQUESTS = 16, 64


@dataclass(frozen=True)
class TlsServer:
    """A Redis with one run: its URL, a URL that does not trust its certificate, and a plain client."""

    url: str
    untrusted_url: str
    client: redis.Redis

    def kill_connections(self) -> None:
        """Close the connections of all other clients, as a failover does."""
        self.client.client_kill_filter(_type="normal", skipme=True)


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


@contextmanager
def run_terminator(pem: Path, plain_url: str) -> Iterator[tuple[int, str]]:
    """Terminate TLS in front of the embedded Valkey, which is built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with TlsTerminator(port_of(plain_url), context) as terminator:
        yield terminator.port, plain_url


@contextmanager
def run_native(pem: Path, _: str) -> Iterator[tuple[int, str]]:
    """Run a Redis or Valkey of this machine that is built with TLS."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        pytest.skip("no valkey-server or redis-server on the path (Debian: apt-get install redis-server)")
    port, tls_port = free_port(), free_port()
    options = {
        "port": port, "tls-port": tls_port, "bind": "127.0.0.1", "save": "", "dir": pem.parent,
        "tls-cert-file": pem, "tls-key-file": pem, "tls-ca-cert-file": pem, "tls-auth-clients": "no",
    }  # fmt: skip
    command = [program, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port) as client:
                wait_until(lambda: process.poll() is not None or _answers(client))
            if process.poll() is not None:
                pytest.skip(f"{program} is built without TLS")
            yield tls_port, f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(params=[run_terminator, run_native])
def server(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[TlsServer]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    with request.param(tmp_path / "own.pem", redis_url) as (port, plain_url):
        url = f"rediss://127.0.0.1:{port}/0"
        with redis.Redis.from_url(plain_url, decode_responses=True) as client:
            publish(client)
            yield TlsServer(f"{url}?ssl_ca_certs={tmp_path}/ca.pem", url, client)


def count_personal(ask_one: Callable[[int], str]) -> int:
    """Ask from many threads at once; return how many answers came from the user's own list."""
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(source == "personal" for source in pool.map(ask_one, range(REQUESTS)))


def test_redis_is_read_over_tls_and_only_from_a_server_that_is_trusted(server: TlsServer) -> None:
    with serving(settings_for(server.url)) as app:
        assert recommend(app, KNOWN_USER)["source"] == "personal"
    with serving(settings_for(server.untrusted_url)) as app:
        ask(app, PATH, 503)


def test_a_certificate_is_replaced_without_a_restart(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    publish(redis_client)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def replace_certificate() -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        authority.issue_cert("127.0.0.1").configure_cert(context)

    replace_certificate()
    with TlsTerminator(port_of(redis_url), context) as terminator:
        url = f"rediss://127.0.0.1:{terminator.port}/0?ssl_ca_certs={tmp_path}/ca.pem"
        with serving(settings_for(url)) as app:
            assert recommend(app, KNOWN_USER)["source"] == "personal"
            replace_certificate()
            terminator.cut()
            wait_until(lambda: recommend(app, KNOWN_USER)["source"] == "personal")


def test_one_context_serves_all_connections(server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: contexts.append(None) or create())
    with serving(settings_for(server.url)) as app:
        assert count_personal(lambda _: recommend(app, KNOWN_USER)["source"]) == REQUESTS
        server.kill_connections()
        assert count_personal(lambda _: recommend(app, KNOWN_USER)["source"]) == REQUESTS
    assert len(contexts) == 1


def test_no_request_opens_a_connection(server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting: list[threading.Thread] = []
    connect = Connection._connect

    def record(connection: Connection) -> object:
        connecting.append(threading.current_thread())
        return connect(connection)

    with serving(settings_for(server.url)) as app:
        app.extensions[EXTENSION].live.start()  # as a worker does before it accepts requests
        monkeypatch.setattr(Connection, "_connect", record)
        assert count_personal(lambda _: recommend(app, KNOWN_USER)["source"]) == REQUESTS
        server.kill_connections()
        assert count_personal(lambda _: recommend(app, KNOWN_USER)["source"]) == REQUESTS
    assert connecting
    assert {thread.name for thread in connecting} == {"redis connect"}


def test_cold_requests_and_those_after_connections_were_killed_are_personal(
    server: TlsServer, tmp_path: Path
) -> None:
    """Under gunicorn, with a long timeout, so that a busy machine does not look like a dead Redis."""
    port = free_port()
    timeout = {"OVERNIGHT_REDIS_TIMEOUT_MS": "1000"}

    def ask_gunicorn(_: int) -> str:
        return str(get(port, PATH).json["source"])

    log = tmp_path / "log"
    with gunicorn(server.url, port, log, **timeout):
        wait_until(lambda: get(port, "/healthz").status == 200)
        assert count_personal(ask_gunicorn) == REQUESTS, log.read_text()
        for _ in range(3):
            server.kill_connections()
            assert count_personal(ask_gunicorn) == REQUESTS, log.read_text()
    assert "did not answer" not in log.read_text()
