"""Compressed answers: none is asked for, and those that come all the same are read."""

import zlib

COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})
EITHER = 32 + zlib.MAX_WBITS
"""What tells zlib to see by itself which of the two formats it is."""


def decoded(encoding: str, body: bytes, most: int) -> bytes:
    """Return at most `most` bytes of what a body says; the body itself where it cannot be read."""
    if encoding.strip().lower() not in COMPRESSED:
        return body
    reader = zlib.decompressobj(EITHER)
    try:
        text = reader.decompress(body, most)
    except zlib.error:
        return body
    return text if reader.eof or len(text) == most else body
