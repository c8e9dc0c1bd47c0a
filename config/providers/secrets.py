"""Secrets of sources: made, read as keys, and checked without being shown."""

import secrets
from base64 import b64decode, b64encode
from functools import lru_cache

from config.providers.models import Provider
from config.providers.scheme_tables import PUBLIC_KEY, KeyTable, SchemeTable
from config.toml import ConfigError

# As long as SHA-256, whose HMACs these keys make.
SECRET_BYTES = 32

# Length of a public key (RFC 8032, section 5.1.5).
ED25519_BYTES = 32


def generate_secret(provider: Provider) -> str:
    """Make a random secret in the shape that this provider issues.

    For code it is hex, which all of it can read. Raise ConfigError for schemes of a public key: there the
    provider holds the other half.
    """
    if provider.code is not None:
        return secrets.token_hex(SECRET_BYTES)
    scheme = provider.required_scheme
    if scheme.type in PUBLIC_KEY:
        raise ConfigError(
            f"{provider.name} signs with a private key of its own: its public key must be set by hand"
        )
    raw = secrets.token_bytes(SECRET_BYTES)
    if scheme.type == "basic":
        return f"firstseen:{raw.hex()}"
    key = scheme.key or KeyTable()
    text = b64encode(raw).decode() if key.encoding == "base64" else raw.hex()
    return provider.secret_prefix + text


@lru_cache(maxsize=1_024)
def key_bytes(secret: str, encoding: str, strip_prefix: str = "") -> bytes | None:
    """Read a shared secret's text into key bytes, or None when it is not in its encoding.

    Secrets are pasted by people, so base64 is read without padding and in both alphabets.
    """
    text = secret.removeprefix(strip_prefix)
    try:
        if encoding == "utf8":
            # The very bytes that the environment holds.
            return text.encode("utf-8", "surrogateescape") or None
        if encoding == "hex":
            return bytes.fromhex(text) or None
        bare = text.rstrip("=").replace("-", "+").replace("_", "/")
        return b64decode(bare + "=" * (-len(bare) % 4), validate=True) or None
    except ValueError:
        return None


def is_usable(secret: str, scheme: SchemeTable | None) -> bool:
    """Whether a secret can be a key of this scheme; PEM and SPKI are not parsed for it.

    Code, which has no scheme, takes any that is not empty.
    """
    if scheme is None:
        return bool(secret)
    if scheme.schemes:
        return any(is_usable(secret, alternative) for alternative in scheme.schemes)
    if scheme.type == "basic":
        return ":" in secret
    key = scheme.key or KeyTable()
    if key.encoding == "pem":
        return "-----BEGIN" in secret
    if key.encoding.startswith("ed25519-"):
        raw = key_bytes(secret, key.encoding.removeprefix("ed25519-"), key.strip_prefix)
        return raw is not None and len(raw) == ED25519_BYTES
    encoding = "base64" if key.encoding == "spki-base64" else key.encoding
    return key_bytes(secret, encoding, key.strip_prefix) is not None
