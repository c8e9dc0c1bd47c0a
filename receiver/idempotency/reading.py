"""A request's body, read once and whole or refused."""

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge

from receiver.idempotency.policy import Refusal

BODY_MAX = 1024 * 1024
"""Bytes of a request that is guarded by a key: what is fingerprinted is held in memory."""


def read_body(request: Request, limit: int = BODY_MAX) -> bytes:
    """Return the body and leave it readable for the view.

    Raises Refusal: 413 for more than `limit` bytes, 400 for a body that breaks off or is badly chunked.

    werkzeug cuts a chunked body at its own limit without a word, so that limit is set one byte higher.
    """
    request.max_content_length = limit + 1
    try:
        body = request.get_data()
    except RequestEntityTooLarge:
        raise _too_large(limit) from None
    except OSError:
        raise Refusal(400, "body_broken", "The body breaks off or is badly chunked; send it again.") from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body is longer than {limit} bytes.")
