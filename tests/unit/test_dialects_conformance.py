"""Tests that every entry of dialects.toml inherits."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from config.apis import load_apis
from config.dialects import KEY_LENGTH, Dialect, Error, load_dialects
from receiver.idempotency import Refusal
from receiver.ledger.calls import Classification, SendContext
from receiver.ledger.states import Protection, SendOutcome
from receiver.sandbox.apis import SandboxApi
from receiver.sandbox.factory import APIS as SANDBOX
from worker.calls.classify import classify, protection
from worker.calls.transport import Reply

DIALECTS = load_dialects()
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
BASES = ("", "/v9", "/gateway/shop/v9")
SHAPES = ("{}", '{{"error":{{"code":"{}","message":"-"}}}}', '{{"error":"{}"}}', '{{"type":"/errors/{}"}}')
"""Bodies that may carry a document's error code; none of the documents gives the shape."""


def having(feature: Callable[[Dialect], object]) -> pytest.MarkDecorator:
    """Run a test for each dialect that has this feature."""
    names = [name for name, dialect in DIALECTS.items() if feature(dialect)]
    return pytest.mark.parametrize("dialect", [DIALECTS[name] for name in names], ids=names)


every = having(lambda _: True)


def read(
    dialect: Dialect, status: int, body: str = "", *, again: bool = True, **headers: str
) -> Classification:
    """Classify the response to a keyed POST; `_` in header names stands for `-`."""
    context = SendContext(open_before=again, live=True, protection=Protection.KEYED, method="POST")
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return classify(dialect, context, Reply(status, named, body.encode()), NOW)


def bodies(error: Error) -> list[str]:
    """Return bodies that may carry this error's code."""
    return [shape.format(error.code) for shape in SHAPES]


def concrete(entry: str) -> tuple[str, str]:
    """Return an operation's method and a path that matches it."""
    method, _, path = entry.partition(" ")
    return method, "/orders/o-1" if path == "*" else path.replace("{id}", "o-1")


@having(lambda dialect: dialect.carries_keys)
def test_our_keys_fit(dialect: Dialect) -> None:
    """Each API takes the 36 characters of a UUID."""
    assert dialect.min_length <= KEY_LENGTH <= dialect.max_length


@every
def test_a_key_is_trusted_no_longer_than_a_day(dialect: Dialect) -> None:
    """No document promises more; an entry that does must quote its words in docs/dialects.md first."""
    assert timedelta(0) < dialect.life <= timedelta(days=1)


@having(lambda dialect: dialect.covers)
def test_covered_requests_are_keyed_below_any_base(dialect: Dialect) -> None:
    """Gateways and versions put segments before the path, so its end decides."""
    for entry in dialect.covers:
        method, path = concrete(entry)
        assert {protection(dialect, method, base + path) for base in BASES} == {Protection.KEYED}, entry


@having(lambda dialect: dialect.repeatable)
def test_repeatable_requests_are_protected(dialect: Dialect) -> None:
    """With a key where the API takes one, otherwise without."""
    for entry in dialect.repeatable:
        method, path = concrete(entry)
        for base in BASES:
            keyed = dialect.is_keyed(method, base + path)
            wanted = Protection.KEYED if keyed else Protection.REPEATABLE
            assert protection(dialect, method, base + path) == wanted, entry


@every
def test_a_get_is_never_keyed(dialect: Dialect) -> None:
    assert protection(dialect, "GET", "/orders/o-1") == Protection.REPEATABLE


@having(lambda dialect: dialect.locked)
def test_the_locked_response_is_locked(dialect: Dialect) -> None:
    """With its code in any shape, or by its status alone; nothing is parked."""
    assert dialect.locked
    for body in bodies(dialect.locked):
        verdict = read(dialect, dialect.locked.status, body, retry_after="1")
        assert (verdict.outcome, verdict.park, verdict.open) == (SendOutcome.LOCKED, False, False), body
        assert verdict.retry_after == timedelta(seconds=1)


@having(lambda dialect: dialect.misused)
def test_the_mismatch_response_is_a_mismatch(dialect: Dialect) -> None:
    """Also for a first send: another request used the key, so the call is parked."""
    assert dialect.misused
    for body in bodies(dialect.misused):
        for again in (True, False):
            verdict = read(dialect, dialect.misused.status, body, again=again)
            assert (verdict.outcome, verdict.park) == (SendOutcome.MISMATCH, True), body


@having(lambda dialect: dialect.replay.header)
def test_the_replay_header_is_read(dialect: Dialect) -> None:
    """A marked success is a replay, a marked failure is final, a marked 5xx would repeat forever."""
    header = str(dialect.replay.header).lower().replace("-", "_")
    for status, outcome in ((201, "replayed"), (404, "rejected"), (500, "unknown")):
        marked = read(dialect, status, **{header: "true"})
        assert (marked.outcome, marked.park) == (outcome, status == 500)
        assert read(dialect, status, **{header: "false"}) == read(dialect, status)


@having(lambda dialect: dialect.replay.status)
def test_the_replay_status_is_read(dialect: Dialect) -> None:
    """The stored body tells the original's outcome."""
    status, name = dialect.replay.status, dialect.replay.outcome
    assert status
    for text, outcome in (("true", "replayed"), ("false", "rejected"), ("null", "unknown")):
        assert read(dialect, status, f'{{"{name}": {text}}}').outcome == outcome


@every
def test_plain_statuses(dialect: Dialect) -> None:
    """200 succeeded, 429 later, 500 unknown, 401 rejected."""
    assert read(dialect, 200).outcome == SendOutcome.SUCCEEDED
    assert read(dialect, 429).outcome == SendOutcome.LATER
    assert read(dialect, 500).outcome == SendOutcome.UNKNOWN
    assert read(dialect, 401, again=False).outcome == SendOutcome.REJECTED


@every
def test_an_api_can_use_it(dialect: Dialect, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Three lines of apis.toml are enough."""
    (name,) = (name for name, entry in DIALECTS.items() if entry is dialect)
    file = tmp_path_factory.mktemp("apis") / "apis.toml"
    text = '[shop]\nbase_url = "https://shop.example"\nauth = { type = "bearer", value_env = "SHOP_KEY" }\n'
    file.write_text(f'{text}dialect = "{name}"\n')
    api = load_apis(file, DIALECTS, {"SHOP_KEY": "k"})["shop"]
    assert api.key_margin <= api.key_life / 2
    assert api.dialect is dialect


@pytest.mark.parametrize("api", SANDBOX, ids=lambda api: api.name)
def test_the_sandboxs_errors_are_classified(api: SandboxApi) -> None:
    """The client reads the bodies that the sandbox writes."""
    dialect = DIALECTS[api.name]
    for error, outcome in ((dialect.locked, SendOutcome.LOCKED), (dialect.misused, SendOutcome.MISMATCH)):
        if error:
            body = json.dumps(api.error(Refusal(error.status, error.code, "Take another key.")))
            assert read(dialect, error.status, body).outcome == outcome
    other = json.dumps(api.error(Refusal(400, "validation_error", "Something is missing.")))
    assert read(dialect, 400, other, again=False).outcome == SendOutcome.REJECTED
