"""`firstseen verify`: the step that fails, and a hint at its cause."""

import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config.providers import load_providers
from firstseen.__main__ import cli
from firstseen.verify import STEPS
from receiver.signatures import InvalidSignature, Request, compile_scheme
from receiver.signatures.errors import REASONS
from receiver.verifiers.base import OwnVerifier
from receiver.verifiers.twilio import Twilio
from tests.services.issuing import FixedKeys, google_keys, google_token, sns_message

NOW = 1_700_000_000
SECRET = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnk="
URL = "https://hooks.example.com/webhooks/twilio?a=1&b=2"
BODY = b'{"id":"evt_1","type":"a.b","text":"\xc3\xa9/\xe2\x82\xac"}'
SOURCES = """
[stripe]
provider = "stripe"
secrets_env = "A"
[standard]
provider = "standard-webhooks"
secrets_env = "A"
[github]
provider = "github"
secrets_env = "A"
[twilio]
provider = "twilio"
secrets_env = "A"
[mine]
provider = "code"
verifier = "my_webhooks:acme"
secrets_env = "A"
options = { event_id = "json:id" }
[pubsub]
provider = "google-pubsub"
options = { audience = "https://hooks.example.com/pubsub", email = "push@acme.iam.gserviceaccount.com" }
[nylas]
provider = "nylas"
secrets_env = "A"
[sns]
provider = "aws-sns"
options = { topic_arn = "arn:aws:sns:eu-west-1:123456789012:orders" }
[strava]
provider = "strava"
unverified = true
[later]
provider = "stripe"
secrets_env = "NOT_SET"
"""

