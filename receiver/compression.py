"""Compressed deliveries: verified as they came, understood and kept unpacked."""

import zlib
from dataclasses import replace

from receiver.signatures.request import Request

GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say: a gzip header, and no other


def unpacked(request: Request, limit: int) -> Request:
    """Return a gzipped request with its body unpacked, any other as it is.

    So is what does not unpack, or not into `limit` bytes: it will be kept, and a person can look at it.
    """
    if (request.header("content-encoding") or "").strip().lower() != "gzip":
        return request
    unpacking = zlib.decompressobj(GZIP)
    try:
        body = unpacking.decompress(request.body, limit + 1)
    except zlib.error:
        return request
    whole = unpacking.eof and not unpacking.unused_data and len(body) <= limit
    return replace(request, body=body) if whole else request
