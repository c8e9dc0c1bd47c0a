"""TOML files read into frozen tables, and one sentence about what is wrong with them.

`load_tables` builds an entry from each table of a file, `read_toml` reads any file; both raise ConfigError.
`Duration` is a time span as people write it.
"""

import re
import tomllib
from collections.abc import Callable, Collection
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from config.nesting import NestedTooDeeplyError, check_depth, check_toml

# Characters of a wrong value that a sentence repeats.
LONGEST_ECHO = 80

# A longer one, taken from today, leaves the calendar.
LONGEST_DURATION = timedelta(days=36_500)

UNITS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86_400}

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")

# pydantic's type of an error: what to say is allowed.
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

Entry = TypeVar("Entry")


class ConfigError(Exception):
    """A setting is wrong; the message is one sentence: where, what was found, what is allowed."""


class Table(BaseModel):
    """A frozen table that refuses keys it does not know, and names those it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        # Before pydantic, whose own sentence suggests no key.
        for key in data if isinstance(data, dict) else ():
            if key not in known:
                raise ValueError(f"{key!r} is not a known key{suggest(key, known)}")
        return data


def load_tables(
    path: Path,
    kind: str,
    build: Callable[[str, dict[str, Any]], Entry],
    silent: Collection[str] = (),
) -> dict[str, Entry]:
    """Build an entry from each table of a TOML file.

    `kind` says what the tables are, with an example: "source must be a table such as [stripe]". A ValueError
    from `build` becomes a ConfigError that names file and table; `silent` is as in `explain`.
    """
    entries = {}
    for name, table in read_toml(path).items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: [{name}] is {kind_of(table)}; every {kind}")
        try:
            entries[name] = build(name, table)
        # `from None`, here and below: pydantic's message repeats every value, and a traceback would show it.
        except ValidationError as error:
            raise ConfigError(f"{path}: [{name}] {explain(error, silent)}") from None
        except ValueError as error:
            raise ConfigError(f"{path}: [{name}] {error}") from None
    return entries


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raise ConfigError with a sentence that names it, and the line where it breaks."""
    try:
        # Editors on Windows write a byte order mark.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        check_toml(text)
        tables = tomllib.loads(text)
        # Checked again after parsing, as dotted keys nest without brackets.
        check_depth(tables)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: it is not UTF-8, and TOML must be") from None
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
    is_silent = any(step in silent for step in first["loc"])
    found = kind_of(first["input"]) if is_silent else echo(first["input"])
    sentence = _ALLOWED.get(first["type"])
    allowed = sentence.format(**first.get("ctx", {})) if sentence else first["msg"]
    return f"{where} is {found}; {allowed}"


def suggest(word: str, known: Collection[str], lister: str = "") -> str:
    """Suggest the closest known word; without one list them all, or name the command that does (`lister`)."""
    if close := get_close_matches(word, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; `{lister}` lists them" if lister else f"; known are {', '.join(sorted(known))}"


def echo(value: Any) -> str:
    """Show a short value as it was written, a table or an array by its kind."""
    if isinstance(value, dict | list):
        return kind_of(value)
    # TOML's booleans have no capitals.
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}..."


def kind_of(value: Any) -> str:
    """Name TOML's kind of a value."""
    kinds = {dict: "a table", list: "an array", str: "a string", bool: "a boolean", int: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def split_list(text: str) -> tuple[str, ...]:
    """Split at commas; blanks around entries, and empty entries, are dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def is_variable(name: Any) -> bool:
    """Say whether this can name an environment variable; a secret put there by mistake seldom can."""
    return isinstance(name, str) and _VARIABLE.fullmatch(name) is not None


def variable_of(secret: str) -> BeforeValidator:
    """Accept the name of the variable that holds this secret; the error never repeats what was found."""

    def check(value: Any) -> Any:
        if not is_variable(value):
            raise ValueError(
                f"found {kind_of(value)} that is no variable's name;"
                f" write capitals, digits and _, never the {secret}"
            )
        return value

    return BeforeValidator(check)


def parse_duration(text: str) -> timedelta:
    """Read a number with a unit of ms, s, min, h or d; raise ValueError with a sentence otherwise."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write a number with ms, s, min, h or d, such as 30d")
    try:
        return timedelta(seconds=float(match[1]) * UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"{text!r} is longer than a duration can be") from None


def in_words(span: timedelta) -> str:
    """Write a duration as it is written in TOML: `30d`, `36h`, `90s`."""
    seconds = span.total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


def _read_duration(value: Any) -> timedelta:
    if not isinstance(value, str | timedelta):
        raise ValueError(f'found {kind_of(value)}; write a number with its unit in quotes, such as "30d"')  # noqa: TRY004 - pydantic makes sentences of ValueErrors alone
    span = parse_duration(value) if isinstance(value, str) else value
    if not timedelta(0) < span <= LONGEST_DURATION:
        raise ValueError(
            f"{value!r} is out of range; it must be more than 0s and at most {LONGEST_DURATION.days}d"
        )
    return span


# A duration as people write it: `90s`, `10min`, `1h`, `30d`.
Duration = Annotated[timedelta, BeforeValidator(_read_duration)]
