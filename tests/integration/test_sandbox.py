"""Properties of all five sandbox APIs: credentials, keys, bodies, faults, the clock, the journal."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.services.sandbox import (
    CELPER,
    CHRONAPILOT,
    CLIENTS,
    KEY,
    SALESLY,
    STANNP,
    TELNESS,
    Client,
    Lingering,
    Sandbox,
    together,
)

every_api = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
WORDS = {
    "celper": lambda body: (body["error"]["code"], body["error"]["message"]),
    "chronapilot": lambda body: (body["error"]["code"], body["error"]["message"]),
    "salesly": lambda body: (body["error"]["type"], body["error"]["message"]),
    "stannp": lambda body: (body["code"], body["error"]),
    "telness": lambda body: (body["error"], body["message"]),
}
"""The code and the sentence in each API's error."""


def error(client: Client, answer: httpx.Response) -> tuple[str, str]:
    """Return the lower-case code and the sentence of an error, in the API's own shape."""
    code, sentence = WORDS[client.name](answer.json())
    return code.lower(), sentence


def lost(sandbox: Sandbox, client: Client, key: str = KEY) -> None:
    """Send a request whose connection closes without a response."""
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        client.send(sandbox, key)


def uncredited(sandbox: Sandbox, client: Client, credential: str | None) -> httpx.Response:
    """Send a request with this value in place of its credential."""
    name = next(iter(client.credential("one")))
    headers = {client.header: KEY} | ({name: credential} if credential is not None else {})
    return sandbox.http.post(f"{client.prefix}{client.path}", content=client.body(), headers=headers)


@every_api
@pytest.mark.parametrize("credential", [None, ""])
def test_without_a_credential_it_is_401_and_nothing_is_stored(
    sandbox: Sandbox, client: Client, credential: str | None
) -> None:
    """A missing or empty credential is refused before the key is read."""
    answer = uncredited(sandbox, client, credential)
    assert (answer.status_code, error(client, answer)[0]) == (401, "unauthorized")
    assert (sandbox.keys, sandbox.effects) == (0, [])
    assert [(request["api"], request["status"]) for request in sandbox.requests] == [(client.name, 401)]


@pytest.mark.parametrize("client", [STANNP, CHRONAPILOT], ids=lambda client: client.name)
@pytest.mark.parametrize(
    "credential", ["Basic", "Basic !", "Basic Og==", "Basic /w==", "Bearer", "Token x", "x"]
)
def test_a_broken_authorization_is_401(sandbox: Sandbox, client: Client, credential: str) -> None:
    """A wrong scheme, or a missing user name or token, is no credential."""
    assert (uncredited(sandbox, client, credential).status_code, sandbox.keys) == (401, 0)


SCHEMES = [pytest.param(STANNP, "Basic", id="stannp"), pytest.param(CHRONAPILOT, "Bearer", id="chronapilot")]


@pytest.mark.parametrize(("client", "scheme"), SCHEMES)
def test_a_401_names_the_scheme(sandbox: Sandbox, client: Client, scheme: str) -> None:
    """The 401 of an API with HTTP authentication has WWW-Authenticate."""
    answer = sandbox.http.post(f"{client.prefix}{client.path}")
    assert answer.headers["WWW-Authenticate"].partition(" ")[0] == scheme


@every_api
@pytest.mark.parametrize(
    "key", ["schlüssel-schlüssel".encode(), b"caf\xe9-caf\xe9-caf\xe9", b"tab\tin the middle"]
)
def test_a_key_that_is_not_printable_ascii_is_400(sandbox: Sandbox, client: Client, key: bytes) -> None:
    """The error names the header and the allowed values, and nothing is stored."""
    answer = client.send(sandbox, key)
    code, sentence = error(client, answer)
    assert (answer.status_code, code, sandbox.keys, sandbox.effects) == (
        400,
        "idempotency_key_invalid",
        0,
        [],
    )
    assert sentence.startswith(f"{client.header} must be "), sentence
    assert "printable ASCII characters" in sentence, sentence


@every_api
def test_a_body_over_the_limit_is_413(sandbox: Sandbox, client: Client) -> None:
    """A body over 1 MiB is refused, with a Content-Length or chunked."""
    body = client.body() + b" " * 1024 * 1024
    headers = {client.header: KEY, **client.credential("one")}
    path = f"{client.prefix}{client.path}"
    report = client.send(sandbox, KEY, content=body)
    chunked = sandbox.http.post(
        path, content=(body[i : i + 100_000] for i in range(0, len(body), 100_000)), headers=headers
    )
    for answer in (report, chunked):
        assert (answer.status_code, error(client, answer)[0]) == (413, "body_too_large"), answer.text
    assert (sandbox.keys, sandbox.effects) == (0, [])


@every_api
def test_unknown_paths_and_methods_are_refused_in_the_apis_shape(sandbox: Sandbox, client: Client) -> None:
    """404 and 405 store no key."""
    unknown = client.send(sandbox, KEY, path="/v9/nothing")
    assert (unknown.status_code, error(client, unknown)[0]) == (404, "not_found")
    method = client.send(sandbox, KEY, method="TRACE")
    assert (method.status_code, "POST" in method.headers["Allow"]) == (405, True)
    assert sandbox.keys == 0


