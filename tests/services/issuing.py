"""Keys, certificates and tokens as providers publish and use them, generated for tests."""

import hashlib
import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from receiver.signatures import CannotVerify
from receiver.verifiers.remote_keys import KeyRequest

SNS_CERTIFICATE = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0a1b.pem"
SNS_TOPIC = "arn:aws:sns:eu-west-1:123456789012:orders"
SNS_CONFIRM = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn:aws:sns&Token=7f"
PUBSUB = {
    "audience": "https://hooks.example.com/pubsub",
    "email": "push@acme.iam.gserviceaccount.com",
}


class FixedKeys:
    """Gives every request the same answer, or CannotVerify without one, and records the requests."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked: list[KeyRequest] = []

    def get(self, ask: KeyRequest, max_age: float) -> bytes:  # noqa: ARG002
        """Return the answer."""
        self.asked.append(ask)
        if self.answer is None:
            raise CannotVerify("nobody answers")
        return self.answer


@cache
def rsa_private() -> rsa.RSAPrivateKey:
    """Generate the RSA key of this run: each takes a tenth of a second."""
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_private() -> ec.EllipticCurvePrivateKey:
    """Generate the ES256 key of this run."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate(
    public_key: Any, name: str, *, since: datetime | None = None, days: int = 30, issuer: str = "Test CA"
) -> bytes:
    """Return a PEM certificate of a public key, signed by another key."""
    begin = since or datetime.now(UTC) - timedelta(days=1)
    builder = x509.CertificateBuilder(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
        public_key,
        x509.random_serial_number(),
        begin,
        begin + timedelta(days=days),
    )
    signed = builder.sign(rsa_private(), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def sns_certificate(**how: Any) -> bytes:
    """Return SNS's certificate."""
    return certificate(rsa_private().public_key(), "sns.amazonaws.com", **how)


def sns_message(kind: str = "Notification", **fields: Any) -> dict[str, Any]:
    """Return a signed SNS message; a field that is None is left out, others are signed as given."""
    message = {
        "Type": kind,
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": SNS_TOPIC,
        "Message": '{"order": 1}',
        "Timestamp": "2026-11-25T10:00:00.000Z",
        "SignatureVersion": "2",
        "SigningCertURL": SNS_CERTIFICATE,
    }
    if kind != "Notification":
        message |= {"Token": "7f", "SubscribeURL": SNS_CONFIRM}
    message = {name: value for name, value in (message | fields).items() if value is not None}
    names = [*("Message", "MessageId"), *(["SubscribeURL"] if kind != "Notification" else ["Subject"])]
    names += ["Timestamp", *(["Token"] if kind != "Notification" else []), "TopicArn", "Type"]
    text = "".join(f"{name}\n{message[name]}\n" for name in names if name in message)
    algorithm = hashes.SHA1() if message["SignatureVersion"] == "1" else hashes.SHA256()
    signature = rsa_private().sign(text.encode(), padding.PKCS1v15(), algorithm)
    return message | {"Signature": b64encode(signature).decode()}


def plaid_token(body: bytes, now: float, algorithm: str = "ES256", key: Any = None, **claims: Any) -> str:
    """Return Plaid's token for a body."""
    default = {"iat": int(now), "request_body_sha256": hashlib.sha256(body).hexdigest()}
    return jwt.encode(default | claims, key or ec_private(), algorithm, headers={"kid": "key-1"})


def plaid_answer(**fields: Any) -> bytes:
    """Return the response of Plaid's API with its key."""
    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec_private().public_key()))
    return json.dumps({"key": key | {"kid": "key-1", "expired_at": None} | fields}).encode()


def google_token(now: float, **claims: Any) -> str:
    """Return Pub/Sub's token."""
    default = {
        "aud": PUBSUB["audience"],
        "email": PUBSUB["email"],
        "email_verified": True,
        "iss": "https://accounts.google.com",
        "iat": int(now),
        "exp": int(now) + 3600,
    }
    return jwt.encode(default | claims, rsa_private(), "RS256", headers={"kid": "google-1"})


def google_keys() -> bytes:
    """Return Google's list of keys."""
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa_private().public_key()))
    return json.dumps({"keys": [key | {"kid": "google-1"}]}).encode()
