"""PayPal: RSA over the transmission's id and time, the webhook's id and the body's CRC-32.

As in PayPal-Python-SDK and https://developer.paypal.com/api/rest/webhooks/rest/. A CRC is no hash: who holds
a signed delivery can make another body with the same one. PayPal offers nothing better offline.
"""

import re
import zlib
from collections.abc import Mapping, Sequence

from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import Request, from_base64, wire
from receiver.verifiers.base import Verifier, header
from receiver.verifiers.crypto import check_rsa, rsa_key
from receiver.verifiers.remote_keys import DAY, KeyRequest, Keys, own_address

CERTIFICATES = re.compile(
    r"https://api(-m)?(\.sandbox)?\.paypal\.com/v1/notifications/certs/[A-Za-z0-9_-]{1,128}", re.ASCII
)
ALGORITHM = "SHA256withRSA"


class PayPal(Verifier):
    """The option `webhook_id` is the id that PayPal shows beside the webhook; there is no secret."""

    def __init__(self, options: Mapping[str, str], keys: Keys) -> None:
        self._webhook, self._keys = options["webhook_id"].encode(), keys

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`."""
        signature = from_base64(header(request, "PAYPAL-TRANSMISSION-SIG"))
        if not signature:
            raise InvalidSignature("malformed_signature", "PAYPAL-TRANSMISSION-SIG")
        if header(request, "PAYPAL-AUTH-ALGO") != ALGORITHM:
            raise InvalidSignature("refused_algorithm", "PAYPAL-AUTH-ALGO")
        address = own_address(CERTIFICATES, header(request, "PAYPAL-CERT-URL"), "PAYPAL-CERT-URL")
        content = b"|".join(
            (
                wire(header(request, "PAYPAL-TRANSMISSION-ID")),
                wire(header(request, "PAYPAL-TRANSMISSION-TIME")),
                self._webhook,
                str(zlib.crc32(request.body)).encode(),
            )
        )
        certificate = self._keys.get(KeyRequest(address), DAY)
        check_rsa(rsa_key(certificate, now, (".paypal.com",)), signature, content, "sha256")