@every_api
@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b"[]", b'"text"', b"{", b"null", b"[" * 100_000, b'{"name": 1}']
)
def test_a_body_that_makes_no_sense_is_400(sandbox: Sandbox, client: Client, body: bytes) -> None:
    """Any malformed body gets a sentence and has no effect."""
    answer = client.send(sandbox, content=body)
    assert (answer.status_code, sandbox.effects) == (400, [])
    assert error(client, answer)[1]


@every_api
def test_effects_and_requests_are_listed_in_order(sandbox: Sandbox, client: Client) -> None:
    """Each effect is listed once with its request, and each request with its status."""
    for n in (1, 1, 2):
        client.send(sandbox, f"{KEY}-{n}", n=n)
    common = {"api": client.name, "method": "POST", "path": f"{client.prefix}{client.path}"}
    effects, requests = sandbox.effects, sandbox.requests
    assert [{k: v for k, v in effect.items() if k != "at"} for effect in effects] == [
        {**common, "body": client.body(n).decode(), "key": f"{KEY}-{n}"} for n in (1, 2)
    ]
    assert [request["key"] for request in requests] == [f"{KEY}-{n}" for n in (1, 1, 2)]
    success, replay = (200, 409) if client is STANNP else (201, 201)
    assert [request["status"] for request in requests] == [success, replay, success]
    assert requests[0].items() >= common.items()
    assert sorted(requests, key=lambda request: request["at"]) == requests


@every_api
def test_drop_before_leaves_no_trace(sandbox: Sandbox, client: Client) -> None:
    """The connection closes before any effect, and the same request then runs."""
    sandbox.fault(client.prefix, "drop_before")
    lost(sandbox, client)
    assert (sandbox.keys, sandbox.effects, sandbox.requests[0]["status"]) == (0, [], None)
    assert client.send(sandbox, KEY).is_success
    assert len(sandbox.effects) == 1


@every_api
def test_drop_after_has_its_effect_once(sandbox: Sandbox, client: Client) -> None:
    """The response is lost after the effect, and the same request gets the stored response."""
    sandbox.fault(client.prefix, "drop_after")
    lost(sandbox, client)
    assert (len(sandbox.effects), sandbox.requests[0]["status"]) == (1, None)
    again = client.send(sandbox, KEY)
    assert again.status_code == (409 if client is STANNP else 201)
    assert len(sandbox.effects) == 1


@every_api
@pytest.mark.parametrize("kind", ["429", "503"])
def test_429_and_503_come_before_the_engine(sandbox: Sandbox, client: Client, kind: str) -> None:
    """They have Retry-After, happen `count` times, and store nothing."""
    sandbox.fault(client.prefix, kind, count=2, retry_after=7)
    for _ in range(2):
        answer = client.send(sandbox, KEY)
        assert (answer.status_code, answer.headers["Retry-After"]) == (int(kind), "7")
        assert error(client, answer)[1]
    assert (sandbox.keys, sandbox.effects) == (0, [])
    assert client.send(sandbox, KEY).is_success


@every_api
def test_slow_answers_late_after_the_effect(sandbox: Sandbox, client: Client, lingering: Lingering) -> None:
    """The effect precedes the delay, and a replay is not delayed."""
    sandbox.fault(client.prefix, "slow", seconds=0.4)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.send, sandbox, KEY)
        lingering.wait()
        again = client.send(sandbox, KEY)
        assert not slow.done()
        lingering.over.set()
    assert lingering.asked == [0.4], "a replay does not wait"
    assert slow.result().text == again.text
    assert len(sandbox.effects) == 1


@every_api
def test_a_fault_without_a_key_is_still_a_fault(sandbox: Sandbox, client: Client) -> None:
    """A 500 applies to requests without a key too, and has no effect."""
    sandbox.fault(client.prefix, "500")
    assert client.send(sandbox).status_code == 500
    assert sandbox.effects == []


@pytest.mark.parametrize("client", [CELPER, CHRONAPILOT, SALESLY, STANNP], ids=lambda client: client.name)
@pytest.mark.parametrize("count", [1, 2])
def test_a_race_executes_both(sandbox: Sandbox, client: Client, count: int) -> None:
    """Where concurrent copies are undefined, a race executes both; later copies are replays."""
    sandbox.fault(client.prefix, "race", count=count, seconds=5)
    answers = together([partial(client.send, sandbox, KEY)] * 2)
    assert all(answer.is_success for answer in answers), [answer.text for answer in answers]
    assert len(sandbox.effects) == 2
    assert client.send(sandbox, KEY).text in {answer.text for answer in answers}
    assert len(sandbox.effects) == 2


def test_a_race_alone_runs_once(sandbox: Sandbox) -> None:
    """A race without a second request ends after its wait, and the request is replayed as usual."""
    sandbox.fault("/salesly", "race", seconds=0.1)
    first, again = SALESLY.send(sandbox, KEY), SALESLY.send(sandbox, KEY)
    assert (first.text, len(sandbox.effects)) == (again.text, 1)


