"""Salesly in the sandbox: one test for each of its rows in docs/dialects.md."""

from functools import partial

from tests.services.sandbox import KEY, SALESLY, Sandbox, together

send = SALESLY.send
MARKER = "Idempotent-Replayed"


def made(sandbox: Sandbox) -> str:
    """Create a contact without a key; return its path."""
    return f"{SALESLY.path}/{send(sandbox).json()['data']['id']}"


def test_salesly_header_is_idempotency_key(sandbox: Sandbox) -> None:
    """Only the header Idempotency-Key is read."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    other = send(sandbox, X_Idempotency_Key=KEY)
    assert (first.status_code, again.text, other.text == first.text) == (201, first.text, False)


def test_salesly_keys_have_1_to_255_characters(sandbox: Sandbox) -> None:
    """The document has no limits; the sandbox accepts 1 to 255 characters."""
    answers = {n: send(sandbox, "k" * n) for n in (0, 1, 255, 256)}
    assert {n: answer.status_code for n, answer in answers.items()} == {0: 400, 1: 201, 255: 201, 256: 400}
    assert "1 to 255" in answers[0].json()["error"]["message"], answers[0].text


def test_salesly_takes_keys_for_post_put_patch_and_delete(sandbox: Sandbox) -> None:
    """All four mutations are replayed; a GET ignores the key."""
    path = made(sandbox)
    for method, body in (("PUT", b'{"name": "A"}'), ("PATCH", b'{"name": "B"}'), ("DELETE", b"")):
        first, again = (send(sandbox, method, method=method, path=path, content=body) for _ in range(2))
        assert (again.status_code, again.content) == (first.status_code, first.content), method
        assert again.headers[MARKER] == "true", method
    assert [effect["method"] for effect in sandbox.effects] == ["POST", "PUT", "PATCH", "DELETE"]
    read = [send(sandbox, KEY, method="GET") for _ in range(2)]
    assert [(answer.status_code, MARKER in answer.headers) for answer in read] == [(200, False)] * 2


def test_salesly_keys_are_scoped_to_the_api_key(sandbox: Sandbox) -> None:
    """Two accounts can use the same key."""
    first, other = send(sandbox, KEY, who="one"), send(sandbox, KEY, who="two")
    assert (first.status_code, other.status_code, MARKER in other.headers) == (201, 201, False)
    assert len(sandbox.effects) == 2


def test_salesly_fingerprint_is_method_and_path(sandbox: Sandbox) -> None:
    """The body is not compared: another body gets the first response."""
    first, other = send(sandbox, KEY), send(sandbox, KEY, n=2)
    assert (other.status_code, other.content, other.headers.get(MARKER)) == (201, first.content, "true")
    assert len(sandbox.effects) == 1


def test_salesly_mismatch_is_422_idempotency_conflict(sandbox: Sandbox) -> None:
    """The key at another endpoint or with another method gets the documented error."""
    path = made(sandbox)
    send(sandbox, KEY)
    sentence = {
        "error": {
            "type": "idempotency_conflict",
            "message": "This Idempotency-Key has already been used with a different request.",
        }
    }
    for method, where in (("POST", f"{SALESLY.path}/batch"), ("PUT", path)):
        conflict = send(sandbox, KEY, method=method, path=where)
        assert (conflict.status_code, conflict.json()) == (422, sentence), method
    assert len(sandbox.effects) == 2


def test_salesly_concurrent_duplicates_wait_for_the_first(sandbox: Sandbox) -> None:
    """Four concurrent copies make one contact; the document does not define this."""
    sandbox.fault("/salesly", "hold", seconds=0.2)
    answers = together([partial(send, sandbox, KEY)] * 4)
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert len(sandbox.effects) == 1


def test_salesly_stores_only_2xx(sandbox: Sandbox) -> None:
    """After a failure the same key runs again, also with another body, and the success is stored."""
    assert send(sandbox, KEY, content=b"{}").status_code == 400
    sandbox.fault("/salesly", "500")
    assert send(sandbox, KEY).status_code == 500
    assert sandbox.keys == 0
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    assert (first.status_code, MARKER in first.headers, again.text) == (201, False, first.text)
    assert len(sandbox.effects) == 1


def test_salesly_replay_is_identical_with_a_marker(sandbox: Sandbox) -> None:
    """A replay has the original status and body, and Idempotent-Replayed: true."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert (first.headers.get(MARKER), again.headers.get(MARKER)) == (None, "true")


def test_salesly_keys_live_24_hours(sandbox: Sandbox) -> None:
    """A key replays for 24 hours, and can then be used for any request."""
    first = send(sandbox, KEY)
    sandbox.advance(hours=23.9)
    assert send(sandbox, KEY).text == first.text
    sandbox.advance(hours=0.2)
    assert MARKER not in send(sandbox, KEY).headers
    assert len(sandbox.effects) == 2


def test_salesly_put_and_get_need_no_key(sandbox: Sandbox) -> None:
    """A repeated PUT changes nothing; a repeated POST makes a second contact."""
    path = made(sandbox)
    answers = [send(sandbox, method="PUT", path=path, content=b'{"name": "A"}').json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert send(sandbox, method="GET", path=path).json() == answers[0]
    made(sandbox)
    assert [effect["method"] for effect in sandbox.effects] == ["POST", "PUT", "POST"]


def test_a_batch_is_whole_or_not_at_all(sandbox: Sandbox) -> None:
    """A batch with an invalid contact makes none; a valid batch under the same key is made once."""
    path = f"{SALESLY.path}/batch"
    half = send(sandbox, KEY, path=path, content=b'{"contacts": [{"name": "A"}, {"name": ""}]}')
    assert (half.status_code, sandbox.effects) == (400, [])
    for _ in range(2):
        whole = send(sandbox, KEY, path=path, content=b'{"contacts": [{"name": "A"}, {"name": "B"}]}')
        assert whole.status_code == 201
    assert [effect["body"] for effect in sandbox.effects] == ['{"name": "A"}', '{"name": "B"}']
