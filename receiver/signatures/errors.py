"""The two ends of a verification that are not success, and the stable reasons of the first."""

REASONS = {
    "no_secret": "no secret of this source can be used as a key",
    "missing_signature": "the signature is missing",
    "malformed_signature": "the signature is not written as this provider writes it",
    "bad_signature": "the signature does not belong to these bytes and this secret",
    "repeated_value": "a value that must stand once was sent more than once",
    "missing_timestamp": "the timestamp is missing",
    "malformed_timestamp": "the timestamp is not a time",
    "stale_timestamp": "the delivery was signed too long ago",
    "future_timestamp": "the delivery was signed in the future",
    "missing_value": "a value that is part of the signed bytes is missing",
    "unmet_requirement": "a header that this provider always sends is missing or has another value",
    "refused_algorithm": "the signature is made with an algorithm that this provider does not use",
    "foreign_key": "the delivery names a key that is not this provider's",
    "unmet_claim": "the signature is good, but what it signs is meant for another delivery or receiver",
    "unreadable_body": "the body, which holds part of what is signed, cannot be read",
}


class InvalidSignature(Exception):
    """A delivery did not prove its sender; `reason` is a key of REASONS, the message a sentence.

    `age` is how many seconds ago it was signed, where the time of signing is wrong.
    """

    def __init__(self, reason: str, detail: str = "", *, age: float | None = None) -> None:
        self.reason, self.age = reason, age
        sentence = REASONS[reason]
        super().__init__(f"{sentence} ({detail})" if detail else sentence)


class CannotVerify(Exception):
    """It is not known whether a delivery is genuine, so it is neither recorded nor refused: 503, try again.

    The message is a sentence without secrets.
    """
