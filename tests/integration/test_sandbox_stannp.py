"""Stannp in the sandbox: one test for each of its rows in docs/dialects.md."""

from functools import partial
from urllib.parse import urlencode

from tests.services.sandbox import KEY, STANNP, Sandbox, together

send = STANNP.send

EXAMPLE = {
    "test": "true",
    "background": "https://www.stannp.com/assets/samples/letter-heading.webp",
    "pages": "Hello {firstname}, <br><br>This is my first letter.",
    "recipient[title]": "Mr",
    "recipient[firstname]": "John",
    "recipient[country]": "CA",
}
"""The document's own request, shortened."""


def test_stannp_header_is_x_idempotency_key(sandbox: Sandbox) -> None:
    """Only the header X-Idempotency-Key is read."""
    send(sandbox, KEY)
    assert send(sandbox, KEY).status_code == 409
    assert [send(sandbox, Idempotency_Key=KEY).status_code for _ in range(2)] == [200, 200]


def test_stannp_keys_have_10_to_1024_characters(sandbox: Sandbox) -> None:
    """Keys of 9 and of 1025 characters are refused."""
    answers = {n: send(sandbox, "k" * n) for n in (0, 9, 10, 1024, 1025)}
    statuses = {n: answer.status_code for n, answer in answers.items()}
    assert statuses == {0: 400, 9: 400, 10: 200, 1024: 200, 1025: 400}
    assert "10 to 1024" in answers[9].json()["error"], answers[9].text
    assert "this one has 1025" in answers[1025].json()["error"], answers[1025].text


def test_stannp_takes_keys_for_post_only(sandbox: Sandbox) -> None:
    """A key on GET has no effect."""
    identity = send(sandbox, KEY).json()["data"]["id"]
    path = f"/api/v1/letters/get/{identity}"
    assert [send(sandbox, KEY, method="GET", path=path).status_code for _ in range(2)] == [200, 200]
    assert [effect["method"] for effect in sandbox.effects] == ["POST"]


def test_stannp_keys_are_scoped_to_the_api_key(sandbox: Sandbox) -> None:
    """Two customers can use the same key; the document does not define this."""
    assert [send(sandbox, KEY, who=who).status_code for who in ("one", "two", "one")] == [200, 200, 409]
    assert len(sandbox.effects) == 2


def test_stannp_fingerprint_is_path_and_body(sandbox: Sandbox) -> None:
    """Path and exact body are compared, and headers are not."""
    send(sandbox, KEY)
    assert (
        send(sandbox, KEY, Content_Type="application/x-www-form-urlencoded; charset=utf-8").status_code == 409
    )
    assert send(sandbox, KEY, content=STANNP.body() + b"&").status_code == 200


def test_stannp_another_body_is_another_request(sandbox: Sandbox) -> None:
    """A used key with another body runs, and each body replays its own response."""
    first, second = send(sandbox, KEY, n=1), send(sandbox, KEY, n=2)
    assert (first.status_code, second.status_code) == (200, 200)
    again = [send(sandbox, KEY, n=n) for n in (1, 2)]
    assert [(answer.status_code, answer.text) for answer in again] == [(409, first.text), (409, second.text)]
    assert len(sandbox.effects) == 2


def test_stannp_concurrent_duplicates_wait_for_the_first(sandbox: Sandbox) -> None:
    """Four concurrent copies send one letter; the document does not define this."""
    sandbox.fault("/stannp", "hold", seconds=0.2)
    answers = together([partial(send, sandbox, KEY)] * 4)
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert {answer.text for answer in answers} == {answers[0].text}
    assert len(sandbox.effects) == 1


def test_stannp_stores_failures_too(sandbox: Sandbox) -> None:
    """A failure is stored, and replayed as a 409 with its body."""
    refused = [send(sandbox, KEY, content=b"pages=Hello") for _ in range(2)]
    assert [answer.status_code for answer in refused] == [400, 409]
    assert refused[0].content == refused[1].content
    assert refused[1].json()["success"] is False
    sandbox.fault("/stannp", "500")
    assert [send(sandbox, KEY).status_code for _ in range(2)] == [500, 409]
    assert sandbox.effects == []


def test_stannp_replay_is_409_with_the_original_body(sandbox: Sandbox) -> None:
    """A replay is a 409 with the original body, without a marker."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    assert (first.status_code, again.status_code) == (200, 409)
    assert (again.content, again.headers["Content-Type"]) == (first.content, first.headers["Content-Type"])
    assert set(again.headers) == set(first.headers)


def test_stannp_keys_live_24_hours(sandbox: Sandbox) -> None:
    """After 24 hours the same request is a new one."""
    send(sandbox, KEY)
    sandbox.advance(hours=23.9)
    assert send(sandbox, KEY).status_code == 409
    sandbox.advance(hours=0.2)
    assert send(sandbox, KEY).status_code == 200
    assert len(sandbox.effects) == 2


def test_stannp_a_post_without_a_key_happens_again(sandbox: Sandbox) -> None:
    """Without a key two letters are sent."""
    first, again = send(sandbox), send(sandbox)
    assert (first.status_code, again.status_code, len(sandbox.effects)) == (200, 200, 2)


def test_the_documents_example_gets_the_documents_answer(sandbox: Sandbox) -> None:
    """The documented request gets the documented fields, in their order."""
    answer = send(sandbox, KEY, content=urlencode(EXAMPLE).encode())
    assert list(answer.json()) == ["success", "data"]
    letter = answer.json()["data"]
    assert list(letter) == ["pdf", "id", "created", "format", "cost", "status"]
    assert (letter["id"], letter["format"], letter["cost"], letter["status"]) == (
        "0",
        "letter",
        "0.78",
        "test",
    )
