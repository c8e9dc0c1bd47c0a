"""Sources verified by code, over HTTP: fetched keys, users' functions, and proxies."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from twilio.request_validator import RequestValidator
from werkzeug.test import TestResponse

import firstseen.send
import receiver.app
import receiver.endpoints
from config.toml import ConfigError
from firstseen.__main__ import cli
from firstseen.send import DeliveryAnswer, Sample
from receiver.verifiers.remote_keys import FetchedKeys, Keys
from tests.integration.conftest import Serve
from tests.services.checkout import CHECKOUT
from tests.services.databases import NO_BROKER, Databases
from tests.services.issuing import SNS_CONFIRM, SNS_TOPIC, FixedKeys, sns_certificate, sns_message
from tests.services.ledger import Ledger
from tests.services.processes import clean_environment
from tests.services.publisher import Publisher

SECRET = "canary-4f1e"
SOURCES = f"""
[sns]
provider = "aws-sns"
options = {{ topic_arn = "{SNS_TOPIC}" }}

[twilio]
provider = "twilio"
secrets_env = "TEST_SECRET"

[payments]
provider = "mollie-classic"
unverified = true

[own]
provider = "code"
verifier = "own_webhooks:verify"
secrets_env = "TEST_SECRET"
options = {{ event_id = "json:id", event_type = "json:type" }}
"""
OWN = """
from receiver.verifiers import InvalidSignature, verifies

@verifies
def verify(request, secrets, now):
    word = request.header("X-Word")
    if word == "boom":
        raise RuntimeError(f"{word} {secrets}")
    if word == "false":
        return word in secrets
    if word not in secrets:
        raise InvalidSignature("bad_signature")

def undecorated(request, secrets, now):
    pass
"""

MakeClient = Callable[..., FlaskClient]


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """Return a migrated SQLite database: these tests do not depend on its kind."""
    url = databases.migrated("sqlite")
    yield url
    databases.drop(url)


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    """Read the same database with plain SQL."""
    return Ledger(database_url)


@pytest.fixture
def make_client(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> MakeClient:
    """Make clients of applications whose fetched keys come from the given source."""
    (tmp_path / "own_webhooks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_webhooks", raising=False)

    def make(keys: Keys | None = None, sources: str = SOURCES, **env: str) -> FlaskClient:
        monkeypatch.setattr(receiver.endpoints, "FetchedKeys", lambda: keys or FixedKeys(None))
        return serve(database_url, sources, TEST_SECRET=SECRET, **env).test_client()

    return make


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """Publish SNS's certificate."""
    found = Publisher(tmp_path)
    found.body = sns_certificate()
    yield found
    found.stop()


def post(client: FlaskClient, source: str, body: object, **headers: str) -> TestResponse:
    """Post a JSON body."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(
        f"/webhooks/{source}", data=json.dumps(body), headers={"Content-Type": "text/plain", **given}
    )


def test_a_fetched_certificate_lets_deliveries_in(
    make_client: MakeClient, ledger: Ledger, publisher: Publisher
) -> None:
    """Signed messages are recorded, and the certificate is fetched once."""
    client = make_client(FetchedKeys(publisher.transport()))
    for number in range(3):
        assert post(client, "sns", sns_message(MessageId=f"m-{number}")).status_code == 200
    assert post(client, "sns", sns_message() | {"Message": "evil"}).status_code == 401
    assert len(publisher.asked) == 1
    assert [event["event_id"] for event in ledger.events()] == ["m-0", "m-1", "m-2"]


def test_without_its_key_a_delivery_comes_again(
    make_client: MakeClient, ledger: Ledger, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed fetch is 503 with Retry-After, never 401, and nothing is recorded."""
    publisher.status = 500
    answer = post(make_client(FetchedKeys(publisher.transport())), "sns", sns_message())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "answers 500" in caplog.text
    assert ledger.events() == []


