"""A provider that a source describes in its own options, and the options that presets need."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from config.providers import Provider
from config.schemes import SchemeTable
from config.tables import explain, kind_of, suggest

SCHEME_KEYS = frozenset(SchemeTable.model_fields)
EVENT_KEYS = frozenset(
    {
        "dedup",
        "event_id",
        "without_id",
        "event_type",
        "created_at",
        "batch",
        "batch_type",
        "success_status",
        "success_body",
        "handshake",
        "window",
    }
)
SILENT = frozenset({"key"})


def describe_provider(provider: Provider, options: Mapping[str, Any]) -> tuple[Provider, Mapping[str, str]]:
    """Return the provider of a source and the values of its `{config:...}`; ValueError with a sentence."""
    described = EVENT_KEYS | SCHEME_KEYS if provider.custom else frozenset()
    values = {key: value for key, value in options.items() if key not in described}
    for key in values:  # first: a misspelt key is also a missing one, and this sentence helps more
        if f"{{config:{key}}}" not in str(options) and provider.custom:
            raise ValueError(f"options.{key} is not a known option{suggest(key, described)}")
    if provider.custom:
        provider = _complete(provider, {key: value for key, value in options.items() if key in described})
    return provider, _check_values(provider, values)


def _complete(provider: Provider, options: Mapping[str, Any]) -> Provider:
    scheme = {"type": "hmac", **{key: value for key, value in options.items() if key in SCHEME_KEYS}}
    event = {key: value for key, value in options.items() if key in EVENT_KEYS}
    reason = {"window_reason": "the source's own options say so"} if "window" in event else {}
    entry = {**provider.model_dump(by_alias=True, exclude_unset=True), "window": f"{provider.window.days}d"}
    try:
        return Provider.model_validate({**entry, **event, **reason, "custom": False, "scheme": scheme})
    except ValidationError as error:
        sentence = explain(error, SILENT)
        inner = sentence.removeprefix("scheme.") if sentence.startswith("scheme.") else sentence
        raise ValueError(f"options.{inner}".replace("options.scheme:", "options:")) from None


def _check_values(provider: Provider, values: Mapping[str, Any]) -> Mapping[str, str]:
    needed = provider.option_names
    for key, value in values.items():
        if key not in needed:
            hint = suggest(key, needed) if needed else f"; {provider.name} takes none"
            raise ValueError(f"options.{key} is not a known option{hint}")
        if not isinstance(value, str) or not value:
            raise ValueError(f"options.{key} is {kind_of(value)}; it must be a string that is not empty")
    if missing := needed - set(values):
        raise ValueError(f"options.{min(missing)} is missing; {provider.name} signs with it")
    return values