def test_faults_hit_what_lies_below_their_prefix_the_oldest_first(sandbox: Sandbox) -> None:
    """A request takes the oldest fault whose prefix matches its path."""
    sandbox.fault("/telness/api/v2/orders", "429")
    sandbox.fault("/telness", "503")
    sandbox.fault("/stannp/api/v1/letters/get", "503")
    path = f"{TELNESS.path}/{KEY}"
    assert STANNP.send(sandbox, KEY).status_code == 200
    assert [TELNESS.send(sandbox, KEY, method="GET", path=path).status_code for _ in range(3)] == [
        429,
        503,
        404,
    ]
    left = sandbox.http.get("/_faults").json()["faults"]
    assert [(fault["prefix"], fault["count"]) for fault in left] == [("/stannp/api/v1/letters/get", 1)]


@pytest.mark.parametrize(
    ("path", "asked", "words"),
    [
        ("faults", {"prefix": "/nobody", "kind": "slow"}, "prefix must be one of /celper, "),
        ("faults", {"prefix": "stannp", "kind": "slow"}, "prefix must be one of /celper, "),
        ("faults", {"prefix": "/stannp", "kind": "broken"}, "kind: "),
        ("faults", {"prefix": "/stannp"}, "kind: "),
        ("faults", {"prefix": "/stannp", "kind": "slow", "count": 0}, "count: "),
        ("faults", {"prefix": "/stannp", "kind": "slow", "seconds": 61}, "seconds: "),
        ("faults", {"prefix": "/stannp", "kind": "slow", "seconds": "5"}, "seconds: "),
        ("faults", {"prefix": "/stannp", "kind": "slow", "delay": 5}, "delay: "),
        ("faults", {"prefix": "/stannp", "kind": "429", "retry_after": -1}, "retry_after: "),
        ("faults", {"prefix": "/telness", "kind": "race"}, "/telness promises 409 idempotency_key_locked"),
        ("faults", [], "The body: "),
        ("faults", "{", "The body: "),
        ("clock", {}, "advance: "),
        ("clock", {"advance": -1}, "advance: "),
        ("clock", {"advance": True}, "advance: "),
        ("clock", '{"advance": NaN}', "advance: "),
        ("clock", '{"advance": 1e400}', "advance: "),
        ("clock", {"advance": 10**10}, "advance: "),
    ],
)
def test_misuse_of_the_controls_gets_one_sentence(
    sandbox: Sandbox, path: str, asked: Any, words: str
) -> None:
    """A wrong control request gets 400 with one sentence and changes nothing."""
    body = asked if isinstance(asked, str) else json.dumps(asked)
    answer = sandbox.http.post(f"/_{path}", content=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    sentence = answer.json()["error"]
    assert sentence.startswith(words), sentence
    assert (sentence.endswith("."), "\n" in sentence) == (True, False), sentence
    assert sandbox.http.get("/_faults").json() == {"faults": []}
    assert sandbox.http.get("/_clock").json()["shift"] == 0


def test_the_clock_moves_effects_and_keys_alike(sandbox: Sandbox) -> None:
    """Effects have the shifted time; shifts add up to a limit."""
    CELPER.send(sandbox)
    sandbox.advance(seconds=90_000)
    CELPER.send(sandbox)
    assert sandbox.control("clock", advance=0)["shift"] == 90_000
    first, second = (effect["at"] for effect in sandbox.effects)
    assert second[:10] > first[:10]
    refused = sandbox.http.post("/_clock", json={"advance": 100 * 365 * 86_400})
    assert (refused.status_code, "in all" in refused.json()["error"]) == (400, True)


def test_a_reset_forgets_everything(sandbox: Sandbox) -> None:
    """A reset deletes effects, requests, resources, keys and faults, and resets the clock."""
    path = f"{CELPER.path}/{CELPER.send(sandbox, KEY).json()['id']}"
    sandbox.fault("/celper", "503")
    sandbox.advance(hours=1)
    assert sandbox.control("reset") == {"reset": True}
    assert (sandbox.effects, sandbox.requests, sandbox.keys) == ([], [], 0)
    assert sandbox.http.get("/_faults").json() == {"faults": []}
    assert sandbox.http.get("/_clock").json()["shift"] == 0
    assert CELPER.send(sandbox, method="GET", path=path).status_code == 404


def test_many_different_requests_at_once_all_happen(sandbox: Sandbox) -> None:
    """Concurrent requests with different keys all have their effect."""
    calls = [partial(client.send, sandbox, f"{KEY}-{n}", n=n) for client in CLIENTS for n in range(4)]
    assert all(answer.is_success for answer in together(calls))
    assert len(sandbox.effects) == len(calls)


def test_a_database_that_does_not_answer_is_503(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 503 has Retry-After and the API's shape, and nothing is stored."""
    monkeypatch.setattr("receiver.ledger.store.WAIT", 0.1)
    writer = sandbox.store._writer
    assert writer
    with writer.turn(5):
        answer = STANNP.send(sandbox, KEY)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert error(STANNP, answer)[0] == "unavailable"
    assert (sandbox.keys, sandbox.effects) == (0, [])