def test_a_strange_address_is_refused_and_not_called(make_client: MakeClient, publisher: Publisher) -> None:
    """A certificate URL of another host is 401 and is not fetched."""
    client = make_client(FetchedKeys(publisher.transport()))
    message = sns_message(SigningCertURL="https://sns.eu-west-1.amazonaws.com.evil.example/a.pem")
    assert post(client, "sns", message).status_code == 401
    assert publisher.asked == []


def test_a_subscription_is_confirmed(make_client: MakeClient, ledger: Ledger, publisher: Publisher) -> None:
    """A signed confirmation calls its URL and is no event; if the call fails it gets 503."""
    client = make_client(FetchedKeys(publisher.transport()))
    assert post(client, "sns", sns_message("SubscriptionConfirmation")).status_code == 200
    assert publisher.asked[1:] == [f"GET {SNS_CONFIRM}"]
    evil = sns_message(
        "SubscriptionConfirmation", SubscribeURL="https://evil.example/?Action=ConfirmSubscription&x=1"
    )
    assert post(client, "sns", evil).status_code == 401
    publisher.status = 403
    again = sns_message("SubscriptionConfirmation", SubscribeURL=f"{SNS_CONFIRM}2")
    assert post(client, "sns", again).status_code == 503
    assert ledger.events() == []


def test_a_function_of_the_user_verifies(make_client: MakeClient, ledger: Ledger) -> None:
    """Accepted deliveries are recorded, and refused ones get 401."""
    client = make_client()
    assert post(client, "own", {"id": "1", "type": "a"}, X_Word=SECRET).status_code == 200
    assert post(client, "own", {"id": "2", "type": "a"}, X_Word="other").status_code == 401
    assert [event["event_id"] for event in ledger.events()] == ["1"]


@pytest.mark.parametrize("word", ["boom", "false"])
def test_a_failing_verifier_is_503(
    make_client: MakeClient, ledger: Ledger, caplog: pytest.LogCaptureFixture, word: str
) -> None:
    """Any other error or return value is 503 and one log line without the compared values."""
    answer = post(make_client(), "own", {"id": "1"}, X_Word=word)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    # Another test's application may still log from its background threads.
    own = [record for record in caplog.records if record.name.startswith("receiver.verifiers")]
    errors = [record.getMessage() for record in own if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "own_webhooks:verify" in errors[0]
    assert SECRET not in caplog.text + answer.text
    assert ("own_webhooks.py:8" in errors[0]) == (word == "boom")
    assert ledger.events() == []


@pytest.mark.parametrize(
    ("verifier", "sentence"),
    [
        ("own_webhooks:undecorated", "is not decorated"),
        ("own_webhooks:nothing", "has no function nothing"),
        ("no_such_module:verify", "fails to import: ModuleNotFoundError"),
    ],
)
def test_a_verifier_that_is_none_stops_web(make_client: MakeClient, verifier: str, sentence: str) -> None:
    """Web does not start, and one sentence gives the reason."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        make_client(sources=SOURCES.replace("own_webhooks:verify", verifier))
    assert str(caught.value).startswith("[own] the verifier ")
    assert "\n" not in str(caught.value)


def test_an_unverified_source_accepts_every_delivery(make_client: MakeClient, ledger: Ledger) -> None:
    """With `unverified = true` every delivery is an event of its own."""
    client = make_client()
    for _ in range(2):
        answer = client.post("/webhooks/payments", data={"id": "tr_1"})
        assert answer.status_code == 200
    assert len(ledger.events()) == 2


FIELDS = {"MessageStatus": "sent", "Body": "é"}
QUERY = "?a=%C3%A9&b=%2F"


def text(
    client: FlaskClient, signed_url: str, headers: dict[str, str] | None = None, **how: str
) -> TestResponse:
    """Post a form that Twilio signed for a URL."""
    signature = RequestValidator(SECRET).compute_signature(signed_url, FIELDS)
    given = {"X-Twilio-Signature": signature, **(headers or {})}
    return client.post(f"/webhooks/twilio{QUERY}", data=FIELDS, headers=given, **how)


FORWARDED = {
    "X-Forwarded-For": "198.51.100.7, 203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "hooks.example.com",
    "X-Forwarded-Prefix": "/evil",
}


def test_the_url_is_the_one_that_was_called(make_client: MakeClient) -> None:
    """Without a proxy the signed URL has the request's scheme, host and raw query."""
    assert text(make_client(), f"http://localhost/webhooks/twilio{QUERY}").status_code == 200


def test_forwarded_headers_are_not_trusted_unasked(make_client: MakeClient, ledger: Ledger) -> None:
    """By default forwarded headers change neither the URL nor the stored address."""
    client = make_client()
    assert text(client, f"https://hooks.example.com/webhooks/twilio{QUERY}", FORWARDED).status_code == 401
    assert text(client, f"http://localhost/webhooks/twilio{QUERY}", FORWARDED).status_code == 200
    assert [event["address"] for event in ledger.events()] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("hops", "address"), [("1", "203.0.113.9"), ("2", "198.51.100.7"), ("3", "127.0.0.1")]
)
def test_proxy_hops_select_the_forwarded_value(
    make_client: MakeClient, ledger: Ledger, hops: str, address: str
) -> None:
    """The value of the proxy so many hops away is used, and none if there are fewer values."""
    client = make_client(FIRSTSEEN_PROXY_HOPS=hops)
    headers = FORWARDED | {
        "X-Forwarded-Proto": "https, https",
        "X-Forwarded-Host": "hooks.example.com, hooks.example.com",
    }
    url = "http://localhost" if hops == "3" else "https://hooks.example.com"
    assert text(client, f"{url}/webhooks/twilio{QUERY}", headers).status_code == 200
    assert [event["address"] for event in ledger.events()] == [address]


