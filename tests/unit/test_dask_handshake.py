"""The token of a Dask cluster: who is let in, and that nothing of a stranger's bytes is deserialised."""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives import serialization
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol.utils import pack_frames

from batch.executors import handshake
from batch.executors.handshake import HELLO, TokenRefusedError, use_token
from batch.executors.security import configure
from contract.errors import DaskError, SettingsError
from contract.settings import Settings
from tests.support.dask_certificates import write_certificates

TOKEN, OTHER = "right-token-0123456789", "other-token-0123456789"


@pytest.fixture(autouse=True)
def _no_token_after_the_test() -> Iterator[None]:
    yield
    use_token("")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return settings with the files of one authority."""
    written = write_certificates(tmp_path_factory.mktemp("certificates"))
    return {f"dask_tls_{name}": path for name, path in written.items()}


class Listening:
    """A listener of Dask's that answers each message; it keeps what it was sent."""

    def __init__(self, scheme: str = "tcp", settings: Settings | None = None) -> None:
        self.security = configure(settings or Settings())
        self.heard: list[Any] = []
        self.listener = listen(
            f"{scheme}://127.0.0.1:0", self._answer, **self.security.get_listen_args("scheduler")
        )

    async def _answer(self, comm: Any) -> None:
        try:
            self.heard.append(await comm.read())
            await comm.write("heard")
        except CommClosedError:
            pass
        finally:
            await comm.close()

    async def __aenter__(self) -> Listening:
        await self.listener.start()
        self.address = str(self.listener.contact_address)
        self.port = int(self.address.rpartition(":")[2])
        return self

    async def __aexit__(self, *ignored: object) -> None:
        self.listener.stop()


async def ask(listening: Listening, token: str | None = None) -> Any:
    """Send a message with another token than the listener's, unless it is None."""
    if token is not None:
        use_token(token)
    comm = await connect(listening.address, timeout=2, **listening.security.get_connection_args("client"))
    try:
        await comm.write("hello")
        return await comm.read()
    finally:
        await comm.close()


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_who_has_the_token_is_heard(scheme: str, certificates: dict[str, str]) -> None:
    settings = Settings.of(dask_token=TOKEN, **(certificates if scheme == "tls" else {}))

    async def exchange() -> None:
        async with Listening(scheme, settings) as listening:
            assert await ask(listening) == "heard"
            assert listening.heard == ["hello"]

    asyncio.run(exchange())


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest.mark.parametrize(("token", "reason"), [(OTHER, "it has another token"), ("", "it shows no token")])
def test_a_stranger_is_not_heard_and_the_log_has_no_token(
    scheme: str,
    token: str,
    reason: str,
    certificates: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = Settings.of(dask_token=TOKEN, **(certificates if scheme == "tls" else {}))

    async def exchange() -> None:
        async with Listening(scheme, settings) as listening:
            with pytest.raises(CommClosedError) as refused:
                await ask(listening, token)
            assert isinstance(refused.value, TokenRefusedError) == bool(token)
            assert listening.heard == []
            assert TOKEN not in str(refused.value)
            assert OTHER not in str(refused.value)

    asyncio.run(exchange())
    (line,) = [r.getMessage() for r in caplog.records if r.name == handshake.__name__]
    assert reason in line
    assert TOKEN not in caplog.text
    assert OTHER not in caplog.text


def test_a_listener_without_a_token_is_not_talked_to() -> None:
    async def exchange() -> None:
        async with Listening() as listening:
            with pytest.raises(TokenRefusedError, match="asks for no token"):
                await ask(listening, TOKEN)
            assert listening.heard == []

    asyncio.run(exchange())


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def message_that_runs_code(path: Path) -> bytes:
    """Return a message of Dask's with a pickle that makes a file when it is read."""
    header = msgpack.packb({"pickled-obj": pickle.dumps(Touch(path)), "num-sub-frames": 0})
    frames = pack_frames([msgpack.packb({"__Pickled__": 1}), header])
    return struct.pack("<Q", len(frames)) + frames


async def send(port: int, *sent: bytes) -> bytes:
    """Send bytes to a port, and return all that it answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for each in sent:
        writer.write(each)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "first", [b"", HELLO, HELLO + bytes(32), HELLO + bytes(64)], ids=["nothing", "hello", "nonce", "no proof"]
)
def test_no_pickle_of_a_stranger_is_read(first: bytes, tmp_path: Path) -> None:
    evil = message_that_runs_code(tmp_path / "made")

    async def exchange() -> None:
        async with Listening(settings=Settings.of(dask_token=TOKEN)) as listening:
            await send(listening.port, first, evil)

    asyncio.run(exchange())
    assert not (tmp_path / "made").exists()


def test_dask_alone_reads_a_pickle_of_a_stranger(tmp_path: Path) -> None:
    evil = message_that_runs_code(tmp_path / "made")

    async def exchange() -> None:
        async with Listening() as listening, asyncio.timeout(30):
            _, writer = await asyncio.open_connection("127.0.0.1", listening.port)
            writer.write(evil)
            while not (tmp_path / "made").exists():
                await asyncio.sleep(0.01)
            writer.close()

    asyncio.run(exchange())


def test_who_sends_back_what_the_listener_sends_is_not_admitted() -> None:
    async def exchange() -> None:
        async with Listening(settings=Settings.of(dask_token=TOKEN)) as listening:
            reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
            writer.write(HELLO + bytes(32))
            greeting = await reader.readexactly(len(HELLO) + 32)
            writer.write(greeting[-32:])
            assert await reader.read() == handshake.REFUSED
            writer.close()
            assert listening.heard == []

    asyncio.run(exchange())


def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "TIMEOUT_SECONDS", 0.05)

    async def exchange() -> None:
        async with Listening(settings=Settings.of(dask_token=TOKEN)) as listening:
            assert await send(listening.port) == b""

    asyncio.run(exchange())


def test_files_of_tls_that_cannot_be_used_are_named(certificates: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="TLS for Dask needs OVERNIGHT_DASK_TLS_KEY too"):
        configure(Settings.of(**{**certificates, "dask_tls_key": ""}))
    with pytest.raises(DaskError, match=r"OVERNIGHT_DASK_TLS_CA=.* cannot be read: No such file"):
        configure(Settings.of(**{**certificates, "dask_tls_ca": str(tmp_path / "none")}))
    (tmp_path / "text").write_text("text")
    with pytest.raises(DaskError, match="TLS cannot use OVERNIGHT_DASK_TLS_CA="):
        configure(Settings.of(**{**certificates, "dask_tls_cert": str(tmp_path / "text")}))
    key = serialization.load_pem_private_key(Path(certificates["dask_tls_key"]).read_bytes(), password=None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    with pytest.raises(DaskError, match="the key has a password"):
        configure(Settings.of(**{**certificates, "dask_tls_key": str(locked)}))
    assert configure(Settings.of(**certificates)).require_encryption
