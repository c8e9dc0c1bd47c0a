"""RSA signatures under an X.509 certificate that was fetched."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from receiver.signatures.errors import CannotVerify, InvalidSignature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey


def rsa_key(pem: bytes, now: float, owners: tuple[str, ...]) -> "RSAPublicKey":
    """Return the key of a certificate that is valid at `now`, Unix seconds.

    Its common name must end with one of `owners`; InvalidSignature otherwise, CannotVerify for what is no
    certificate. The chain is not followed: it came over TLS from the provider's own host.
    """
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
