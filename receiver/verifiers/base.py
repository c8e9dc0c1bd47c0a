"""What verifiers written as code share."""

from collections.abc import Sequence

from config.providers import Locators, parse_locator
from receiver.signatures.editing import CannotSign
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.reading import one_text
from receiver.signatures.request import Request


class Verifier:
    """A scheme of code. Most providers hold a key that nobody else has, so it signs nothing by default."""

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """Return when the delivery proves its sender.

        Raise InvalidSignature when it does not, CannotVerify when that cannot be known now, nothing else.
        """
        raise NotImplementedError

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """Return the request as the provider would send it; raise CannotSign where only the provider can."""
        raise CannotSign("the provider signs with a key that only it has")

    def confirm(self, request: Request) -> bool:  # noqa: ARG002
        """Whether a verified request asked for a confirmation, now given: it is no event."""
        return False


class Unverified(Verifier):
    """Of a sender that proves nothing, where the source's table says that this is known."""

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """Let everything in."""

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """Return the request as it is."""
        return request


def header(request: Request, name: str) -> str:
    """Return a header that must stand once; raise InvalidSignature otherwise."""
    return one_text(Locators((parse_locator(f"header:{name}"),)), request, "missing_signature")


def usable(secrets: Sequence[str]) -> list[bytes]:
    """Return the secrets as bytes; raise InvalidSignature when there is none."""
    found = [secret.encode("utf-8", "surrogateescape") for secret in secrets if secret]
    if not found:
        raise InvalidSignature("no_secret")
    return found
