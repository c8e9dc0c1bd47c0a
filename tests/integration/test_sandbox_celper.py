"""Celper in the sandbox: one test for each of its rows in docs/dialects.md."""

from functools import partial

import pytest

from tests.services.sandbox import CELPER, KEY, SALESLY, Sandbox, together

send = CELPER.send


def test_celper_header_is_idempotency_key(sandbox: Sandbox) -> None:
    """Only the header Idempotency-Key is read."""
    first = send(sandbox, KEY)
    again = send(sandbox, KEY)
    other = send(sandbox, X_Idempotency_Key=KEY)
    assert (first.status_code, again.text, other.text == first.text) == (201, first.text, False)


def test_celper_keys_have_1_to_255_characters(sandbox: Sandbox) -> None:
    """Keys of 1 to 255 characters are accepted, and others are refused with the limit."""
    answers = {n: send(sandbox, "k" * n) for n in (0, 1, 255, 256)}
    assert {n: answer.status_code for n, answer in answers.items()} == {0: 400, 1: 201, 255: 201, 256: 400}
    assert "1 to 255" in answers[256].json()["error"]["message"], answers[256].text


@pytest.mark.parametrize("verb", ["invite", "select", "reject"])
def test_celper_takes_keys_at_four_endpoints(sandbox: Sandbox, verb: str) -> None:
    """POST of a candidate and its three status changes use the key; PATCH ignores it."""
    path = f"{CELPER.path}/{send(sandbox, KEY).json()['id']}"
    first, again = (send(sandbox, "k2", path=f"{path}/{verb}", content=b"") for _ in range(2))
    assert (first.status_code, again.content) == (200, first.content)
    assert [effect["path"] for effect in sandbox.effects][1:] == [f"/celper{path}/{verb}"]
    changed = [
        send(sandbox, "k2", method="PATCH", path=path, content=b'{"firstName": "%s"}' % name).json()[
            "firstName"
        ]
        for name in (b"Ann", b"Bea")
    ]
    assert changed == ["Ann", "Bea"], "a PATCH is not replayed"


def test_celper_keys_are_scoped_per_company(sandbox: Sandbox) -> None:
    """Companies do not share keys; two API keys of one company do."""
    acme, other = send(sandbox, KEY, who="acme"), send(sandbox, KEY, who="other", n=2)
    colleague = send(sandbox, KEY, X_API_Key="celp_acme_second")
    assert (acme.status_code, other.status_code) == (201, 201)
    assert colleague.text == acme.text
    assert len(sandbox.effects) == 2


def test_celper_fingerprint_is_method_path_and_body(sandbox: Sandbox) -> None:
    """The same body at another endpoint is a different request."""
    paths = [f"{CELPER.path}/{send(sandbox, n=n).json()['id']}" for n in (1, 2)]
    answers = [send(sandbox, KEY, path=f"{path}/invite", content=b"{}") for path in paths]
    assert [answer.status_code for answer in answers] == [200, 409]
    assert send(sandbox, KEY, path=f"{paths[0]}/invite", content=b"{ }").status_code == 409, "exact bytes"


def test_celper_mismatch_is_409_idempotency_conflict(sandbox: Sandbox) -> None:
    """A used key with a different body gets the conflict, and a new key succeeds."""
    send(sandbox, KEY)
    conflict = send(sandbox, KEY, n=2)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert len(sandbox.effects) == 1
    assert send(sandbox, "another", n=2).status_code == 201


def test_celper_concurrent_duplicates_wait_for_the_first(sandbox: Sandbox) -> None:
    """Four concurrent copies make one candidate; the document does not define this."""
    sandbox.fault("/celper", "hold", seconds=0.2)
    answers = together([partial(send, sandbox, KEY)] * 4)
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert len(sandbox.effects) == 1


def test_celper_stores_failures_too(sandbox: Sandbox) -> None:
    """A refusal and a 500 are stored like a success."""
    refused = [send(sandbox, KEY, content=b"{}") for _ in range(2)]
    assert [(answer.status_code, answer.text) for answer in refused] == [(400, refused[0].text)] * 2
    sandbox.fault("/celper", "500")
    broken = [send(sandbox, "k2") for _ in range(2)]
    assert [answer.status_code for answer in broken] == [500, 500]
    assert sandbox.effects == []


def test_celper_replay_is_identical_and_unmarked(sandbox: Sandbox) -> None:
    """A replay has the original status, body and headers, without a marker."""
    first, again = send(sandbox, KEY), send(sandbox, KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert set(again.headers) == set(first.headers)


def test_celper_keys_live_24_hours(sandbox: Sandbox) -> None:
    """A key replays for 24 hours, and can then be used for any request."""
    first = send(sandbox, KEY)
    sandbox.advance(hours=23.9)
    assert send(sandbox, KEY).text == first.text
    sandbox.advance(hours=0.2)
    assert send(sandbox, KEY, n=2).status_code == 201
    assert len(sandbox.effects) == 2


def test_celper_get_patch_and_delete_need_no_key(sandbox: Sandbox) -> None:
    """A repeated PATCH or DELETE changes nothing; a repeated POST does."""
    path = f"{CELPER.path}/{send(sandbox).json()['id']}"
    for method, body, statuses in (
        ("GET", b"", [200, 200]),
        ("PATCH", b'{"firstName": "Ann"}', [200, 200]),
        ("DELETE", b"", [204, 404]),
    ):
        answers = [send(sandbox, method=method, path=path, content=body) for _ in range(2)]
        assert [answer.status_code for answer in answers] == statuses, method
    assert [effect["method"] for effect in sandbox.effects] == ["POST", "PATCH", "DELETE"]
    assert send(sandbox).json()["id"] != send(sandbox).json()["id"]


def test_a_company_is_its_key_up_to_the_last_underscore(sandbox: Sandbox) -> None:
    """A key without `_` is a company of its own; companies cannot see each other's candidates."""
    path = f"{CELPER.path}/{send(sandbox, who='acme').json()['id']}"
    seen = {
        key: send(sandbox, method="GET", path=path, X_API_Key=key).status_code
        for key in ("celp_acme_x", "celp", "celp_x")
    }
    assert seen == {"celp_acme_x": 200, "celp": 404, "celp_x": 404}
    assert (
        SALESLY.send(sandbox, method="GET", path=f"{SALESLY.path}/{path.rpartition('/')[2]}").status_code
        == 404
    )
