"""The body of the present request, exact and bounded."""

from flask import request
from werkzeug.exceptions import ClientDisconnected


def read_at_most(limit: int) -> bytes:
    """Return the body, or `limit` bytes of a longer one; raises ClientDisconnected when it ends too early.

    werkzeug's own `max_content_length` silently cuts a chunked body, and a cut body may not be answered 200.
    """
    length = request.environ.get("CONTENT_LENGTH", "")
    chunked = "HTTP_TRANSFER_ENCODING" in request.environ
    if chunked or not (length.isascii() and length.isdecimal()):
        return _read_stream(limit)
    if int(length) > limit:
        return bytes(limit)
    return _read_exactly(int(length))


def _read_exactly(length: int) -> bytes:
    # No stream in between: that costs as much as the signature.
    body: bytes = request.environ["wsgi.input"].read(length)
    while len(body) < length:
        part = request.environ["wsgi.input"].read(length - len(body))
        if not part:
            raise ClientDisconnected
        body += part
    return body


def _read_stream(limit: int) -> bytes:
    parts, room = [], limit
    while room and (part := request.stream.read(room)):
        parts.append(part)
        room -= len(part)
    return b"".join(parts)
