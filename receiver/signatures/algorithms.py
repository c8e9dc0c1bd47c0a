"""The algorithms that sign: HMAC, digests, and public keys by way of `cryptography`.

That package is imported when the first public key is used: most deployments have shared secrets only.
"""

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
            # Without a secret in it, anybody could make this digest.
            return None
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
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415

        key = self._load(secret, private=False)
        if key is None:
            return None
        for signature in signatures:
            try:
                key.verify(signature, content, *self._arguments())
            except (InvalidSignature, UnsupportedAlgorithm, ValueError):
                continue
            return True
        return False

    def sign(self, secret: str, content: bytes) -> bytes:
        """See `Signer`."""
        key = self._load(secret, private=True)
        if key is None:
            raise ValueError(
                f"the secret is not a private {self._kind} key in the encoding {self._key.encoding}"
            )
        signature: bytes = key.sign(content, *self._arguments())
        return signature

    def _load(self, secret: str, *, private: bool) -> Any:
        return _load_key(
            secret.removeprefix(self._key.strip_prefix), self._key.encoding, self._kind, private=private
        )

    def _arguments(self) -> tuple[Any, ...]:
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec, padding  # noqa: PLC0415

        if self._hash is None:
            return ()
        algorithm = getattr(hashes, self._hash.upper())()
        return (ec.ECDSA(algorithm),) if self._kind == "ecdsa" else (padding.PKCS1v15(), algorithm)


# Parsing a key takes longer than checking a signature with it.
@lru_cache(maxsize=256)
def _load_key(text: str, encoding: str, kind: str, *, private: bool) -> Any:
    """Return a key object of `cryptography`; None when the text is no key of this kind."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    kinds = {
        "ed25519": (ed25519.Ed25519PublicKey, ed25519.Ed25519PrivateKey),
        "ecdsa": (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey),
        "rsa": (rsa.RSAPublicKey, rsa.RSAPrivateKey),
    }
    key: Any
    try:
        if encoding.startswith("ed25519-"):
            raw = key_bytes(text.strip(), encoding.removeprefix("ed25519-"), "") or b""
            if private:
                key = ed25519.Ed25519PrivateKey.from_private_bytes(raw)
            else:
                key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
        elif encoding == "pem":
            raw = text.replace("\\n", "\n").encode()  # one line of an environment file
            if private:
                key = serialization.load_pem_private_key(raw, None)
            else:
                key = serialization.load_pem_public_key(raw)
        else:
            raw = b64decode("".join(text.split()), validate=True)
            if private:
                key = serialization.load_der_private_key(raw, None)
            else:
                key = serialization.load_der_public_key(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, kinds[kind][private]) else None