Verify = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verify:
    """Return a function that verifies a request and returns the parsed JSON, or the plain output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sources.toml").write_text(SOURCES)
    env = {
        "DATABASE_URL": "sqlite:///a.db",
        "BROKER_URL": "redis://localhost",
        "FIRSTSEEN_SECRET_KEY": "0" * 32,
        "FIRSTSEEN_SOURCES": str(tmp_path / "sources.toml"),
        "A": SECRET,
    }

    def invoke(
        source: str,
        request: Request,
        *more: str,
        expect: int,
        at: int | None = NOW,
        plain: bool = False,
        **env_more: str,
    ) -> Any:
        (tmp_path / "headers.json").write_text(json.dumps(request.headers))
        (tmp_path / "body").write_bytes(request.body)
        words = ["verify", source, "--headers", "headers.json", "--body", "body"]
        words += [*([] if at is None else ["--at", str(at)]), *more]
        words += [] if plain else ["--json"]
        result = CliRunner().invoke(cli, words, env=env | env_more)
        assert result.exit_code == expect, result.output
        assert SECRET not in result.output
        assert SECRET.removeprefix("whsec_") not in result.output
        return result.output if plain or expect == 2 else json.loads(result.output)

    return invoke


def signed(provider: str, body: bytes = BODY, now: float = NOW, secret: str = SECRET) -> Request:
    """Return a request signed as a provider does."""
    scheme = compile_scheme(load_providers()[provider].required_scheme)
    request = Request("POST", URL, (("Content-Type", "application/json"),), body)
    return scheme.sign(secret, request, now, "msg_1")


def with_body(request: Request, body: bytes) -> Request:
    """Return a request with another body."""
    return Request(request.method, request.url, request.headers, body)


def only_hint(verdict: dict[str, Any]) -> str:
    """Return the only hint of a rejection."""
    assert verdict["verified"] is False
    assert len(verdict["hints"]) == 1, verdict
    return str(verdict["hints"][0])


@pytest.mark.parametrize("at", ["nan", "inf", "1e400", "-1", "1e300"])
def test_a_time_that_no_clock_shows_is_refused(run: Verify, at: str) -> None:
    """With a sentence, not a traceback."""
    assert "Invalid value for '--at'" in run("stripe", signed("stripe"), f"--at={at}", expect=2)


def test_every_reason_has_its_step() -> None:
    assert set(STEPS) == set(REASONS)


def test_a_genuine_delivery(run: Verify) -> None:
    """Exit 0 and its events, in JSON and in words."""
    verdict = run("stripe", signed("stripe"), expect=0)
    assert verdict["verified"] is True
    assert verdict["events"] == [{"event_id": "evt_1", "type": "a.b"}]
    lines = run("stripe", signed("stripe"), expect=0, plain=True).splitlines()
    assert [line.split() for line in lines] == [
        ["source", "stripe", "(stripe)"],
        ["verdict", "verified"],
        ["event", "evt_1", "a.b"],
    ]


def test_a_compressed_delivery(run: Verify) -> None:
    """Verified as it came and then unpacked, as in the receiver."""
    packed = signed("nylas", gzip.compress(b'{"id":"n1","type":"message.created"}'))
    arrived = Request("POST", URL, (*packed.headers, ("Content-Encoding", "gzip")), packed.body)
    assert run("nylas", arrived, expect=0)["events"] == [{"event_id": "n1", "type": "message.created"}]


def test_an_event_that_would_be_parked(run: Verify) -> None:
    """A delivery without an event id verifies, and the hint says that it would be parked."""
    verdict = run("stripe", signed("stripe", b'{"type":"a.b"}'), expect=0)
    assert verdict["hints"] == ["It would be parked. It has no event id at json:id."]


def test_a_rejection_in_words(run: Verify) -> None:
    """Exit 1, the step, the reason and a hint."""
    other = signed("stripe", secret="whsec_other")
    lines = run("stripe", other, expect=1, plain=True).splitlines()
    assert lines[1].split() == ["verdict", "rejected"]
    assert lines[2].split(maxsplit=1) == ["step", "compare the signature (bad_signature)"]
    assert lines[3].startswith("why      the signature does not belong")
    assert "Compare the secret" in lines[4]


COMPACT = json.loads(BODY)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (BODY + b"\n", "without the newline at its end"),
        (json.dumps(COMPACT).encode(), "as JSON without blanks, letters as they are"),
        (json.dumps(COMPACT, indent=2, ensure_ascii=False).encode(), "as JSON without blanks"),
        (b"\xef\xbb\xbf" + BODY, "without its byte order mark"),
    ],
)
def test_a_reserialized_body(run: Verify, body: bytes, what: str) -> None:
    """The hint says which form of the body was signed."""
    hint = only_hint(run("github", with_body(signed("github"), body), expect=1))
    assert what in hint
    assert "raw bytes" in hint


@pytest.mark.parametrize(
    ("sent", "arrived"),
    [
        (BODY + b"\n", BODY),
        (BODY + b"\r\n", BODY),
        (json.dumps(COMPACT, indent=2).encode(), BODY),
        (json.dumps(COMPACT).replace("/", "\\/").encode(), BODY),
        (b"a\r\nb\r\n", b"a\nb\n"),
    ],
)
def test_a_body_that_lost_bytes(run: Verify, sent: bytes, arrived: bytes) -> None:
    """Removed and differently escaped bytes are found too."""
    assert "fits the body" in only_hint(run("github", with_body(signed("github", sent), arrived), expect=1))


@pytest.mark.parametrize(("age", "word"), [(301, "old"), (-301, "in the future")])
def test_a_clock_that_is_off(run: Verify, age: int, word: str) -> None:
    """The signature is good and the hint has the difference in seconds; --at corrects it."""
    late = signed("stripe", now=NOW - age)
    verdict = run("stripe", late, expect=1)
    hint = only_hint(verdict)
    assert verdict["step"] == "check the time"
    assert f"only {word}" in hint
    assert "301 s apart" in hint
    at = re.search(r"--at (\d+)", hint)
    assert at
    assert run("stripe", late, "--at", at[1], expect=0)["verified"]


def test_now_is_the_default(run: Verify) -> None:
    assert run("stripe", signed("stripe", now=time.time()), at=None, expect=0)["verified"]


@pytest.mark.parametrize(
    ("source", "secret", "words"),
    [
        ("standard", "utf8", "read as utf8, not as base64 after 'whsec_'"),
        ("github", "base64", "read as base64 after 'whsec_', not as utf8"),
    ],
)
def test_a_secret_in_another_encoding(run: Verify, source: str, secret: str, words: str) -> None:
    """The hint says how the sender reads the secret."""
    name = {"standard": "standard-webhooks"}.get(source, source)
    table = load_providers()[name].required_scheme
    key = {"encoding": secret, "strip_prefix": "whsec_" if secret == "base64" else ""}
    scheme = compile_scheme(
        type(table).model_validate({**table.model_dump(by_alias=True, exclude_unset=True), "key": key})
    )
    request = Request("POST", URL, (("Content-Type", "application/json"),), BODY)
    sent = scheme.sign(SECRET, request, NOW, "msg_1")
    assert words in only_hint(run(source, sent, expect=1))


def test_a_secret_with_quotes(run: Verify) -> None:
    """Quotes kept from an environment file are found; the secret is not shown."""
    hint = only_hint(run("stripe", signed("stripe"), expect=1, A=f'"{SECRET}"'))
    assert "without quotes" in hint


@pytest.mark.parametrize(
    "arrived",
    [
        URL.replace("https", "http"),
        URL.replace("hooks.example.com", "10.0.0.7:8000"),
        URL.replace("twilio?", "twilio/?"),
        URL.replace("a=1&b=2", "b=2&a=1"),
    ],
)
def test_a_url_that_a_proxy_changed(run: Verify, arrived: str) -> None:
    """The hint has the signed URL and the two settings that restore it."""
    form = Request("POST", URL, (("Content-Type", "application/x-www-form-urlencoded"),), b"A=1")
    sent = Twilio().sign(SECRET, form, NOW, "x")
    host = ("X-Forwarded-Host", "hooks.example.com")
    sent = Request(sent.method, sent.url, (*sent.headers, host), sent.body)
    assert run("twilio", sent, "--url", URL, expect=0)["verified"]
    hint = only_hint(run("twilio", sent, "--url", arrived, expect=1))
    assert f"fits the URL {URL}" in hint
    assert "FIRSTSEEN_PUBLIC_URL" in hint


def test_the_public_url_is_the_default(run: Verify) -> None:
    """For a delivery without --url."""
    form = Request(
        "POST", URL.partition("?")[0], (("Content-Type", "application/x-www-form-urlencoded"),), b"A=1"
    )
    sent = Twilio().sign(SECRET, form, NOW, "x")
    assert run("twilio", sent, expect=0, FIRSTSEEN_PUBLIC_URL="https://hooks.example.com")["verified"]
    hints = run("twilio", sent, expect=1)["hints"]
    assert "http://localhost:8000/webhooks/twilio was tried" in hints[0]
    assert "--url" in hints[0]


def test_a_signature_in_another_header(run: Verify) -> None:
    """A renamed header and a missing prefix are named."""
    sent = signed("github")
    value = sent.header("X-Hub-Signature-256") or ""
    renamed = Request("POST", URL, (("X-Original-Signature", value),), BODY)
    verdict = run("github", renamed, expect=1)
    assert (verdict["step"], verdict["reason"]) == ("find the signature", "missing_signature")
    assert "stands in X-Original-Signature, not in X-Hub-Signature-256" in only_hint(verdict)
    bare = Request("POST", URL, (("X-Hub-Signature-256", value.removeprefix("sha256=")),), BODY)
    assert "with 'sha256=' before it" in only_hint(run("github", bare, expect=1))


@pytest.mark.parametrize(
    ("source", "headers", "sentence"),
    [
        ("nothing", "{}", "There is no source 'nothing'"),
        ("later", "{}", "NOT_SET is not set"),
        ("stripe", "[1]", 'write {"Name": "value"}'),
        ("stripe", '{"a": 1}', 'write {"Name": "value"}'),
        ("stripe", "{", 'write {"Name": "value"}'),
    ],
)
def test_misuse(run: Verify, tmp_path: Path, source: str, headers: str, sentence: str) -> None:
    """Exit 2 with a sentence."""
    (tmp_path / "other.json").write_text(headers)
    output = run(source, signed("stripe"), "--headers", "other.json", expect=2)
    assert sentence in output


def test_headers_as_an_object(run: Verify, tmp_path: Path) -> None:
    """A repeated header is a list."""
    sent = dict(signed("stripe").headers)
    (tmp_path / "other.json").write_text(json.dumps(sent))
    assert run("stripe", signed("stripe"), "--headers", "other.json", expect=0)["verified"]
    (tmp_path / "other.json").write_text(json.dumps(sent | {"Stripe-Signature": ["t=1,v1=00", "t=2,v1=00"]}))
    verdict = run("stripe", signed("stripe"), "--headers", "other.json", expect=1)
    assert verdict["reason"] == "repeated_value"


@pytest.mark.parametrize("age", [3_700, -100])
def test_the_clock_of_a_token(run: Verify, monkeypatch: pytest.MonkeyPatch, age: int) -> None:
    """An expired or premature token gets the difference in seconds; --at corrects it."""
    monkeypatch.setattr("receiver.endpoints.FetchedKeys", lambda: FixedKeys(google_keys()))
    message = Request("POST", URL, (("Authorization", f"Bearer {google_token(NOW - age)}"),), BODY)
    hint = only_hint(run("pubsub", message, expect=1))
    assert f"{abs(age)} s apart" in hint
    at = re.search(r"--at (\d+)", hint)
    assert at
    assert run("pubsub", message, "--at", at[1], expect=0)["verified"]


def test_a_users_verifier_gets_no_hint_about_the_clock(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it is off is unknown."""

    def stale(_: Request, _secrets: object, _now: float) -> None:
        raise InvalidSignature("stale_timestamp")

    monkeypatch.setattr("receiver.endpoints.load_verifier", lambda name: OwnVerifier(name, stale))
    assert run("mine", signed("stripe"), expect=1)["hints"] == []


def test_without_the_providers_key_there_is_no_verdict(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2, with the reason."""
    monkeypatch.setattr("receiver.endpoints.FetchedKeys", lambda: FixedKeys(None))
    message = Request("POST", URL, (), json.dumps(sns_message()).encode())
    assert "cannot be verified now: nobody answers" in run("sns", message, expect=2)


def test_an_unverified_source(run: Verify) -> None:
    """Its deliveries are accepted, and the output says why."""
    body = b'{"object_type":"activity","object_id":1,"aspect_type":"update","event_time":2}'
    verdict = run("strava", Request("POST", URL, (), body), expect=0)
    assert verdict["hints"] == [
        "This sender proves nothing, and its source lets everything in: unverified = true."
    ]


def test_a_deeply_nested_body_is_rejected_as_usual(run: Verify) -> None:
    """It cannot be reserialized, and the other causes are still tried."""
    deep = b"[" * 900 + b"]" * 900
    verdict = run("github", with_body(signed("github"), deep), expect=1)
    assert verdict["reason"] == "bad_signature"
