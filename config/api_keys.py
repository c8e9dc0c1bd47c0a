"""Keys of the management API: `name=key` or `name:read=key`, separated by blanks."""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

KEY_MIN = 16
"""Characters; the API answers as fast as it can, so a short key could be guessed."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What may follow `Bearer` (RFC 6750, section 2.1)."""


@dataclass(frozen=True)
class ApiKey:
    """One key. `name` stands in the audit and scopes idempotency keys; a read-only key changes nothing."""

    name: str
    secret: str = field(repr=False)
    read_only: bool = False

    @property
    def digest(self) -> bytes:
        """Return what is compared: of one length for all keys, so that time tells nothing of theirs."""
        return sha256(self.secret.encode()).digest()


def parse_api_keys(text: str) -> tuple[ApiKey, ...]:
    """Read every entry; raise ValueError with a sentence that shows no key.

    A name may stand twice with two keys, while one replaces the other.
    """
    keys = tuple(_entry(number, entry) for number, entry in enumerate(text.split(), 1))
    _refuse_contradictions(keys)
    return keys


def find_api_key(keys: Iterable[ApiKey], secret: str) -> ApiKey | None:
    """Return the key with this secret. Each one is compared, in constant time."""
    digest = sha256(secret.encode("utf-8", "surrogatepass")).digest()
    matching = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return matching[0] if matching else None


def _entry(number: int, entry: str) -> ApiKey:
    left, equals, secret = entry.partition("=")
    name, colon, rights = left.partition(":")
    # Until both halves are there, either may be a key written alone: neither is shown.
    if not equals or not _NAME.fullmatch(name) or (colon and rights != "read"):
        raise ValueError(
            f"entry {number} must be name=key or name:read=key, the name of a-z, 0-9, _ and -;"
            " entries are separated by blanks"
        )
    if len(secret) < KEY_MIN or not _KEY.fullmatch(secret):
        raise ValueError(
            f"the key of entry {number} must be {KEY_MIN} or more of A-Z, a-z, 0-9 and . _ ~ + / -,"
            " such as `python -c 'import secrets; print(secrets.token_urlsafe(32))'` prints"
        )
    return ApiKey(name, secret, bool(colon))


def _refuse_contradictions(keys: tuple[ApiKey, ...]) -> None:
    if len({key.digest for key in keys}) < len(keys):
        raise ValueError("one key stands in two entries; give each its own")
    if len({(key.name, key.read_only) for key in keys}) > len({key.name for key in keys}):
        raise ValueError("a name stands both with and without :read; give the read-only key another name")