def test_a_public_url_stands_for_what_proxies_change(make_client: MakeClient) -> None:
    """Scheme, host and path prefix come from FIRSTSEEN_PUBLIC_URL, whatever the headers say."""
    client = make_client(FIRSTSEEN_PUBLIC_URL="https://example.com/hooks/")
    assert text(client, f"https://example.com/hooks/webhooks/twilio{QUERY}", FORWARDED).status_code == 200
    assert text(client, f"http://localhost/webhooks/twilio{QUERY}").status_code == 401


def test_the_command_line_finds_a_function_beside_it(tmp_path: Path, database_url: str) -> None:
    """`firstseen` finds a verifier's module in the present folder."""
    (tmp_path / "own_webhooks.py").write_text(OWN)
    (tmp_path / "sources.toml").write_text(SOURCES)
    (tmp_path / "headers.json").write_text(json.dumps({"X-Word": SECRET}))
    (tmp_path / "body").write_text('{"id": "1", "type": "a"}')
    env = clean_environment(
        DATABASE_URL=database_url,
        BROKER_URL=NO_BROKER,
        FIRSTSEEN_SECRET_KEY="0" * 32,
        FIRSTSEEN_SOURCES="sources.toml",
        TEST_SECRET=SECRET,
        PYTHONPATH=str(CHECKOUT),
    )
    # -P keeps the present folder out of sys.path, as a console script does.
    argv = [
        sys.executable,
        "-P",
        "-m",
        "firstseen",
        "verify",
        "own",
        "--headers",
        "headers.json",
        "--body",
        "body",
    ]
    ended = subprocess.run(
        argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "verified" in ended.stdout


def test_a_sample_is_signed_for_the_public_url(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`firstseen send` signs for the public URL, and delivers to this machine."""
    client = make_client(FIRSTSEEN_PUBLIC_URL="https://example.com/hooks")
    sent: list[Sample] = []

    def post_here(delivery: Sample) -> DeliveryAnswer:
        sent.append(delivery)
        path = delivery.url.removeprefix("http://127.0.0.1:8000")
        answer = client.post(path, data=delivery.body, headers=dict(delivery.headers))
        return DeliveryAnswer(delivery.event_id, answer.status_code, duplicate=False, answer=answer.json)

    monkeypatch.setattr(firstseen.send, "_post", post_here)
    result = CliRunner().invoke(cli, ["send", "twilio"])
    assert result.exit_code == 0, result.output
    assert sent[0].url.startswith("http://127.0.0.1:8000/webhooks/twilio")
