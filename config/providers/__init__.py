"""The catalogue of providers: who sends webhooks, how each signs them, where an event's id and type are."""

from config.providers.catalogue import describe_provider, load_providers
from config.providers.locators import (
    HEADER_NAME,
    VALUE_KINDS,
    Locator,
    Locators,
    parse_locator,
    parse_locators,
)
from config.providers.models import (
    ABSENT,
    ANY,
    VERIFY_TOKEN,
    HandshakeTable,
    HeaderNames,
    Provider,
)
from config.providers.scheme_tables import (
    PUBLIC_KEY,
    KeyTable,
    Part,
    Placeholder,
    SchemeTable,
    SignatureTable,
)
from config.providers.secrets import generate_secret, is_usable, key_bytes

__all__ = [
    "ABSENT",
    "ANY",
    "HEADER_NAME",
    "PUBLIC_KEY",
    "VALUE_KINDS",
    "VERIFY_TOKEN",
    "HandshakeTable",
    "HeaderNames",
    "KeyTable",
    "Locator",
    "Locators",
    "Part",
    "Placeholder",
    "Provider",
    "SchemeTable",
    "SignatureTable",
    "describe_provider",
    "generate_secret",
    "is_usable",
    "key_bytes",
    "load_providers",
    "parse_locator",
    "parse_locators",
]
