"""From a source to what verifies it, once at start-up."""

from collections.abc import Callable, Mapping

from config.sources import Source
from config.toml import ConfigError, suggest
from receiver.signatures import Scheme, compile_scheme
from receiver.verifiers.adyen import Adyen
from receiver.verifiers.aws_sns import AwsSns
from receiver.verifiers.base import Unverified
from receiver.verifiers.fetching import Keys
from receiver.verifiers.google_pubsub import GooglePubSub
from receiver.verifiers.mandrill import Mandrill
from receiver.verifiers.own import load_verifier
from receiver.verifiers.paypal import PayPal
from receiver.verifiers.plaid import Plaid
from receiver.verifiers.twilio import Twilio

Options = Mapping[str, str]

VERIFIERS: Mapping[str, Callable[[Options, Keys], Scheme]] = {
    "adyen": lambda _options, _keys: Adyen(),
    "aws-sns": AwsSns,
    "google-pubsub": GooglePubSub,
    "mandrill": lambda _options, _keys: Mandrill(),
    "paypal": PayPal,
    "plaid": Plaid,
    "twilio": lambda _options, _keys: Twilio(),
}
"""By the catalogue's `code`."""


def build_scheme(source: Source, keys: Keys) -> Scheme:
    """Return what verifies a source's deliveries; raise ConfigError when it cannot be made."""
    code = source.provider.code
    if source.provider.verification is not None:
        return Unverified()
    if code is None:
        return compile_scheme(source.scheme, source.options)
    try:
        return load_verifier(code) if ":" in code else _built_in(code)(source.options, keys)
    except ConfigError as error:
        raise ConfigError(f"[{source.name}] {error}.") from error


def _built_in(code: str) -> Callable[[Options, Keys], Scheme]:
    if code not in VERIFIERS:
        raise ConfigError(f"the catalogue's code {code!r} is not written{suggest(code, VERIFIERS)}")
    return VERIFIERS[code]
