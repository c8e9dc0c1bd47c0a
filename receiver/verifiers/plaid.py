"""Plaid: a token over the body's SHA-256, under a key that Plaid's API gives for its id.

As in https://plaid.com/docs/api/webhooks/webhook-verification/.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from config.toml import ConfigError
from receiver.signatures.errors import CannotVerify, InvalidSignature
from receiver.signatures.request import Request
from receiver.verifiers.base import Verifier, header
from receiver.verifiers.crypto import claims, key_id, number, parse_key
from receiver.verifiers.remote_keys import HOUR, KeyRequest, Keys

HOSTS = {"production": "https://production.plaid.com", "sandbox": "https://sandbox.plaid.com"}
PATH = "/webhook_verification_key/get"
ALGORITHM = "ES256"

# Seconds that Plaid says a token is good for.
TOLERANCE = 300
# Seconds that a clock may be off.
SKEW = 60


class Plaid(Verifier):
    """The secret is that of the API, which gives out keys; the options are `client_id` and `environment`."""

    def __init__(self, options: Mapping[str, str], keys: Keys) -> None:
        if options["environment"] not in HOSTS:
            raise ConfigError(f"options.environment must be one of {', '.join(sorted(HOSTS))}")
        self._url, self._client, self._keys = HOSTS[options["environment"]] + PATH, options["client_id"], keys

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`."""
        token = header(request, "Plaid-Verification")
        key = parse_key(self._fetch_key(secrets, key_id(token, ALGORITHM)), "key")
        found = claims(token, key if isinstance(key, dict) else {}, ALGORITHM)
        expired = key.get("expired_at")
        if isinstance(expired, int | float) and expired <= now:
            raise InvalidSignature("foreign_key", "the key has expired")
        age = now - number(found, "iat")
        if age > TOLERANCE:
            raise InvalidSignature("stale_timestamp", f"{age:.0f} s ago, {TOLERANCE} s are allowed", age=age)
        if age < -SKEW:
            raise InvalidSignature("future_timestamp", f"{-age:.0f} s ahead, {SKEW} s are allowed", age=age)
        body_hash = hashlib.sha256(request.body).hexdigest().encode()
        claimed = found.get("request_body_sha256")
        claimed_hash = claimed.encode("utf-8", "surrogatepass") if isinstance(claimed, str) else b""
        if not hmac.compare_digest(body_hash, claimed_hash):
            raise InvalidSignature("unmet_claim", "request_body_sha256 is not the body's hash")

    def _fetch_key(self, secrets: Sequence[str], key: str) -> bytes:
        for position, secret in enumerate(secrets, 1):
            form = (("client_id", self._client), ("secret", secret), ("key_id", key))
            try:
                return self._keys.get(KeyRequest(self._url, form), HOUR)
            except CannotVerify:
                # Any of several may be the one that is not yet, or no longer, in force.
                if position == len(secrets):
                    raise
        raise InvalidSignature("no_secret")
