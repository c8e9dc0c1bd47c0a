"""HMACs over the URL and the sorted fields of a form: Twilio and Mandrill."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

from receiver.ledger.payload import MAX_FORM_FIELDS
from receiver.signatures.decoding import wire
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import Request

PORTS = {"https": 443, "http": 80}


def sorted_fields(request: Request) -> bytes:
    """Return every distinct name with its value, in order, with nothing in between; blank values count.

    They stay bytes, one latin-1 character each, and UTF-8 sorts as its characters do.
    """
    text = request.body.decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_FORM_FIELDS)
    except ValueError:
        raise InvalidSignature("unreadable_body", "the form has too many fields") from None
    return "".join(name + value for name, value in sorted(set(pairs))).encode("latin-1")


def url_spellings(url: str) -> Iterator[bytes]:
    """Yield the URL as it is, without its port, and with the port that its scheme implies."""
    yield wire(url)
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return
    if not host or parts.scheme not in PORTS:
        return
    before, _, _ = parts.netloc.rpartition(f":{port}") if port is not None else (parts.netloc, "", "")
    yield wire(parts._replace(netloc=before).geturl())
    if port is None:
        yield wire(parts._replace(netloc=f"{before}:{PORTS[parts.scheme]}").geturl())


def with_header(request: Request, name: str, value: str) -> Request:
    """Return the request with a header set."""
    others: Iterable[tuple[str, str]] = (pair for pair in request.headers if pair[0].lower() != name.lower())
    return replace(request, headers=(*others, (name, value)))
