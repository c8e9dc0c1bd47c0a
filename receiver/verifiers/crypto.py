"""The cryptography that several verifiers share: JSON Web Tokens, X.509 certificates, signed forms.

Tokens (RFC 7519) go through PyJWT with the algorithm pinned. Google and Plaid send them, AWS SNS and PayPal
name certificates, Twilio and Mandrill sign a URL with the sorted fields of a form.
"""

import hmac
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from config.nesting import load_json
from receiver.payload import MAX_FORM_FIELDS
from receiver.signatures.errors import CannotVerify, InvalidSignature
from receiver.signatures.request import Request, wire

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

# Characters; servers take no longer header anyway.
LONGEST = 8_192

KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)

# PyJWT reads the host's clock; each verifier checks times and the rest itself, at `now`.
NO_CHECKS = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
}

PORTS = {"https": 443, "http": 80}


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
    """Return a token's claims, once its signature is good under this JWK; raise InvalidSignature.

    Raise CannotVerify when the JWK is no key of this algorithm.
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
    """Return a claim that is a time, in Unix seconds; raise InvalidSignature."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:  # noqa: PLR2004
        raise InvalidSignature("malformed_timestamp", f"{name} in the token")
    return value


def parse_key(raw: bytes, *path: str) -> Any:
    """Return the value at a path of a fetched JSON document; raise CannotVerify when there is none."""
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


def rsa_key(pem: bytes, now: float, owners: tuple[str, ...]) -> "RSAPublicKey":
    """Return the key of a certificate that is valid at `now`, Unix seconds.

    Its common name must end with one of `owners`. Raise InvalidSignature otherwise, CannotVerify when the
    bytes are no certificate.
    """
    # The chain is not followed: the certificate came over TLS from the provider's own host.
    from cryptography import x509  # noqa: PLC0415 - two providers need it
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise CannotVerify("what was fetched is not a certificate") from None
    moment = datetime.fromtimestamp(now, UTC)
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
        raise InvalidSignature("foreign_key", "its certificate is not valid now")
    if not any(f".{name.value!s}".lower().endswith(owners) for name in names):
        raise InvalidSignature("foreign_key", f"its certificate is not one of {owners[0]}")
    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidSignature("foreign_key", "its certificate has no RSA key")
    return key


def check_rsa(key: "RSAPublicKey", signature: bytes, content: bytes, hash_name: str) -> None:
    """Raise InvalidSignature unless the key made the signature (PKCS #1 v1.5)."""
    from cryptography.exceptions import InvalidSignature as WrongSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415

    algorithm = hashes.SHA1() if hash_name == "sha1" else hashes.SHA256()  # noqa: S303 - SNS's version 1
    try:
        key.verify(signature, content, padding.PKCS1v15(), algorithm)
    except (WrongSignature, ValueError):
        raise InvalidSignature("bad_signature") from None


def sorted_fields(request: Request) -> bytes:
    """Return every distinct name with its value, in order, with nothing in between; blank values count."""
    # Bytes stay as they are, one latin-1 character each: UTF-8 sorts as its characters do.
    text = request.body.decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_FORM_FIELDS)
    except ValueError:
        raise InvalidSignature("unreadable_body", "the form has too many fields") from None
    return "".join(name + value for name, value in sorted(set(pairs))).encode("latin-1")


def url_spellings(url: str) -> Iterator[bytes]:
    """Yield the URL as it is, without its port, and with the port that its scheme implies."""
    yield wire(url)
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return
    if not host or parts.scheme not in PORTS:
        return
    before, _, _ = parts.netloc.rpartition(f":{port}") if port is not None else (parts.netloc, "", "")
    yield wire(parts._replace(netloc=before).geturl())
    if port is None:
        yield wire(parts._replace(netloc=f"{before}:{PORTS[parts.scheme]}").geturl())


def has_hmac(signature: bytes, keys: Sequence[bytes], contents: Iterable[bytes], hash_name: str) -> bool:
    """Whether the signature is the HMAC of any of the contents under any of the keys."""
    return any(
        hmac.compare_digest(hmac.digest(key, content, hash_name), signature)
        for content in contents
        for key in keys
    )
