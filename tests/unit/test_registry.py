"""The registry of handlers: patterns, options, and errors at import."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from worker import handles, registry
from worker.registry import Handler, HandlerError, Registry, load_handlers


@pytest.fixture(autouse=True)
def _undeclared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test without declared handlers."""
    monkeypatch.setattr(registry, "_declared", [])


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder whose Python files can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def handler(source: str, event_type: str) -> Handler:
    """Make a handler for a pattern."""
    return Handler(source, event_type, lambda _event, _calls: None)


@pytest.mark.parametrize(
    ("event_type", "winner"),
    [
        ("invoice.paid", "invoice.paid"),
        ("invoice.voided", "invoice.*"),
        ("invoice.", "invoice.*"),
        ("invoice", "*"),
        ("invoice.paid.late", "invoice.paid*"),
        ("", "*"),
    ],
)
def test_the_most_specific_pattern_wins(event_type: str, winner: str) -> None:
    """An exact type, then the longest prefix, in any order of declaration."""
    patterns = ["*", "invoice.*", "invoice.paid", "invoice.paid*"]
    for order in (patterns, patterns[::-1]):
        found = Registry([handler("stripe", pattern) for pattern in order]).find("stripe", event_type)
        assert found
        assert found.type == winner


def test_the_source_counts_before_the_type() -> None:
    """A handler of this source wins over one of any source, however exact its type."""
    both = Registry([handler("*", "invoice.paid"), handler("stripe", "*")])
    found = both.find("stripe", "invoice.paid")
    assert found
    assert (found.source, found.type) == ("stripe", "*")
    other = both.find("shopify", "invoice.paid")
    assert other
    assert other.source == "*"


def test_no_pattern_no_handler() -> None:
    """Patterns are not regular expressions."""
    only = Registry([handler("stripe", "invoice.paid")])
    assert only.find("stripe", "invoiceXpaid") is None
    assert only.find("stripe2", "invoice.paid") is None


def test_two_handlers_for_one_pattern_are_refused() -> None:
    """The message names both."""

    @handles("stripe", "invoice.paid")
    def one(event: Any, calls: Any) -> None: ...

    @handles("stripe", "invoice.paid")
    def other(event: Any, calls: Any) -> None: ...

    with pytest.raises(HandlerError, match=r"one and .*other both handle \('stripe', 'invoice.paid'\)"):
        load_handlers(["json"])


def test_one_function_may_take_many_patterns() -> None:
    """The same pattern twice is no conflict."""

    @handles("stripe", "invoice.paid")
    @handles("stripe", "invoice.voided")
    @handles("stripe", "invoice.paid")
    def one(event: Any, calls: Any) -> None: ...

    loaded = load_handlers(["json"])
    assert {item.type for item in loaded.handlers} == {"invoice.paid", "invoice.voided"}
    assert {item.run for item in loaded.handlers} == {one}


@pytest.mark.parametrize(
    ("source", "event_type", "options", "sentence"),
    [
        ("stripe", "*.paid", {}, "may only stand at the end"),
        ("*e", "invoice.paid", {}, "may only stand at the end"),
        ("", "invoice.paid", {}, "may only stand at the end"),
        ("stripe", "", {}, "may only stand at the end"),
        ("stripe", "x", {"attempts": 0}, "attempts is 0, and must be 1 or more"),
        ("stripe", "x", {"backoff": "5"}, "backoff '5' is not a duration"),
    ],
)
def test_a_wrong_pattern_or_option_is_refused(
    source: str, event_type: str, options: dict[str, Any], sentence: str
) -> None:
    """At the decorator, with a message that quotes it."""
    with pytest.raises(HandlerError, match=sentence):
        handles(source, event_type, **options)


def test_options_reach_the_handler() -> None:
    @handles("stripe", "x", attempts=3, backoff="5s")
    def one(event: Any, calls: Any) -> None: ...

    (found,) = load_handlers(["json"]).handlers
    assert (found.attempts, found.backoff) == (3, timedelta(seconds=5))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import nowhere_at_all", "broken fails to import: ModuleNotFoundError"),
        ("def (", "broken fails to import: SyntaxError"),
        ("raise SystemExit(0)", "broken fails to import: SystemExit"),
        ("from worker import handles\nhandles('stripe', '*x')", "may only stand at the end"),
    ],
)
def test_a_module_that_fails_to_import_is_named(modules: Path, code: str, sentence: str) -> None:
    """Even SystemExit at import becomes an error that names the module."""
    (modules / "broken.py").write_text(code)
    with pytest.raises(HandlerError, match=sentence):
        load_handlers(["broken"])


def test_handlers_come_from_the_named_modules(modules: Path) -> None:
    (modules / "mine.py").write_text(
        "from worker import handles\n\n\n@handles('stripe', '*')\ndef take(event, calls): ...\n"
    )
    loaded = load_handlers(["mine"])
    assert [item.name for item in loaded.handlers] == ["mine.take"]
