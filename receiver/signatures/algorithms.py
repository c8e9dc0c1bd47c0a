"""The mathematics of signing: HMAC and digests, and public keys by way of `cryptography`."""

import hashlib
import hmac
from abc import abstractmethod
from base64 import b64decode
from functools import lru_cache
from typing import Any, Protocol

from config.providers import KeyTable, key_bytes
from config.toml import ConfigError


class Signer(Protocol):
    """One algorithm with one way to read keys."""

    @abstractmethod
    def verify(self, secret: str, content: bytes, signatures: tuple[bytes, ...]) -> bool | None:
        """Whether any signature fits; None when the secret is no key. Never raises."""

    @abstractmethod
    def sign(self, secret: str, content: bytes) -> bytes:
        """Sign; raise ValueError when the secret is no key."""


class Hmac(Signer):
    """HMAC (RFC 2104) under a shared secret."""

    def __init__(self, hash_name: str, key: KeyTable) -> None:
        self._hash, self._key = hash_name, key

    def verify(self, secret: str, content: bytes, signatures: tuple[bytes, ...]) -> bool | None:
        """See `Signer`; compared in constant time."""
        key = key_bytes(secret, self._key.encoding, self._key.strip_prefix)
        if key is None:
            return None
        # Not hmac.digest: it lets other threads run even for a kilobyte, and to come back costs more.
        expected = hmac.new(key, content, self._hash).digest()
        return any(hmac.compare_digest(expected, signature) for signature in signatures)

    def sign(self, secret: str, content: bytes) -> bytes:
        """See `Signer`."""
        key = key_bytes(secret, self._key.encoding, self._key.strip_prefix)
        if key is None:
            raise ValueError(f"the secret is not a {self._key.encoding} key")
        return hmac.digest(key, content, self._hash)


class PlainHash(Signer):
    """A digest of content that holds the secret."""

    def __init__(self, hash_name: str) -> None:
        self._hash = hash_name

    def verify(self, secret: str, content: bytes, signatures: tuple[bytes, ...]) -> bool | None:
        """See `Signer`; compared in constant time."""
        if key_bytes(secret, "utf8") is None:
            return None  # without a secret in it, anybody could make this digest
        expected = self.sign(secret, content)
        return any(hmac.compare_digest(expected, signature) for signature in signatures)

    def sign(self, secret: str, content: bytes) -> bytes:  # noqa: ARG002 - the content holds the secret
        """See `Signer`."""
        return hashlib.new(self._hash, content).digest()


class PublicKey(Signer):
    """Ed25519, ECDSA (DER signatures) or RSA (PKCS #1 v1.5); the secret is the provider's public key.

    To sign, the secret is a private key: 32 raw bytes for the `ed25519-` encodings, else PKCS #8.
    """

    def __init__(self, kind: str, hash_name: str | None, key: KeyTable) -> None:
        try:
            import cryptography  # noqa: F401, PLC0415 - only these schemes need it
        except ImportError:
            raise ConfigError(f"a scheme of type {kind!r} needs the package cryptography") from None
        self._kind, self._hash, self._key = kind, hash_name, key

    def verify(self, secret: str, content: bytes, signatures: tuple[bytes, ...]) -> bool | None:
        """See `Signer`."""
        key = _load(
            secret.removeprefix(self._key.strip_prefix), self._key.encoding, self._kind, private=False
        )
        if key is None:
            return None
        return any(self._fits(key, content, signature) for signature in signatures)

    def _fits(self, key: Any, content: bytes, signature: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415

        try:
            key.verify(signature, content, *self._arguments())
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return True

    def sign(self, secret: str, content: bytes) -> bytes:
        """See `Signer`."""
        key = _load(secret.removeprefix(self._key.strip_prefix), self._key.encoding, self._kind, private=True)
        if key is None:
            raise ValueError(
                f"the secret is not a private {self._kind} key in the encoding {self._key.encoding}"
            )
        signature: bytes = key.sign(content, *self._arguments())
        return signature

    def _arguments(self) -> tuple[Any, ...]:
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec, padding  # noqa: PLC0415

        if self._hash is None:
            return ()
        algorithm = getattr(hashes, self._hash.upper())()
        return (ec.ECDSA(algorithm),) if self._kind == "ecdsa" else (padding.PKCS1v15(), algorithm)


@lru_cache(maxsize=256)
def _load(text: str, encoding: str, kind: str, *, private: bool) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    kinds = {
        "ed25519": (ed25519.Ed25519PublicKey, ed25519.Ed25519PrivateKey),
        "ecdsa": (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey),
        "rsa": (rsa.RSAPublicKey, rsa.RSAPrivateKey),
    }
    try:
        key = _parse(text, encoding, private=private)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, kinds[kind][private]) else None


def _parse(text: str, encoding: str, *, private: bool) -> Any:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

    if encoding.startswith("ed25519-"):
        raw = key_bytes(text.strip(), encoding.removeprefix("ed25519-"), "") or b""
        if private:
            return ed25519.Ed25519PrivateKey.from_private_bytes(raw)
        return ed25519.Ed25519PublicKey.from_public_bytes(raw)
    if encoding == "pem":
        raw = text.replace("\\n", "\n").encode()  # one line of an environment file
        if private:
            return serialization.load_pem_private_key(raw, None)
        return serialization.load_pem_public_key(raw)
    der = b64decode("".join(text.split()), validate=True)
    return (
        serialization.load_der_private_key(der, None) if private else serialization.load_der_public_key(der)
    )
