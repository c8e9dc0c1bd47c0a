"""People who may sign in to the dashboard: `name=hash`, separated by blanks."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_HASH = re.compile(r"scrypt:[0-9]{1,7}:[0-9]{1,2}:[0-9]{1,2}\$[A-Za-z0-9]{8,64}\$[0-9a-f]{128}")
"""As `firstseen hash-password` prints it: scrypt's cost, block size and lanes, the salt, the hash in hex."""


@dataclass(frozen=True)
class User:
    """One person. `name` stands in the audit."""

    name: str
    password_hash: str = field(repr=False)

    @property
    def mark(self) -> str:
        """Return what a session remembers of the password: it ends when the password changes."""
        return sha256(self.password_hash.encode()).hexdigest()[:16]


def parse_users(text: str) -> tuple[User, ...]:
    """Read every entry; raise ValueError with a sentence that shows no hash."""
    users = tuple(_entry(number, entry) for number, entry in enumerate(text.split(), 1))
    if len({user.name for user in users}) < len(users):
        raise ValueError("a name stands in two entries; a person has one password")
    return users


def find_user(users: Iterable[User], name: str) -> User | None:
    """Return the person of this name."""
    return next((user for user in users if user.name == name), None)


def check_name(name: str) -> str:
    """Accept a person's name; raise ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError("a name is 1 to 64 of a-z, 0-9 and . _ @ -, a letter or digit first")
    return name


def _entry(number: int, entry: str) -> User:
    name, equals, password_hash = entry.partition("=")
    # Without both halves it may be a password written alone: it is not shown.
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(
            f"entry {number} must be name=hash, the name of a-z, 0-9 and . _ @ -;"
            " entries are separated by blanks"
        )
    if not _HASH.fullmatch(password_hash):
        raise ValueError(
            f"the hash of entry {number} is not as `firstseen hash-password` prints it;"
            " in a shell it needs single quotes, or its $ are replaced"
        )
    return User(name, password_hash)
