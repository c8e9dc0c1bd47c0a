"""What the Flask application sees of a request: its WSGI environ, and the client behind proxies."""

from typing import Any

import pytest

from receiver.gateway import _by_name, _check_repeated, _environ, _forwarding
from receiver.problems import Problem

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/caf\u00e9",
    "raw_path": b"/caf%C3%A9",
    "query_string": b"a=%20",
    "http_version": "1.1",
    "scheme": "http",
    "server": ("0.0.0.0", 8000),
    "client": ("2001:db8::7", 40000),
}


def test_the_environ_is_that_of_the_request() -> None:
    """Path and query are as WSGI wants them, the body is whole, an IPv6 client is itself."""
    headers = [("host", "hooks.example.com"), ("content-type", "a/b"), ("content-length", "999"),
               ("transfer-encoding", "chunked"), ("x-note", "caf\xe9")]  # fmt: skip
    environ = _environ(SCOPE, headers, b"body")
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/caf\u00e9"
    assert (environ["QUERY_STRING"], environ["REMOTE_ADDR"]) == ("a=%20", "2001:db8::7")
    assert (environ["wsgi.input"].read(), environ["CONTENT_LENGTH"]) == (b"body", "4")
    assert (environ["HTTP_HOST"], environ["CONTENT_TYPE"]) == ("hooks.example.com", "a/b")
    assert environ["HTTP_X_NOTE"] == "caf\xe9"
    assert not {"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_TRANSFER_ENCODING"} & set(environ)


def test_repeated_headers_are_joined() -> None:
    """By commas, cookies by semicolons (RFC 9113, section 8.2.3); an underscore passes for nothing."""
    headers = [("cookie", "a=1"), ("x-note", "1"), ("x_note", "2"), ("cookie", "b=2"), ("x-note", "3")]
    environ = _environ(SCOPE, headers, b"")
    assert (environ["HTTP_COOKIE"], environ["HTTP_X_NOTE"]) == ("a=1; b=2", "1, 3")
    assert _by_name(headers)["x-note"] == "1, 3"
    assert _by_name(headers[:2]) == {"cookie": "a=1", "x-note": "1"}


def test_a_header_of_one_value_may_not_be_repeated() -> None:
    """Others may."""
    fine = [("x-note", "1"), ("x-note", "1"), ("host", "a")]
    _check_repeated(fine, _by_name(fine))
    with pytest.raises(Problem, match="host"):
        _check_repeated([*fine, ("host", "a")], _by_name(fine))


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        (["198.51.100.7, 203.0.113.9"], "203.0.113.9"),
        (["198.51.100.7", "203.0.113.9"], "203.0.113.9"),
        (["198.51.100.7, 2001:db8::9"], "2001:db8::9"),
        ([], "192.0.2.1"),
    ],
)
def test_the_last_forwarded_value_of_all_lines_counts(lines: list[str], seen: str) -> None:
    """Whether a proxy adds to a line or adds a line."""
    headers = [("x-forwarded-for", line) for line in lines] + [("x_forwarded_for", "192.0.2.66")]
    headers += [("x-forwarded-proto", "https")]
    found = _forwarding(1)(headers, "http", "hooks.example.com", "192.0.2.1")
    assert found == ("https", "hooks.example.com", seen)
