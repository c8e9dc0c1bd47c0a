"""The payload of a delivery, parsed: JSON, a form, or JSON inside a form's `payload` field."""

import json
from codecs import BOM_UTF8
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from config.nesting import NestedTooDeeplyError, load_json

FORM = "application/x-www-form-urlencoded"

# Far above any provider's form; without a bound one body could hold a million.
MAX_FORM_FIELDS = 10_000


class UnreadablePayloadError(ValueError):
    """The body is neither JSON nor a form; the message is a sentence without any of its bytes."""


def parse_payload(body: bytes, content_type: str | None) -> Any:
    """Parse a body as its content type says; everything that is not a form is read as JSON.

    A form becomes a dict of strings, with a list where a field repeats. A form whose `payload`
    field holds JSON becomes that JSON, as GitHub and Slack send it. Of two equal keys in JSON the last one
    counts. Raise UnreadablePayloadError, and nothing else, for any bytes.
    """
    if not is_form(content_type):
        return parse_json(body)
    fields = parse_form(body)
    payload = fields.get("payload")
    if isinstance(payload, str) and payload.lstrip()[:1] in ("{", "["):
        return parse_json(payload.encode("utf-8", "surrogatepass"))
    return fields


def is_form(content_type: str | None) -> bool:
    """Whether a content type, parameters or not, names a URL-encoded form."""
    return (content_type or "").partition(";")[0].strip().lower() == FORM


def parse_json(body: bytes) -> Any:
    """Parse UTF-8 JSON (RFC 8259, a byte order mark allowed); raise UnreadablePayloadError."""
    if not body:
        raise UnreadablePayloadError("the body is empty")
    try:
        return load_json(body.removeprefix(BOM_UTF8).decode(), _JSON.decode)
    except UnicodeDecodeError:
        raise UnreadablePayloadError("the body is not UTF-8") from None
    except NestedTooDeeplyError as error:
        raise UnreadablePayloadError(f"the body is {error}") from None
    except json.JSONDecodeError as error:
        raise UnreadablePayloadError(f"the body is not JSON (at character {error.pos})") from None
    except ValueError:
        raise UnreadablePayloadError(
            "the body holds a number that JSON does not have or that is too long"
        ) from None


def parse_form(body: bytes) -> dict[str, Any]:
    """Parse a URL-encoded form, blank values kept; raise UnreadablePayloadError."""
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except UnicodeDecodeError:
        raise UnreadablePayloadError("the form is not UTF-8") from None
    except ValueError:
        raise UnreadablePayloadError(f"the form has more than {MAX_FORM_FIELDS} fields") from None
    collected: dict[str, list[str]] = {}
    for name, value in pairs:
        collected.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in collected.items()}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


# Python reads NaN and Infinity, which JSON does not have, and no other reader would.
_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
