"""Google Cloud Pub/Sub: an OpenID Connect token of the push subscription's service account.

As in https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions. The token says who sends and to
whom; it does not cover the body.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import Request
from receiver.verifiers.base import Verifier, header
from receiver.verifiers.crypto import claims, key_id, number, parse_key
from receiver.verifiers.remote_keys import HOUR, KeyRequest, Keys

KEYS = KeyRequest("https://www.googleapis.com/oauth2/v3/certs")
ISSUERS = ("https://accounts.google.com", "accounts.google.com")
ALGORITHM = "RS256"
# Seconds that a clock may be off.
SKEW = 60
# Seconds in which the list is not fetched again for a key that it does not hold.
REFRESH = 60.0


class GooglePubSub(Verifier):
    """The options are the subscription's `audience` and its service account's `email`; there is no secret."""

    def __init__(self, options: Mapping[str, str], keys: Keys) -> None:
        self._audience, self._email, self._keys = options["audience"], options["email"], keys

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`."""
        word, _, token = header(request, "Authorization").partition(" ")
        if word.lower() != "bearer":
            raise InvalidSignature("malformed_signature", "Authorization")
        token = token.strip(" ")
        found = claims(token, self._key(key_id(token, ALGORITHM)), ALGORITHM)
        late, age = now - number(found, "exp"), now - number(found, "iat")
        if late > SKEW:
            raise InvalidSignature("stale_timestamp", f"expired {late:.0f} s ago", age=age)
        if age < -SKEW:
            raise InvalidSignature("future_timestamp", f"{-age:.0f} s ahead", age=age)
        if found.get("iss") not in ISSUERS:
            raise InvalidSignature("unmet_claim", "iss is not Google")
        if found.get("aud") != self._audience:
            raise InvalidSignature("unmet_claim", "aud is not options.audience")
        if found.get("email") != self._email or found.get("email_verified") is not True:
            raise InvalidSignature("unmet_claim", "email is not options.email, or is not verified")

    def _key(self, wanted: str) -> Mapping[str, Any]:
        # A key that is not in the list may be newer than the list.
        for age in (HOUR, REFRESH):
            listed = parse_key(self._keys.get(KEYS, age), "keys")
            for key in listed if isinstance(listed, list) else ():
                if isinstance(key, dict) and key.get("kid") == wanted:
                    return key
        raise InvalidSignature("foreign_key", "Google lists no key of this id")
