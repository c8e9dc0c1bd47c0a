"""A broker behind TLS with a self-signed certificate, as on Heroku."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.conftest import Deploy
from tests.services.databases import Databases
from tests.services.valkey import Valkey


@pytest.fixture
def tls_port(tmp_path: Path, valkey: Valkey) -> Iterator[int]:
    """Put a TLS server with a self-signed certificate in front of `valkey` and return its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))

    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", valkey.port)
        writers.extend((writer, outer))
        await asyncio.gather(pump(reader, outer), pump(inner, writer), return_exceptions=True)

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # An unclosed connection is a ResourceWarning, and so a failure of a later test.
        for writer in writers:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    asyncio.run_coroutine_threadsafe(end(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
    loop.close()


def self_signed(folder: Path) -> Path:
    """Make a self-signed certificate for another name; return the file with it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    pem = Encoding.PEM
    secret = key.private_bytes(pem, PrivateFormat.PKCS8, NoEncryption())
    file = folder / "certificate.pem"
    file.write_bytes(made.sign(key, SHA256()).public_bytes(pem) + secret)
    return file


def test_nudges_go_through_tls(databases: Databases, tls_port: int, deploy: Deploy) -> None:
    """With `rediss://` and a self-signed certificate, nudges reach the worker without the sweeper."""
    url = f"rediss://127.0.0.1:{tls_port}/0"
    deployment = deploy(databases.migrated("sqlite"), url, env={"FIRSTSEEN_SWEEP": "10min"}).start()
    ids = [f"evt_{number}" for number in range(10)]
    assert {answer.status_code for answer in deployment.deliver_many(ids)} == {200}
    deployment.wait_handled(ids)
