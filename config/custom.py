"""A provider that a source describes in its own options, and the options that presets need."""

import re
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
OWN_CODE = "code"
"""The entry of senders whom the user's own function verifies."""
OWN_KEYS = frozenset({"signs", "proof", "keep_headers"})
SILENT = frozenset({"key"})

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def describe_provider(
    provider: Provider,
    options: Mapping[str, Any],
    verifier: str | None = None,
    secrets_env: str | tuple[str, ...] | None = None,
) -> tuple[Provider, Mapping[str, str]]:
    """Return the provider of a source and the values of its options; ValueError with a sentence."""
    _check_verifier(provider, verifier)
    if verifier is not None:
        return _with_verifier(provider, options, verifier, keyless=secrets_env is None), {}
    described = EVENT_KEYS | SCHEME_KEYS if provider.custom else frozenset()
    values = {key: value for key, value in options.items() if key not in described}
    for key in values:  # first: a misspelt key is also a missing one, and this sentence helps more
        if f"{{config:{key}}}" not in str(options) and provider.custom:
            raise ValueError(f"options.{key} is not a known option{suggest(key, described)}")
    if provider.custom:
        provider = _complete(provider, {key: value for key, value in options.items() if key in described})
    return provider, _check_values(provider, values)


def _check_verifier(provider: Provider, verifier: str | None) -> None:
    if provider.name == OWN_CODE and verifier is None:
        raise ValueError('verifier is missing; name your function, such as verifier = "my_webhooks:verify"')
    if verifier is None:
        return
    if provider.name != OWN_CODE:
        raise ValueError(f"verifier is set, but {provider.name} is verified already; say provider = 'code'")
    if not _FUNCTION.fullmatch(verifier):
        raise ValueError(f"verifier is {verifier!r}; write module:function, such as my_webhooks:verify")


def _with_verifier(
    provider: Provider, options: Mapping[str, Any], verifier: str, *, keyless: bool
) -> Provider:
    known = EVENT_KEYS | OWN_KEYS
    for key in options:
        if key not in known:
            raise ValueError(f"options.{key} is not a known option{suggest(key, known)}")
    return _filled(provider, options, {"code": verifier, "keyless": keyless})


def _complete(provider: Provider, options: Mapping[str, Any]) -> Provider:
    scheme = {"type": "hmac", **{key: value for key, value in options.items() if key in SCHEME_KEYS}}
    event = {key: value for key, value in options.items() if key in EVENT_KEYS}
    return _filled(provider, event, {"scheme": scheme})


def _filled(provider: Provider, event: Mapping[str, Any], way: Mapping[str, Any]) -> Provider:
    reason = {"window_reason": "the source's own options say so"} if "window" in event else {}
    entry = {**provider.model_dump(by_alias=True, exclude_unset=True), "window": f"{provider.window.days}d"}
    try:
        return Provider.model_validate({**entry, **event, **reason, **way, "custom": False})
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
