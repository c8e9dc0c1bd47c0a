"""Keys of the management API and users of the dashboard, as the environment lists them.

Keys are `name=key` or `name:read=key`, users `name=hash`; entries are separated by blanks. `parse_api_keys`
and `parse_users` read such lists; `find_api_key` and `find_user` look up what a client sent.
"""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

# Characters; the API answers as fast as it can, so a short key could be guessed.
KEY_MIN = 16

_KEY_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

# What may follow `Bearer` (RFC 6750, section 2.1).
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")

_USER_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")

# As `firstseen hash-password` prints it: scrypt's cost, block size and lanes, the salt, the hash in hex.
_HASH = re.compile(r"scrypt:[0-9]{1,7}:[0-9]{1,2}:[0-9]{1,2}\$[A-Za-z0-9]{8,64}\$[0-9a-f]{128}")


@dataclass(frozen=True)
class ApiKey:
    """One key. `name` stands in the audit and scopes idempotency keys; a read-only key changes nothing."""

    name: str
    secret: str = field(repr=False)
    read_only: bool = False

    @property
    def digest(self) -> bytes:
        """Return the hash that is compared: all have one length, so timing does not reveal the keys'."""
        return sha256(self.secret.encode()).digest()


@dataclass(frozen=True)
class User:
    """One person. `name` stands in the audit."""

    name: str
    password_hash: str = field(repr=False)

    @property
    def mark(self) -> str:
        """Return what a session remembers of the password: it ends when the password changes."""
        return sha256(self.password_hash.encode()).hexdigest()[:16]


def parse_api_keys(text: str) -> tuple[ApiKey, ...]:
    """Read every entry; raise ValueError with a sentence that shows no key.

    A name may stand twice with two keys, while one replaces the other.
    """
    keys = []
    for number, entry in enumerate(text.split(), 1):
        left, equals, secret = entry.partition("=")
        name, colon, rights = left.partition(":")
        # Until both halves are there, either may be a key written alone: neither is shown.
        if not equals or not _KEY_NAME.fullmatch(name) or (colon and rights != "read"):
            raise ValueError(
                f"entry {number} must be name=key or name:read=key, the name of a-z, 0-9, _ and -;"
                " entries are separated by blanks"
            )
        if len(secret) < KEY_MIN or not _KEY.fullmatch(secret):
            raise ValueError(
                f"the key of entry {number} must be {KEY_MIN} or more of A-Z, a-z, 0-9 and . _ ~ + / -,"
                " such as `python -c 'import secrets; print(secrets.token_urlsafe(32))'` prints"
            )
        keys.append(ApiKey(name, secret, bool(colon)))
    if len({key.digest for key in keys}) < len(keys):
        raise ValueError("one key stands in two entries; give each its own")
    if len({(key.name, key.read_only) for key in keys}) > len({key.name for key in keys}):
        raise ValueError("a name stands both with and without :read; give the read-only key another name")
    return tuple(keys)


def bearer_token(authorization: str) -> str:
    """Return the token in an Authorization header, `Bearer <token>`; '' where it is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def find_api_key(keys: Iterable[ApiKey], secret: str) -> ApiKey | None:
    """Return the key with this secret, in constant time."""
    digest = sha256(secret.encode("utf-8", "surrogatepass")).digest()
    # All of them, as stopping at the first would tell by time where in the list it stands.
    matching = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return matching[0] if matching else None


def parse_users(text: str) -> tuple[User, ...]:
    """Read every entry; raise ValueError with a sentence that shows no hash."""
    users = []
    for number, entry in enumerate(text.split(), 1):
        name, equals, password_hash = entry.partition("=")
        # Without both halves it may be a password written alone: it is not shown.
        if not equals or not _USER_NAME.fullmatch(name):
            raise ValueError(
                f"entry {number} must be name=hash, the name of a-z, 0-9 and . _ @ -;"
                " entries are separated by blanks"
            )
        if not _HASH.fullmatch(password_hash):
            raise ValueError(
                f"the hash of entry {number} is not as `firstseen hash-password` prints it;"
                " in a shell it needs single quotes, or its $ are replaced"
            )
        users.append(User(name, password_hash))
    if len({user.name for user in users}) < len(users):
        raise ValueError("a name stands in two entries; a person has one password")
    return tuple(users)


def find_user(users: Iterable[User], name: str) -> User | None:
    """Return the user of this name."""
    return next((user for user in users if user.name == name), None)


def check_user_name(name: str) -> None:
    """Raise ValueError for what cannot be a user's name."""
    if not _USER_NAME.fullmatch(name):
        raise ValueError("a name is 1 to 64 of a-z, 0-9 and . _ @ -, a letter or digit first")
