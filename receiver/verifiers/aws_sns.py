"""AWS SNS: RSA over fields of the JSON body, under a certificate that the body names.

As in https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html and sns-validator.
Anybody can make a topic and have it signed, so the topic must be one that the source names.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import Request, from_base64
from receiver.verifiers.base import Verifier
from receiver.verifiers.crypto import check_rsa, rsa_key
from receiver.verifiers.remote_keys import DAY, KeyRequest, Keys, own_address

HOST = r"https://sns\.[a-z0-9-]{1,32}\.amazonaws\.com(\.cn)?"
CERTIFICATES = re.compile(rf"{HOST}/[A-Za-z0-9_-]{{1,128}}\.pem", re.ASCII)
CONFIRMATIONS = re.compile(rf"{HOST}/\?Action=ConfirmSubscription&[A-Za-z0-9=&%._:-]{{1,2048}}", re.ASCII)
OWNERS = (".amazonaws.com", ".amazonaws.com.cn")
CONFIRMATION = "SubscriptionConfirmation"
HASHES = {"1": "sha1", "2": "sha256"}

NOTIFICATION = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
SUBSCRIPTION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
SIGNED = {
    "Notification": NOTIFICATION,
    CONFIRMATION: SUBSCRIPTION,
    "UnsubscribeConfirmation": SUBSCRIPTION,
}


class AwsSns(Verifier):
    """The option `topic_arn` names the topics that are let in, separated by commas; there is no secret."""

    def __init__(self, options: Mapping[str, str], keys: Keys) -> None:
        self._topics = frozenset(topic.strip() for topic in options["topic_arn"].split(",") if topic.strip())
        self._keys = keys

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`; a certificate is fetched for known topics only."""
        message = _message(request)
        signature = from_base64(_text(message, "Signature", "missing_signature"))
        if not signature:
            raise InvalidSignature("malformed_signature", "json:Signature")
        hash_name = HASHES.get(_text(message, "SignatureVersion"))
        if hash_name is None:
            raise InvalidSignature("refused_algorithm", "json:SignatureVersion")
        names = SIGNED.get(_text(message, "Type"))
        if names is None:
            raise InvalidSignature("unmet_requirement", "json:Type")
        lines = (
            f"{name}\n{_text(message, name)}\n" for name in names if name != "Subject" or name in message
        )
        content = "".join(lines).encode("utf-8", "surrogatepass")
        if message["TopicArn"] not in self._topics:
            raise InvalidSignature("unmet_claim", "its topic is not in options.topic_arn")
        address = own_address(CERTIFICATES, _text(message, "SigningCertURL"), "json:SigningCertURL")
        certificate = self._keys.get(KeyRequest(address), DAY)
        check_rsa(rsa_key(certificate, now, OWNERS), signature, content, hash_name)

    def confirm(self, request: Request) -> bool:
        """Answer a SubscriptionConfirmation, which is verified, by calling its address at AWS.

        Raise InvalidSignature for an address elsewhere, CannotVerify when the call fails: SNS asks again.
        """
        message = _message(request)
        if message.get("Type") != CONFIRMATION:
            return False
        address = own_address(CONFIRMATIONS, _text(message, "SubscribeURL"), "json:SubscribeURL")
        self._keys.get(KeyRequest(address), DAY)
        return True


def _message(request: Request) -> dict[str, Any]:
    if request.payload.problem:
        raise InvalidSignature("unreadable_body", request.payload.problem)
    message = request.payload.value
    if not isinstance(message, dict):
        raise InvalidSignature("missing_signature", "json:Signature")
    return message


def _text(message: Mapping[str, Any], name: str, missing: str = "missing_value") -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise InvalidSignature(missing, f"json:{name}")
    return value
