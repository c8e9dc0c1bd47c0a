"""Keys of outbound calls, and fingerprints of credentials: HMACs under the deployment's secret key."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from uuid import UUID


def make_key(secret: bytes, parts: Iterable[str | int]) -> str:
    """Return a key shaped like a UUIDv4, made from what names one logical operation.

    The parts are source, event id, generation, step and successor. The key is unpredictable without the
    secret, unique for each operation, and the same again if its row was lost.
    """
    return str(UUID(bytes=_mac(secret, "key", *map(str, parts))[:16], version=4))


def credential_marks(secrets: Sequence[bytes], api: str, credential: str) -> tuple[str, ...]:
    """Return a credential's HMACs under each secret key, in hex, for the ledger; the first is current."""
    return tuple(_mac(secret, "credential", api, credential).hex() for secret in secrets)


def digest(parts: Iterable[bytes]) -> str:
    """Return a SHA-256 in hex over parts, each with its length, so that no two lists run together."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def _mac(secret: bytes, *parts: str) -> bytes:
    encoded = (part.encode("utf-8", "surrogatepass") for part in parts)
    text = b"".join(len(part).to_bytes(8, "big") + part for part in encoded)
    return hmac.digest(secret, text, "sha256")
