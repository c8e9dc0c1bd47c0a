"""A real HTTPS server on loopback in place of the providers' key servers, with its own certificate."""

import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.services.issuing import ec_private

HOST = "127.0.0.1"
PATIENCE = 60


class Publisher:
    """Answers every request with `status`, `headers` and `body` while `gate` is open, and records requests.

    With `drip`, in seconds, the body is sent byte by byte.
    """

    def __init__(self, folder: Path) -> None:
        self.status, self.body, self.headers = 200, b"", dict[str, str]()
        self.gate, self.drip = threading.Event(), 0.0
        self.gate.set()
        self.asked: list[str] = []
        self._file = folder / "publisher.pem"
        self._file.write_bytes(_certificate())
        self._server = ThreadingHTTPServer((HOST, 0), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._file)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def transport(self, *, trusted: bool = True) -> "Redirected":
        """Return an httpx transport that sends every request here, whatever its host."""
        context = ssl.create_default_context(cafile=str(self._file) if trusted else None)
        return Redirected(httpx.HTTPTransport(verify=context), self._server.server_address[1])

    def stop(self) -> None:
        """Stop serving."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


class Redirected(httpx.BaseTransport):
    """A transport to one address; the path, the Host header and TLS stay as requested."""

    def __init__(self, inner: httpx.BaseTransport, port: int) -> None:
        self._inner, self._port = inner, port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to the publisher."""
        request.url = request.url.copy_with(host=HOST, port=self._port)
        return self._inner.handle_request(request)


def _handler(publisher: Publisher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            publisher.asked.append(f"{self.command} https://{self.headers['Host']}{self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            publisher.gate.wait(PATIENCE)
            self.send_response(publisher.status)
            for name, value in publisher.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(publisher.body)))
            self.end_headers()
            self._send()

        do_POST = do_GET  # noqa: N815 - as the server wants it

        def _send(self) -> None:
            size = 1 if publisher.drip else len(publisher.body) or 1
            try:
                for start in range(0, len(publisher.body), size):
                    self.wfile.write(publisher.body[start : start + size])
                    time.sleep(publisher.drip)
            except OSError:
                pass  # nobody waits for it any more

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now, key = datetime.now(UTC), ec_private()
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
