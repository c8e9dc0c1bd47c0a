"""The catalogue: `<name>.toml` in this folder describes one provider, and is read when it is first asked for.

A process needs the few entries that its sources name, and reads no others at start-up.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.providers.models import Provider
from config.providers.scheme_tables import SchemeTable
from config.toml import ConfigError, explain, kind_of, read_toml, suggest

CATALOGUE = Path(__file__).parent

# The entry of senders that the user's own function verifies.
OWN_CODE = "code"

# Entries of no single company stand before (-1) or after (1, 2) the others, which are sorted by name.
GENERIC = {"standard-webhooks": -1, "hmac": 1, OWN_CODE: 2}

# Options with which a source of `hmac` describes how it is signed.
SCHEME_KEYS = frozenset(SchemeTable.model_fields)

# Options with which a source of `hmac` or `code` describes its events.
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

# Options with which a source of `code` describes what its function verifies.
OWN_KEYS = frozenset({"signs", "proof", "keep_headers"})

# Options whose values an error never repeats: a secret may stand there by mistake.
SILENT = frozenset({"key"})

# Names become file names: without a dot or a slash none leaves the folder.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


class Catalogue(Mapping[str, Provider]):
    """Providers by name; raises ConfigError with one sentence for an entry that is wrong."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Provider] = {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(_NAME.fullmatch(name)) and self._file(name).is_file()

    def __getitem__(self, name: str) -> Provider:
        if name in self._loaded:
            return self._loaded[name]
        if name not in self:
            raise KeyError(name)
        file = self._file(name)
        entry = read_toml(file)
        # An entry whose provider signs as another does names that one.
        if isinstance(other := entry.get("scheme"), str):
            entry["scheme"] = read_toml(self._file(other)).get("scheme") if other in self else None
            if not isinstance(entry["scheme"], dict):
                raise ConfigError(f"{file}: scheme is {other!r}, which is no entry with a scheme")
        try:
            provider = self._loaded[name] = Provider.model_validate({**entry, "name": name})
        except ValidationError as error:
            raise ConfigError(f"{file}: {explain(error)}") from None
        return provider

    def __iter__(self) -> Iterator[str]:
        names = (file.stem for file in self._folder.glob("*.toml"))
        return iter(sorted(filter(_NAME.fullmatch, names), key=lambda name: (GENERIC.get(name, 0), name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.toml"


def load_providers(folder: Path = CATALOGUE) -> Mapping[str, Provider]:
    """Open the catalogue; an entry that is wrong raises ConfigError when it is asked for."""
    return Catalogue(folder)


def describe_provider(
    provider: Provider,
    options: Mapping[str, Any],
    verifier: str | None = None,
    secrets_env: str | tuple[str, ...] | None = None,
) -> tuple[Provider, Mapping[str, str]]:
    """Return the provider of a source and the values of its options; raise ValueError with a sentence.

    A preset takes values for the names that it signs with. `hmac` and `code` also take, as options, what an
    entry of the catalogue would say.
    """
    if provider.name == OWN_CODE and verifier is None:
        raise ValueError('verifier is missing; name your function, such as verifier = "my_webhooks:verify"')
    if verifier is not None:
        if provider.name != OWN_CODE:
            raise ValueError(
                f"verifier is set, but {provider.name} is verified already; say provider = 'code'"
            )
        if not _FUNCTION.fullmatch(verifier):
            raise ValueError(f"verifier is {verifier!r}; write module:function, such as my_webhooks:verify")
        known = EVENT_KEYS | OWN_KEYS
        for key in options:
            if key not in known:
                raise ValueError(f"options.{key} is not a known option{suggest(key, known)}")
        return _complete(provider, options, {"code": verifier, "keyless": secrets_env is None}), {}
    if not provider.custom:
        return provider, _check_values(provider, options)
    described = EVENT_KEYS | SCHEME_KEYS
    values = {key: value for key, value in options.items() if key not in described}
    # First, as a misspelt key is also a missing one, and this sentence helps more.
    for key in values:
        if f"{{config:{key}}}" not in str(options):
            raise ValueError(f"options.{key} is not a known option{suggest(key, described)}")
    event = {key: value for key, value in options.items() if key in EVENT_KEYS}
    scheme = {key: value for key, value in options.items() if key in SCHEME_KEYS}
    provider = _complete(provider, event, {"scheme": {"type": "hmac", **scheme}})
    return provider, _check_values(provider, values)


def _complete(provider: Provider, event: Mapping[str, Any], proof: Mapping[str, Any]) -> Provider:
    """Return the entry with what a source says of its events and of the way to verify them."""
    reason = {"window_reason": "the source's own options say so"} if "window" in event else {}
    # By alias, and only what is set: that is how the entry stands in its file, whose rules are checked again.
    entry = provider.model_dump(by_alias=True, exclude_unset=True)
    try:
        return Provider.model_validate({**entry, **event, **reason, **proof, "custom": False})
    except ValidationError as error:
        sentence = explain(error, SILENT)
        where = f"options.{sentence.removeprefix('scheme.')}".replace("options.scheme:", "options:")
        raise ValueError(where) from None


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
