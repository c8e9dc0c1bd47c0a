"""Verifiers that are written as code, behind the same interface as the schemes that are data.

A verifier of your own is one function, named in the source's table as `verifier = "my_webhooks:acme"`:

    import hmac

    from receiver.verifiers import InvalidSignature, verifies

    @verifies
    def acme(request, secrets, now):
        token = (request.header("X-Acme-Token") or "").encode()
        if not any(hmac.compare_digest(token, secret.encode()) for secret in secrets):
            raise InvalidSignature("bad_signature")
"""

from receiver.signatures import CannotVerify, InvalidSignature, Request
from receiver.verifiers.base import verifies

__all__ = ["CannotVerify", "InvalidSignature", "Request", "verifies"]
