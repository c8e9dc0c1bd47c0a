"""ChronaPilot in the sandbox: one test for each of its rows in docs/dialects.md."""

from functools import partial

from tests.services.sandbox import CHRONAPILOT, KEY, Sandbox, together

send = CHRONAPILOT.send
MARKER = "Chronapilot-Idempotent-Replay"


def made(sandbox: Sandbox) -> str:
    """Create an event without a key; return its path."""
    return f"{CHRONAPILOT.path}/{send(sandbox).json()['id']}"


def test_chronapilot_header_is_idempotency_key(sandbox: Sandbox) -> None:
    """Only the header Idempotency-Key is read."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    other = send(sandbox, X_Idempotency_Key=KEY)
    assert (first.status_code, again.text, other.text == first.text) == (201, first.text, False)


def test_chronapilot_keys_have_1_to_255_characters(sandbox: Sandbox) -> None:
    """The document has no limits; the sandbox accepts 1 to 255 characters."""
    answers = {n: send(sandbox, "k" * n) for n in (0, 1, 255, 256)}
    assert {n: answer.status_code for n, answer in answers.items()} == {0: 400, 1: 201, 255: 201, 256: 400}
    assert "1 to 255" in answers[0].json()["error"]["message"], answers[0].text


def test_chronapilot_takes_keys_at_every_mutating_endpoint(sandbox: Sandbox) -> None:
    """POST, PUT, PATCH and DELETE are replayed; a GET ignores the key."""
    path = made(sandbox)
    for method, body in (("PUT", b'{"title": "Tea"}'), ("PATCH", b'{"title": "Tee"}'), ("DELETE", b"")):
        first, again = (send(sandbox, KEY, method=method, path=path, content=body) for _ in range(2))
        assert (again.status_code, again.content) == (first.status_code, first.content), method
        assert again.headers[MARKER] == "true", method
    assert [effect["method"] for effect in sandbox.effects] == ["POST", "PUT", "PATCH", "DELETE"]
    assert send(sandbox, KEY, method="GET", path=path).status_code == 404, "the GET is not replayed"


def test_chronapilot_keys_are_scoped_per_api_key_endpoint_and_account(sandbox: Sandbox) -> None:
    """Another API key, endpoint or connected account has separate keys."""
    path = made(sandbox)
    send(sandbox, KEY)
    elsewhere = [
        send(sandbox, KEY, n=2, who="two"),
        send(sandbox, KEY, method="PATCH", path=path, content=b'{"title": "Tea"}'),
        send(sandbox, KEY, n=3, X_Connected_Account="ann"),
        send(sandbox, KEY, n=4, X_Connected_Account="bea"),
    ]
    assert [answer.status_code for answer in elsewhere] == [201, 200, 201, 201]
    assert not any(MARKER in answer.headers for answer in elsewhere)
    assert send(sandbox, KEY, n=3, X_Connected_Account="ann").headers[MARKER] == "true"


def test_chronapilot_fingerprint_is_the_body(sandbox: Sandbox) -> None:
    """Only the body's exact bytes are compared, and neither query nor content type."""
    send(sandbox, KEY)
    again = send(sandbox, KEY, path=f"{CHRONAPILOT.path}?trace=1", Content_Type="application/vnd.event+json")
    assert again.headers.get(MARKER) == "true", again.text
    assert send(sandbox, KEY, content=CHRONAPILOT.body() + b" ").status_code == 409


def test_chronapilot_mismatch_is_409_idempotency_key_in_use(sandbox: Sandbox) -> None:
    """Another body under a used key gets the documented 409."""
    send(sandbox, KEY)
    conflict = send(sandbox, KEY, n=2)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert len(sandbox.effects) == 1


def test_chronapilot_concurrent_duplicates_wait_for_the_first(sandbox: Sandbox) -> None:
    """Four concurrent copies make one event; the document does not define this."""
    sandbox.fault("/chronapilot", "hold", seconds=0.2)
    answers = together([partial(send, sandbox, KEY)] * 4)
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert sum(MARKER in answer.headers for answer in answers) == 3
    assert len(sandbox.effects) == 1


def test_chronapilot_stores_failures_too(sandbox: Sandbox) -> None:
    """A failure is stored with its status, like a success."""
    sandbox.fault("/chronapilot", "500")
    answers = [send(sandbox, KEY) for _ in range(2)]
    assert [(answer.status_code, MARKER in answer.headers) for answer in answers] == [
        (500, False),
        (500, True),
    ]
    assert sandbox.effects == []


def test_chronapilot_replay_keeps_the_status_and_has_a_marker(sandbox: Sandbox) -> None:
    """A replay is the original with Chronapilot-Idempotent-Replay: true."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert (first.headers.get(MARKER), again.headers.get(MARKER)) == (None, "true")


def test_chronapilot_keys_live_24_hours(sandbox: Sandbox) -> None:
    """A key replays for 24 hours, and is then a new one."""
    first = send(sandbox, KEY)
    sandbox.advance(hours=23.9)
    assert send(sandbox, KEY).text == first.text
    sandbox.advance(hours=0.2)
    assert MARKER not in send(sandbox, KEY, n=2).headers
    assert len(sandbox.effects) == 2


def test_chronapilot_get_head_options_and_delete_need_no_key(sandbox: Sandbox) -> None:
    """Reads have no effect and a second DELETE is 404; POST and PATCH happen again."""
    path = made(sandbox)
    for method in ("GET", "HEAD", "OPTIONS"):
        assert {send(sandbox, method=method, path=path).status_code for _ in range(2)} == {200}, method
    for _ in range(2):
        send(sandbox, method="PATCH", path=path, content=b'{"title": "Tea"}')
    gone = [send(sandbox, method="DELETE", path=path, content=b"").status_code for _ in range(2)]
    assert gone == [204, 404]
    assert [effect["method"] for effect in sandbox.effects] == ["POST", "PATCH", "PATCH", "DELETE"]


def test_an_account_sees_its_own_events_whatever_the_key(sandbox: Sandbox) -> None:
    """An event of a connected account is invisible to other accounts and without one."""
    identity = send(sandbox, X_Connected_Account="ann").json()["id"]
    seen = {
        account: send(
            sandbox, method="GET", path=f"{CHRONAPILOT.path}/{identity}", X_Connected_Account=account
        ).status_code
        for account in ("ann", "bea", "")
    }
    assert seen == {"ann": 200, "bea": 404, "": 404}
