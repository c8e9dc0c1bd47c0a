"""TOML files read into tables, and what is wrong with them in one sentence."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from config.errors import ConfigError
from config.nesting import NestedTooDeeplyError, check_depth, check_toml

LONGEST_ECHO = 80
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")

_ALLOWED = {
    "literal_error": "allowed is {expected}",
    "int_type": "it must be a whole number",
    "bool_type": "it must be true or false",
    "string_type": "it must be a string",
    "string_too_short": "it must not be empty",
    "string_pattern_mismatch": "it must match {pattern}",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be {ge} or more",
    "less_than_equal": "it must be {le} or less",
    "tuple_type": "it must be an array",
    "dict_type": "it must be a table",
    "mapping_type": "it must be a table",
    "model_type": "it must be a table",
}


class Table(BaseModel):
    """A frozen table that refuses keys it does not know, and names those it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data if isinstance(data, dict) else ():
            if key not in known:
                raise ValueError(f"{key!r} is not a known key{suggest(key, known)}")
        return data


def suggest(word: str, known: Collection[str], lister: str = "") -> str:
    """Say which known word was meant, or which there are, or what lists them if they fill no sentence."""
    if close := get_close_matches(word, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; `{lister}` lists them" if lister else f"; known are {', '.join(sorted(known))}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raise ConfigError with a sentence that names it, and the line where it breaks."""
    return parse_toml(path, read_text(path))


def read_text(path: Path) -> str:
    """Read a file of ours; raise ConfigError with a sentence that names it."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: it is not UTF-8, and TOML must be") from None


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    """Parse TOML that was read from a file; raise ConfigError with a sentence and the line."""
    try:
        check_toml(text)
        tables = tomllib.loads(text)
        # Dotted keys nest without brackets.
        check_depth(tables)
    except NestedTooDeeplyError as error:
        raise ConfigError(f"{path}: it is {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: it is not valid TOML: {error}") from None
    return tables


def explain(error: ValidationError, silent: Collection[str] = ()) -> str:
    """Make one sentence of the first thing that is wrong: key, what was found, what is allowed.

    Values under a key in `silent` are not repeated: they may be secrets put in the wrong place.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    found = kind_of(first["input"]) if _is_silent(first["loc"], silent) else echo(first["input"])
    return f"{where} is {found}; {_allowed(first['type'], first.get('ctx', {}), first['msg'])}"


def _allowed(kind: str, context: Mapping[str, Any], message: str) -> str:
    sentence = _ALLOWED.get(kind)
    return sentence.format(**context) if sentence else message


def echo(value: Any) -> str:
    """Show a short value as it was written, a table or an array by its kind."""
    if isinstance(value, dict | list):
        return kind_of(value)
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}..."


def is_variable(name: Any) -> bool:
    """Say whether this can name an environment variable; a secret put there by mistake seldom can."""
    return isinstance(name, str) and _VARIABLE.fullmatch(name) is not None


def kind_of(value: Any) -> str:
    """Name TOML's kind of a value."""
    kinds = {dict: "a table", list: "an array", str: "a string", bool: "a boolean", int: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _is_silent(loc: Sequence[int | str], silent: Collection[str]) -> bool:
    return any(step in silent for step in loc)
