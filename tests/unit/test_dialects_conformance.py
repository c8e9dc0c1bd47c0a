"""What every dialect inherits: whoever adds an entry to dialects.toml has these tests."""

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
"""Bodies in which a document's code may stand; none of the documents gives the shape."""


def having(feature: Callable[[Dialect], object]) -> pytest.MarkDecorator:
    """Run a test for each dialect that has this."""
    names = [name for name, dialect in DIALECTS.items() if feature(dialect)]
    return pytest.mark.parametrize("dialect", [DIALECTS[name] for name in names], ids=names)


every = having(lambda _: True)


def read(
    dialect: Dialect, status: int, body: str = "", *, again: bool = True, **headers: str
) -> Classification:
    """Classify the answer to a keyed POST; headers by their names with `_` for `-`."""
    standing = SendContext(open_before=again, live=True, protection=Protection.KEYED, method="POST")
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return classify(dialect, standing, Reply(status, named, body.encode()), NOW)


def bodies(error: Error) -> list[str]:
    """Return the error's code as servers may word it."""
    return [shape.format(error.code) for shape in SHAPES]


def concrete(entry: str) -> tuple[str, str]:
    """Return an operation's method and a path that it means."""
    method, _, path = entry.partition(" ")
    return method, "/orders/o-1" if path == "*" else path.replace("{id}", "o-1")


@having(lambda dialect: dialect.carries_keys)
def test_our_keys_fit(dialect: Dialect) -> None:
    """A key has the 36 characters of a UUID, whatever the API."""
    assert dialect.min_length <= KEY_LENGTH <= dialect.max_length


@every
def test_a_key_is_trusted_no_longer_than_a_day(dialect: Dialect) -> None:
    """No document promises more; an entry that does must quote its words in docs/dialects.md first."""
    assert timedelta(0) < dialect.life <= timedelta(days=1)


@having(lambda dialect: dialect.covers)
def test_what_it_covers_is_keyed_below_any_base(dialect: Dialect) -> None:
    """Gateways, versions and proxies put something before the path; the end says what it is."""
    for entry in dialect.covers:
        method, path = concrete(entry)
        assert {protection(dialect, method, base + path) for base in BASES} == {Protection.KEYED}, entry


@having(lambda dialect: dialect.repeatable)
def test_what_it_repeats_is_not_unprotected(dialect: Dialect) -> None:
    """It is sent again with a key where the API takes one, and otherwise without."""
    for entry in dialect.repeatable:
        method, path = concrete(entry)
        for base in BASES:
            keyed = dialect.is_keyed(method, base + path)
            wanted = Protection.KEYED if keyed else Protection.REPEATABLE
            assert protection(dialect, method, base + path) == wanted, entry


@every
def test_a_get_is_never_keyed(dialect: Dialect) -> None:
    """Reading needs no key anywhere."""
    assert protection(dialect, "GET", "/orders/o-1") == Protection.REPEATABLE


@having(lambda dialect: dialect.locked)
def test_its_locked_answer_is_locked(dialect: Dialect) -> None:
    """Its code in any shape, or its status alone: wait, and park nothing."""
    assert dialect.locked
    for body in bodies(dialect.locked):
        verdict = read(dialect, dialect.locked.status, body, retry_after="1")
        assert (verdict.outcome, verdict.park, verdict.open) == (SendOutcome.LOCKED, False, False), body
        assert verdict.retry_after == timedelta(seconds=1)


@having(lambda dialect: dialect.misused)
def test_its_mismatch_is_a_mismatch(dialect: Dialect) -> None:
    """On a first send as well: somebody else used the key, and a person must look."""
    assert dialect.misused
    for body in bodies(dialect.misused):
        for again in (True, False):
            verdict = read(dialect, dialect.misused.status, body, again=again)
            assert (verdict.outcome, verdict.park) == (SendOutcome.MISMATCH, True), body


@having(lambda dialect: dialect.locked and dialect.misused)
def test_locked_and_mismatch_are_told_apart(dialect: Dialect) -> None:
    """Each error is read as itself and not as the other, whichever rule comes first."""
    for error, outcome in ((dialect.locked, SendOutcome.LOCKED), (dialect.misused, SendOutcome.MISMATCH)):
        assert error
        assert {read(dialect, error.status, body).outcome for body in bodies(error)} == {outcome}


@having(lambda dialect: dialect.replay.header)
def test_its_marker_is_read(dialect: Dialect) -> None:
    """With it a success is a replay, a failure is final, and a server's error comes back for ever."""
    header = str(dialect.replay.header).lower().replace("-", "_")
    for status, outcome in ((201, "replayed"), (404, "rejected"), (500, "unknown")):
        marked = read(dialect, status, **{header: "true"})
        assert (marked.outcome, marked.park) == (outcome, status == 500)
        assert read(dialect, status, **{header: "false"}) == read(dialect, status)


@having(lambda dialect: dialect.replay.status)
def test_its_replay_status_is_read(dialect: Dialect) -> None:
    """The original's body says how it ended."""
    status, name = dialect.replay.status, dialect.replay.outcome
    assert status
    for text, outcome in (("true", "replayed"), ("false", "rejected"), ("null", "unknown")):
        assert read(dialect, status, f'{{"{name}": {text}}}').outcome == outcome


@every
def test_plain_answers_mean_what_they_say(dialect: Dialect) -> None:
    """Success is success, too many requests is later, and a server's error may have done it."""
    assert read(dialect, 200).outcome == SendOutcome.SUCCEEDED
    assert read(dialect, 429).outcome == SendOutcome.LATER
    assert read(dialect, 500).outcome == SendOutcome.UNKNOWN
    assert read(dialect, 401, again=False).outcome == SendOutcome.REJECTED


@every
def test_an_api_can_be_configured_with_it(dialect: Dialect, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Three lines of apis.toml are enough."""
    (name,) = (name for name, one in DIALECTS.items() if one is dialect)
    file = tmp_path_factory.mktemp("apis") / "apis.toml"
    text = '[shop]\nbase_url = "https://shop.example"\nauth = { type = "bearer", value_env = "SHOP_KEY" }\n'
    file.write_text(f'{text}dialect = "{name}"\n')
    api = load_apis(file, DIALECTS, {"SHOP_KEY": "k"})["shop"]
    assert api.key_margin <= api.key_life / 2
    assert api.dialect is dialect


@pytest.mark.parametrize("api", SANDBOX, ids=lambda api: api.name)
def test_the_sandboxs_own_words_are_understood(api: SandboxApi) -> None:
    """What the sandbox answers about a key is what the client reads, body and all."""
    dialect = DIALECTS[api.name]
    for error, outcome in ((dialect.locked, SendOutcome.LOCKED), (dialect.misused, SendOutcome.MISMATCH)):
        if error:
            body = json.dumps(api.error(Refusal(error.status, error.code, "Take another key.")))
            assert read(dialect, error.status, body).outcome == outcome
    other = json.dumps(api.error(Refusal(400, "validation_error", "Something is missing.")))
    assert read(dialect, 400, other, again=False).outcome == SendOutcome.REJECTED
