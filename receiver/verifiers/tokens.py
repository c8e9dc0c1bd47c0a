"""JSON Web Tokens (RFC 7519) under a public key, by way of PyJWT, with the algorithm pinned."""

import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any

from config.nesting import load_json
from receiver.signatures.errors import CannotVerify, InvalidSignature

LONGEST = 8_192
"""Characters; servers take no longer header anyway."""
KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)

NO_CHECKS = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
}
"""PyJWT reads the host's clock; times and the rest are checked by who knows `now`."""


def key_id(token: str, algorithm: str) -> str:
    """Return the id of the key that a token says it is signed with; raise InvalidSignature.

    A token of another algorithm is refused here, before any key is fetched for it.
    """
    import jwt  # noqa: PLC0415 - two providers need it

    if len(token) > LONGEST:
        raise InvalidSignature("malformed_signature", "the token is too long")
    try:
        _check_parts(token)
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError):
        raise InvalidSignature("malformed_signature", "it is no JSON Web Token") from None
    if header.get("alg") != algorithm:
        raise InvalidSignature("refused_algorithm", f"only {algorithm} is taken")
    found = header.get("kid")
    if not isinstance(found, str) or not KEY_ID.fullmatch(found):
        raise InvalidSignature("missing_value", "kid in the token's header")
    return found


def claims(token: str, key: Mapping[str, Any], algorithm: str) -> Mapping[str, Any]:
    """Return what a token says, once its signature is good under this JWK; raise InvalidSignature.

    Raise CannotVerify when what was fetched is no such key.
    """
    import jwt  # noqa: PLC0415 - as above

    try:
        public = jwt.PyJWK(dict(key), algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise CannotVerify("the key that was fetched is not one") from None
    try:
        _check_parts(token)
        found: Mapping[str, Any] = jwt.decode(token, public, algorithms=[algorithm], options=NO_CHECKS)  # type: ignore[arg-type]
    except jwt.InvalidSignatureError:
        raise InvalidSignature("bad_signature") from None
    except (jwt.PyJWTError, ValueError, TypeError):
        raise InvalidSignature("malformed_signature", "it is no JSON Web Token") from None
    return found


def number(found: Mapping[str, Any], name: str) -> float:
    """Return a time among the claims, Unix seconds; raise InvalidSignature."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:  # noqa: PLR2004
        raise InvalidSignature("malformed_timestamp", f"{name} in the token")
    return value


def parse_key(raw: bytes, *path: str) -> Any:
    """Return what stands at a path of a fetched JSON document; raise CannotVerify when it is none."""
    try:
        value = load_json(raw)
        for step in path:
            value = value[step]
    except (ValueError, KeyError, TypeError):
        raise CannotVerify("what was fetched holds no key") from None
    return value


def _check_parts(token: str) -> None:
    """Raise ValueError where header or claims are no JSON, or deeper than PyJWT should be given."""
    for part in token.split(".")[:2]:
        load_json(urlsafe_b64decode(part.encode() + b"=" * (-len(part) % 4)))
