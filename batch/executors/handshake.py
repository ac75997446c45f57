"""The token of a Dask cluster: both ends of a connection prove that they know it before Dask reads a byte.

Dask has no token, and whoever may talk to one of its processes may run code in it: its messages hold pickles.
So these backends take the place of Dask's for tcp:// and tls://, and put an exchange of bytes of a fixed size
before Dask's own handshake. Nothing of it is ever deserialised:

    connecting end -> listening end   HELLO, its nonce
    listening end -> connecting end   HELLO, its nonce
    connecting end -> listening end   HMAC-SHA256(token, "connects", both nonces)
    listening end -> connecting end   HMAC-SHA256(token, "listens", both nonces)

An end closes the connection at the first thing that is wrong. The token itself is never sent. Without TLS the
exchange says who opened the connection, but not that nobody between the two changes what follows.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import ssl
from typing import Any

from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.registry import backends
from distributed.comm.tcp import (
    TCPBackend,
    TCPConnector,
    TCPListener,
    TLSBackend,
    TLSConnector,
    TLSListener,
)
from tornado.iostream import StreamClosedError

from contract.settings import TCP, TLS

log = logging.getLogger(__name__)

HELLO = (4096).to_bytes(8, "little") + b"overnight-token1"
"""What both ends send first. An end without a token takes the first eight bytes for the length of a message
of Dask's, and waits for the rest until this end closes the connection."""

NONCE_BYTES = PROOF_BYTES = 32
REFUSED = bytes(PROOF_BYTES)
"""What the listening end sends in place of its proof to one that has another token."""

TIMEOUT_SECONDS = 10
"""How long the listening end waits for the exchange."""

CONNECTS, LISTENS = b"connects", b"listens"


class TokenRefusedError(FatalCommClosedError):  # type: ignore[misc]
    """Raised where the other end has no token, or another one. Dask does not try again."""


def use_token(token: str) -> None:
    """Demand a token of every connection of this process from now on; empty: no token, as Dask does."""
    key = token.encode()
    backends[TCP] = _TcpBackend(key) if token else TCPBackend()
    backends[TLS] = _TlsBackend(key) if token else TLSBackend()


async def prove(stream: Any, key: bytes, peer: str) -> None:
    """Do the exchange as the connecting end.

    Raises
    ------
    TokenRefusedError
        The listening end does not know the token.
    StreamClosedError
        It closed the connection.
    """
    ours = os.urandom(NONCE_BYTES)
    await stream.write(HELLO + ours)
    if await stream.read_bytes(len(HELLO)) != HELLO:
        raise TokenRefusedError(f"{peer} asks for no token: set OVERNIGHT_DASK_TOKEN there too")
    nonces = ours + await stream.read_bytes(NONCE_BYTES)
    await stream.write(_proof(key, CONNECTS, nonces))
    answer = await stream.read_bytes(PROOF_BYTES)
    if not hmac.compare_digest(answer, _proof(key, LISTENS, nonces)):
        raise TokenRefusedError(f"{peer} has another OVERNIGHT_DASK_TOKEN")


async def demand(stream: Any, key: bytes) -> None:
    """Do the exchange as the listening end.

    Raises
    ------
    TokenRefusedError
        The connecting end does not know the token.
    StreamClosedError
        It closed the connection.
    """
    if await stream.read_bytes(len(HELLO)) != HELLO:
        raise TokenRefusedError("it shows no token")
    theirs = await stream.read_bytes(NONCE_BYTES)
    ours = os.urandom(NONCE_BYTES)
    await stream.write(HELLO + ours)
    proof = await stream.read_bytes(PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(key, CONNECTS, theirs + ours)):
        await stream.write(REFUSED)
        raise TokenRefusedError("it has another token")
    await stream.write(_proof(key, LISTENS, theirs + ours))


def _proof(key: bytes, role: bytes, nonces: bytes) -> bytes:
    """Return what only an end that knows the token can compute, for this connection and this role."""
    return hmac.digest(key, role + nonces, "sha256")


class _Connects:
    """Mixin of a connector: proves the token before Dask's handshake."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._key = key

    async def connect(self, address: str, deserialize: bool = True, **options: Any) -> Any:
        """Connect, see `distributed.comm.core.Connector`."""
        connector: Any = super()
        comm = await connector.connect(address, deserialize=deserialize, **options)
        try:
            await prove(comm.stream, self._key, comm.peer_address)
        except StreamClosedError as error:
            comm.abort()
            refused = isinstance(error.real_error, ssl.SSLError)
            kind = FatalCommClosedError if refused else CommClosedError
            raise kind(f"{comm.peer_address}: {error}") from error
        except BaseException:
            comm.abort()
            raise
        return comm


class _Listens:
    """Mixin of a listener: demands the token before Dask's handshake."""

    key: bytes
    tcp_server: Any

    async def on_connection(self, comm: Any, handshake_overrides: dict[str, Any] | None = None) -> None:
        """Admit a peer that knows the token, see `distributed.comm.core.Listener`."""
        try:
            await asyncio.wait_for(demand(comm.stream, self.key), TIMEOUT_SECONDS)
        except (TokenRefusedError, StreamClosedError, TimeoutError) as error:
            peer = comm.peer_address
            comm.abort()
            if isinstance(error, TokenRefusedError):
                log.warning("refused a connection from %s: %s", peer, error)
            elif isinstance(error, TimeoutError):
                log.warning("refused a connection from %s: no token in %s s", peer, TIMEOUT_SECONDS)
            raise CommClosedError(f"{peer} was not admitted") from None
        except BaseException:
            comm.abort()
            raise
        if self.tcp_server is None:  # it stopped meanwhile
            comm.abort()
            raise CommClosedError("the listener has stopped")
        listener: Any = super()
        await listener.on_connection(comm, handshake_overrides)


class _TcpConnector(_Connects, TCPConnector):  # type: ignore[misc]
    pass


class _TlsConnector(_Connects, TLSConnector):  # type: ignore[misc]
    pass


class _TcpListener(_Listens, TCPListener):  # type: ignore[misc]
    pass


class _TlsListener(_Listens, TLSListener):  # type: ignore[misc]
    pass


class _TokenBackend:
    """Mixin of a backend: its connectors and listeners have the token."""

    _connector_class: Any
    _listener_class: Any

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._key = key

    def get_connector(self) -> Any:
        """Return a connector."""
        return self._connector_class(self._key)

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **options: Any) -> Any:
        """Return a listener."""
        listener = self._listener_class(loc, handle_comm, deserialize, **options)
        listener.key = self._key
        return listener


class _TcpBackend(_TokenBackend, TCPBackend):  # type: ignore[misc]
    _connector_class = _TcpConnector
    _listener_class = _TcpListener


class _TlsBackend(_TokenBackend, TLSBackend):  # type: ignore[misc]
    _connector_class = _TlsConnector
    _listener_class = _TlsListener
