"""Telness in the sandbox: one test for each of its rows in docs/dialects.md."""

from concurrent.futures import ThreadPoolExecutor

from tests.services.sandbox import KEY, TELNESS, Lingering, Sandbox

send = TELNESS.send


def made(sandbox: Sandbox) -> str:
    """Create an order without a key; return its path."""
    return f"{TELNESS.path}/{send(sandbox).json()['orderId']}"


def test_telness_header_is_x_idempotency_key(sandbox: Sandbox) -> None:
    """Only the header X-Idempotency-Key is read."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    other = send(sandbox, Idempotency_Key=KEY)
    assert (first.status_code, again.text, other.text == first.text) == (201, first.text, False)
    assert first.json()["status"] == "CONFIRMED"


def test_telness_keys_have_1_to_255_characters(sandbox: Sandbox) -> None:
    """The document has no limits; the sandbox accepts 1 to 255 characters."""
    answers = {n: send(sandbox, "k" * n) for n in (0, 1, 255, 256)}
    assert {n: answer.status_code for n, answer in answers.items()} == {0: 400, 1: 201, 255: 201, 256: 400}
    assert "1 to 255" in answers[0].json()["message"], answers[0].text


def test_telness_takes_keys_for_every_mutation(sandbox: Sandbox) -> None:
    """POST, PUT, PATCH and DELETE are replayed; a GET ignores the key."""
    path = made(sandbox)
    for method, body in (("PUT", TELNESS.body(2)), ("PATCH", b'{"items": [1]}'), ("DELETE", b"")):
        first, again = (send(sandbox, method, method=method, path=path, content=body) for _ in range(2))
        assert (again.status_code, again.content) == (first.status_code, first.content), method
    assert [effect["method"] for effect in sandbox.effects] == ["POST", "PUT", "PATCH", "DELETE"]
    assert send(sandbox, "PUT", method="GET", path=path).status_code == 404, "the GET is not replayed"


def test_telness_keys_have_one_scope_for_all(sandbox: Sandbox) -> None:
    """The document has no scope, so another customer's request under the key is a mismatch."""
    send(sandbox, KEY, who="one")
    other = send(sandbox, KEY, who="two")
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_mismatch")


def test_telness_fingerprint_is_method_url_body_and_headers(sandbox: Sandbox) -> None:
    """Every part of a request that affects its processing is compared."""
    path = made(sandbox)
    send(sandbox, KEY, method="PUT", path=path)
    modified = {
        "method": send(sandbox, KEY, method="PATCH", path=path),
        "path": send(sandbox, KEY, method="PUT", path=made(sandbox)),
        "query": send(sandbox, KEY, method="PUT", path=f"{path}?a=1"),
        "body": send(sandbox, KEY, method="PUT", path=path, content=TELNESS.body() + b" "),
        "type": send(sandbox, KEY, method="PUT", path=path, Content_Type="text/json"),
        "authorization": send(sandbox, KEY, method="PUT", path=path, Authorization="Bearer x"),
    }
    assert {part: answer.status_code for part, answer in modified.items()} == dict.fromkeys(modified, 409)
    assert send(sandbox, KEY, method="PUT", path=path, User_Agent="other").status_code == 200


def test_telness_mismatch_is_409_idempotency_key_mismatch(sandbox: Sandbox, lingering: Lingering) -> None:
    """A different request is refused, also while the first one runs."""
    sandbox.fault("/telness", "hold")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, sandbox, KEY)
        lingering.wait()
        meanwhile = send(sandbox, KEY, n=2)
        lingering.over.set()
    assert first.result().status_code == 201
    for answer in (meanwhile, send(sandbox, KEY, n=3)):
        assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_key_mismatch")
    assert len(sandbox.effects) == 1


def test_telness_concurrent_duplicates_get_409_idempotency_key_locked(
    sandbox: Sandbox, lingering: Lingering
) -> None:
    """A copy is locked out while the first request runs, and replayed afterwards."""
    sandbox.fault("/telness", "hold")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, sandbox, KEY)
        lingering.wait()
        locked = send(sandbox, KEY)
        lingering.over.set()
    assert (first.result().status_code, locked.status_code) == (201, 409)
    assert (locked.json()["error"], locked.headers["Retry-After"]) == ("idempotency_key_locked", "1")
    assert send(sandbox, KEY).status_code == 201
    assert len(sandbox.effects) == 1


def test_telness_stores_failures_too(sandbox: Sandbox) -> None:
    """A failure is stored with its status."""
    sandbox.fault("/telness", "500")
    answers = [send(sandbox, KEY) for _ in range(2)]
    assert [(answer.status_code, answer.text) for answer in answers] == [(500, answers[0].text)] * 2
    assert sandbox.effects == []


def test_telness_replay_is_identical_and_unmarked(sandbox: Sandbox) -> None:
    """A replay has the original status, headers and body, except for the date."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    plain = [{k: v for k, v in answer.headers.items() if k != "date"} for answer in (first, again)]
    assert plain[0] == plain[1]


def test_telness_keys_live_24_hours(sandbox: Sandbox) -> None:
    """After 24 hours the same key is a new one."""
    first = send(sandbox, KEY)
    sandbox.advance(hours=23.9)
    assert send(sandbox, KEY).text == first.text
    sandbox.advance(hours=0.2)
    assert send(sandbox, KEY, n=2).status_code == 201
    assert len(sandbox.effects) == 2


def test_telness_post_and_patch_need_a_key(sandbox: Sandbox) -> None:
    """Without a key POST and PATCH happen again; a repeated PUT changes nothing."""
    made(sandbox)
    path = made(sandbox)
    for method in ("PATCH", "PATCH", "PUT", "PUT"):
        send(sandbox, method=method, path=path)
    assert [effect["method"] for effect in sandbox.effects] == ["POST", "POST", "PATCH", "PATCH"]
