"""Sources that are verified by code, through the front door: fetched keys, functions of users, proxies."""

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
    """Give a migrated SQLite database: nothing here depends on its kind."""
    url = databases.migrated("sqlite")
    yield url
    databases.drop(url)


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    """Look at the same database from outside."""
    return Ledger(database_url)


@pytest.fixture
def make_client(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> MakeClient:
    """Make clients of applications whose fetched keys come from where the test says."""
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
    """Signed messages are recorded, and the certificate is fetched once for all of them."""
    client = make_client(FetchedKeys(publisher.transport()))
    for number in range(3):
        assert post(client, "sns", sns_message(MessageId=f"m-{number}")).status_code == 200
    assert post(client, "sns", sns_message() | {"Message": "evil"}).status_code == 401
    assert len(publisher.asked) == 1
    assert [event["event_id"] for event in ledger.events()] == ["m-0", "m-1", "m-2"]


def test_without_its_key_a_delivery_comes_again(
    make_client: MakeClient, ledger: Ledger, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that cannot be fetched is 503 with Retry-After, never 401, and nothing is recorded."""
    publisher.status = 500
    answer = post(make_client(FetchedKeys(publisher.transport())), "sns", sns_message())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "answers 500" in caplog.text
    assert ledger.events() == []


def test_a_strange_address_is_refused_and_not_called(make_client: MakeClient, publisher: Publisher) -> None:
    """A message whose certificate is anywhere else is 401, and nobody is asked for it."""
    client = make_client(FetchedKeys(publisher.transport()))
    message = sns_message(SigningCertURL="https://sns.eu-west-1.amazonaws.com.evil.example/a.pem")
    assert post(client, "sns", message).status_code == 401
    assert publisher.asked == []


def test_a_subscription_is_confirmed(make_client: MakeClient, ledger: Ledger, publisher: Publisher) -> None:
    """A signed confirmation is answered by calling its address, and is no event; failing, it comes again."""
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
    """What it lets in is recorded, what it refuses is 401."""
    client = make_client()
    assert post(client, "own", {"id": "1", "type": "a"}, X_Word=SECRET).status_code == 200
    assert post(client, "own", {"id": "2", "type": "a"}, X_Word="other").status_code == 401
    assert [event["event_id"] for event in ledger.events()] == ["1"]


@pytest.mark.parametrize("word", ["boom", "false"])
def test_a_mistake_in_it_loses_nothing(
    make_client: MakeClient, ledger: Ledger, caplog: pytest.LogCaptureFixture, word: str
) -> None:
    """Whatever else it raises or returns is 503 and a line in the log, without what it compared."""
    answer = post(make_client(), "own", {"id": "1"}, X_Word=word)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    # An application of another test may still be counting; its lines are not about this one.
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
    """Web does not start without it, and says why in one sentence."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        make_client(sources=SOURCES.replace("own_webhooks:verify", verifier))
    assert str(caught.value).startswith("[own] the verifier ")
    assert "\n" not in str(caught.value)


def test_an_unverified_source_lets_everybody_in(make_client: MakeClient, ledger: Ledger) -> None:
    """Once the source says so, every delivery is an event of its own."""
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
    """Without a proxy scheme, host and the query as it was sent make the URL that is signed."""
    assert text(make_client(), f"http://localhost/webhooks/twilio{QUERY}").status_code == 200


def test_forwarded_headers_are_not_trusted_unasked(make_client: MakeClient, ledger: Ledger) -> None:
    """By default they change neither the URL nor the address that is kept."""
    client = make_client()
    assert text(client, f"https://hooks.example.com/webhooks/twilio{QUERY}", FORWARDED).status_code == 401
    assert text(client, f"http://localhost/webhooks/twilio{QUERY}", FORWARDED).status_code == 200
    assert [event["address"] for event in ledger.events()] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("hops", "address"), [("1", "203.0.113.9"), ("2", "198.51.100.7"), ("3", "127.0.0.1")]
)
def test_hops_say_whom_to_believe(make_client: MakeClient, ledger: Ledger, hops: str, address: str) -> None:
    """The value that the proxy so many hops away wrote counts; with fewer values than hops, none."""
    client = make_client(FIRSTSEEN_PROXY_HOPS=hops)
    headers = FORWARDED | {
        "X-Forwarded-Proto": "https, https",
        "X-Forwarded-Host": "hooks.example.com, hooks.example.com",
    }
    url = "http://localhost" if hops == "3" else "https://hooks.example.com"
    assert text(client, f"{url}/webhooks/twilio{QUERY}", headers).status_code == 200
    assert [event["address"] for event in ledger.events()] == [address]


def test_a_public_url_stands_for_what_proxies_change(make_client: MakeClient) -> None:
    """Scheme, host and a path that is cut off come from the setting, whatever the headers say."""
    client = make_client(FIRSTSEEN_PUBLIC_URL="https://example.com/hooks/")
    assert text(client, f"https://example.com/hooks/webhooks/twilio{QUERY}", FORWARDED).status_code == 200
    assert text(client, f"http://localhost/webhooks/twilio{QUERY}").status_code == 401


def test_the_command_line_finds_a_function_beside_it(tmp_path: Path, database_url: str) -> None:
    """A module in the folder in which `firstseen` is run is found, as by the Procfile's lines."""
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
    # -P leaves this folder out of the path, as a console script does.
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
    """`firstseen send` signs what a provider would call, and delivers it to this machine."""
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
