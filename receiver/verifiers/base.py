"""What verifiers that are code share, and a user's own verifier behind the same interface.

`@verifies` marks a user's function; `load_verifier` imports it by the name in the source's table.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from config.providers import Locators, parse_locator
from config.toml import ConfigError
from receiver.signatures.errors import CannotVerify, InvalidSignature
from receiver.signatures.request import CannotSign, Request, required_text

log = logging.getLogger(__name__)

# Takes a request, the source's secrets and Unix time; returns None, or raises InvalidSignature.
VerifyFunction = Callable[[Request, Sequence[str], float], None]

# The attribute that `@verifies` sets: no other function can be named as a verifier by mistake.
MARK = "firstseen_verifier"


class Verifier:
    """A scheme of code. Most providers sign with a key of their own, so it signs nothing by default."""

    may_wait = True
    """Whether `verify` or `confirm` may wait, for published keys as a rule."""

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """Return when the delivery proves its sender. `now` is Unix time, `tolerance` seconds.

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
    """The verifier of a sender that proves nothing, where the source's table says that this is known."""

    may_wait = False

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """Let everything in."""

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """Return the request as it is."""
        return request


def header(request: Request, name: str) -> str:
    """Return a header that must stand once; raise InvalidSignature otherwise."""
    return required_text(Locators((parse_locator(f"header:{name}"),)), request, "missing_signature")


def usable(secrets: Sequence[str]) -> list[bytes]:
    """Return the secrets as bytes; raise InvalidSignature when there is none."""
    found = [secret.encode("utf-8", "surrogateescape") for secret in secrets if secret]
    if not found:
        raise InvalidSignature("no_secret")
    return found


def verifies(function: VerifyFunction) -> VerifyFunction:
    """Declare a function as a verifier: `verifier = "module:function"` in a source's table names it.

    The function gets the request, the source's secrets and the time. It returns nothing when the delivery is
    genuine, and raises InvalidSignature when it is not. For anything else that it raises or returns, the
    delivery is answered 503 and comes again: a mistake lets nothing in and throws nothing away.
    """
    setattr(function, MARK, True)
    return function


class OwnVerifier(Verifier):
    """A user's function behind the interface of all schemes."""

    def __init__(self, name: str, function: VerifyFunction) -> None:
        self._name, self._function = name, function

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`."""
        try:
            found: Any = self._function(request, secrets, now)
        except (InvalidSignature, CannotVerify):
            raise
        except Exception as error:  # noqa: BLE001 - a user's code raises whatever it likes
            # Neither the message nor the traceback: both may hold what the function compared.
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "an unknown place"
            log.error("The verifier %s raises %s at %s.", self._name, type(error).__name__, place)  # noqa: TRY400
            raise CannotVerify(f"The verifier {self._name} breaks; the log says where") from None
        if found is not None:
            # A False that counts as genuine would let everything in.
            log.error("The verifier %s returns a value; it must return None, or raise.", self._name)
            raise CannotVerify(f"The verifier {self._name} returns a value; the log says more")

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """See `Verifier`; a function that verifies cannot be turned around."""
        raise CannotSign(f"{self._name} is code of your own: it verifies, and how to sign only you know")


def load_verifier(name: str) -> OwnVerifier:
    """Import `module:function`; raise ConfigError with one sentence when there is no such verifier."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the verifier {name}: {module} fails to import: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise ConfigError(f"the verifier {name}: {module} has no function {attribute}")
    if not getattr(found, MARK, False):
        raise ConfigError(f"the verifier {name} is not decorated; write @verifies above it")
    return OwnVerifier(name, found)
