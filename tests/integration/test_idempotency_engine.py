"""The idempotency engine on SQLite and PostgreSQL: one key, one execution, under races and crashes."""

import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from flask import Response, abort, g
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.idempotency import engine as engine_module
from receiver.idempotency.engine import ANSWER_MAX
from receiver.idempotency.policy import StoredResponses
from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.idempotency_keys import (
    KEY,
    Held,
    Slot,
    StoredAnswer,
    drop_key,
    finish_key,
    open_key,
    prune_keys,
)
from receiver.ledger.store import Store
from tests.services.databases import Databases, driver_url
from tests.services.deployment import CHECKOUT
from tests.services.guarded import FIRSTSEEN, POINTS, Guarded
from tests.services.processes import Process, clean_environment
from tests.services.sandbox import together
from tests.services.waiting import answers, free_port, wait_until
from worker.sweeper import Pruner

WAITS = replace(FIRSTSEEN, locked=None)
"""The policy of our own API, except that a duplicate waits for the first response."""

Make = Callable[..., Guarded]
ANSWER = StoredAnswer(201, (("Content-Type", "text/plain"),), b"done")


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """Return one database of each kind for the module."""
    found = databases.fresh(request.param)
    yield found
    databases.drop(found)


@pytest.fixture
def make(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Build applications on an empty database: `make(policy, lease=...)`.

    Duplicates wait for minutes, because on a busy machine a short lease is over before its second look.
    """
    monkeypatch.setattr(engine_module, "PATIENCE", 300)
    made: list[Guarded] = []

    def build(*arguments: Any, **named: Any) -> Guarded:
        made.append(Guarded(url, *arguments, **named))
        return made[-1]

    build().empty()
    yield build
    for guarded in made:
        guarded.store.close()


@pytest.fixture
def guarded(make: Make) -> Guarded:
    """Return an application with the policy of our own API."""
    return make()


@pytest.fixture
def store(make: Make) -> Store:
    """Return a store with the table of keys."""
    return make().store


def slot(key: str = "a-key", fingerprint: str = "f", life: float = 60) -> Slot:
    """Return the slot that a request claims."""
    return Slot("test", "scope", key, fingerprint, timedelta(seconds=life))


def opened(store: Store, wanted: Slot | None = None, lease: float = 30) -> Any:
    """Claim a key."""
    return open_key(store, wanted or slot(), lease=timedelta(seconds=lease))


def test_concurrent_duplicates_run_once_and_get_equal_answers(make: Make) -> None:
    """Of eight concurrent copies one runs, and seven get its response, marked as replays."""
    guarded = make(WAITS)
    guarded.engine.stall = lambda: time.sleep(0.2)
    answers = together([guarded.send] * 8)
    assert {(answer.status_code, answer.data) for answer in answers} == {(201, answers[0].data)}
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 7
    assert guarded.deeds == 1


def test_concurrent_claims_have_one_holder(store: Store) -> None:
    """Of eight concurrent claims of one key one succeeds."""
    for number in range(5):
        found = together([partial(opened, store, slot(f"key-{number}"))] * 8)
        assert sum(isinstance(item, Held) for item in found) == 1, found


def test_a_locked_policy_answers_at_once(guarded: Guarded) -> None:
    """While the first request runs, a copy gets 409 and a different request 422, without a wait."""
    inside, leave = threading.Event(), threading.Event()

    def view() -> Any:
        inside.set()
        leave.wait(60)
        return guarded.deed()

    guarded.view = view

    def second() -> Any:
        assert inside.wait(60)
        try:
            return guarded.send(), guarded.send(body=b"other")
        finally:
            leave.set()

    first, (locked, misused) = together([guarded.send, second])
    assert (first.status_code, locked.status_code, misused.status_code) == (201, 409, 422)
    assert locked.json["error"] == "idempotency_key_locked"
    assert (guarded.deeds, guarded.send().status_code) == (1, 201)


def test_patience_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A duplicate waits at most two leases, then gets 409."""
    monkeypatch.setattr(engine_module, "PATIENCE", 0)
    guarded = make(WAITS)
    assert isinstance(opened(guarded.store, _slot_of(guarded)), Held)
    assert guarded.send().status_code == 409


def _slot_of(guarded: Guarded) -> Slot:
    with guarded.app.test_request_context(
        "/things", method="POST", data=b"{}", headers={"Idempotency-Key": "a-key"}
    ):
        found = guarded.engine._slot()
    assert found
    return found


def test_a_late_finisher_rolls_back_whole(make: Make) -> None:
    """A request whose lease was taken over rolls back and replays the new holder's response."""
    guarded = make(WAITS, lease=0.2)
    late, taken = threading.Event(), threading.Event()

    def stall() -> None:
        if not late.is_set():
            late.set()
            taken.wait(60)

    guarded.engine.stall = stall

    def second() -> Any:
        assert late.wait(60)
        try:
            return guarded.send()
        finally:
            taken.set()

    first, other = together([guarded.send, second])
    assert (first.status_code, first.data, guarded.deeds) == (201, other.data, 1)
    assert first.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in other.headers


def test_a_late_view_rolls_back_whole(make: Make) -> None:
    """The same inside the view's transaction; on SQLite its lock prevents the takeover."""
    guarded = make(WAITS, lease=0.8)
    turn = iter([1.6])

    def view() -> Any:
        answer = guarded.deed()
        time.sleep(next(turn, 0))
        return answer

    guarded.view = view
    found = together([guarded.send] * 2)
    assert {answer.data for answer in found} == {found[0].data}
    assert guarded.deeds == 1


def test_zero_rows_settled_is_a_takeover(store: Store) -> None:
    """An old fencing token neither stores a response nor frees the key."""
    old = opened(store, lease=-1)
    new = opened(store)
    assert (new.id, new.token) == (old.id, old.token + 1)
    with store.write() as connection:
        assert not finish_key(connection, old, ANSWER)
        assert not drop_key(connection, old)
        assert finish_key(connection, new, ANSWER)
        assert not drop_key(connection, new), "a stored answer stays"
    assert opened(store) == ANSWER


def test_an_expired_key_runs_again_for_the_same_request_only(make: Make) -> None:
    """After a crash the expired key runs the same request again; a different one is still a misuse."""
    guarded = make(WAITS, lease=0.2)
    opened(guarded.store, _slot_of(guarded), lease=-1)
    assert guarded.send(body=b"other").status_code == 422
    assert (guarded.send().status_code, guarded.deeds) == (201, 1)


@pytest.mark.parametrize("status", [500, 503, 404])
def test_responses_that_are_not_stored_run_again(guarded: Guarded, status: int) -> None:
    """5xx and 404 are not stored: the same request runs again, and its success is stored."""
    guarded.view = lambda: ("not now", status)
    assert (guarded.send().status_code, guarded.keys) == (status, 0)
    guarded.view = guarded.deed
    assert [guarded.send().status_code for _ in range(2)] == [201, 201]
    assert guarded.deeds == 1


@pytest.mark.parametrize("how", ["answer", "abort"])
def test_a_refusal_leaves_no_work_behind(guarded: Guarded, how: str) -> None:
    """The work of a view that ends with a 4xx is rolled back, and the refusal is stored."""

    def view() -> Any:
        guarded.deed()
        return abort(403) if how == "abort" else ("no", 403)

    guarded.view = view
    refused = guarded.send()
    guarded.view = guarded.deed
    again = guarded.send()
    assert (refused.status_code, again.status_code, again.data) == (403, 403, refused.data)
    assert guarded.deeds == 0


def test_a_view_that_breaks_frees_its_key(guarded: Guarded) -> None:
    """An unhandled error is a 500; its work is rolled back and its key free at once."""

    def view() -> Any:
        guarded.deed()
        raise RuntimeError("broken")

    guarded.view = view
    assert (guarded.send().status_code, guarded.deeds, guarded.keys) == (500, 0, 0)
    guarded.view = guarded.deed
    assert guarded.send().status_code == 201


def _lose_database(guarded: Guarded) -> None:
    """Make the database fail under the view: PostgreSQL ends the session, SQLite's disk is full."""
    with g.ledger.write() as connection:
        if guarded.store.sqlite:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            connection.exec_driver_sql("INSERT INTO deed (note) VALUES (hex(zeroblob(1000000)))")
        else:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize("released", [True, False])
def test_a_database_that_goes_away_is_503(
    make: Make, monkeypatch: pytest.MonkeyPatch, *, released: bool
) -> None:
    """Nothing is stored, under any policy; the next request runs after the lease at the latest."""
    guarded = make(replace(WAITS, stored=StoredResponses.ALL), lease=0.3)

    def view() -> Any:
        guarded.deed()
        _lose_database(guarded)
        return "never"

    def fail(*_: Any) -> bool:
        raise LedgerUnavailable

    guarded.view = view
    with monkeypatch.context() as patched:
        if not released:
            patched.setattr(engine_module.idempotency_keys, "drop_key", fail)
        answer = guarded.send()
    guarded.store.engine.dispose()
    assert (answer.status_code, guarded.deeds, guarded.keys) == (503, 0, int(not released))
    guarded.view = guarded.deed
    assert [guarded.send().status_code for _ in range(2)] == [201, 201]
    assert guarded.deeds == 1


def test_an_unavailable_ledger_is_no_answer(make: Make) -> None:
    """LedgerUnavailable in a view is a 503 that no policy stores."""
    guarded = make(replace(WAITS, stored=StoredResponses.ALL))

    def view() -> Any:
        guarded.deed()
        raise LedgerUnavailable

    guarded.view = view
    assert (guarded.send().status_code, guarded.deeds, guarded.keys) == (503, 0, 0)
    guarded.view = guarded.deed
    assert guarded.send().status_code == 201


def test_replays_are_byte_for_byte(guarded: Guarded) -> None:
    """A replay has status, body and content headers of the first response, and no cookie."""
    body = secrets.token_bytes(5000)
    headers = {"Content-Type": "image/x-odd; v=1", "ETag": '"7"', "Location": "/things/7", "X-Trace": "1"}

    def view() -> Response:
        response = Response(body, 202, headers)
        response.set_cookie("session", "secret")
        return response

    guarded.view = view
    first, again = guarded.send(), guarded.send()
    assert (again.status_code, again.data) == (202, body)
    kept = ("Content-Type", "ETag", "Location", "Content-Length")
    assert {name: again.headers[name] for name in kept} == {name: first.headers[name] for name in kept}
    assert set(again.headers.keys()) == {*kept, "Idempotent-Replayed"}


def test_a_replay_has_no_type_that_the_answer_had_not(guarded: Guarded) -> None:
    """A response without a Content-Type is replayed without one."""

    def view() -> Response:
        response = Response(b"", 204)
        del response.headers["Content-Type"]
        return response

    guarded.view = view
    assert [guarded.send().headers.get("Content-Type") for _ in range(2)] == [None, None]


def test_an_answer_too_large_to_keep_is_undone(guarded: Guarded) -> None:
    """A response over 1 MiB is a 500 under a key, and sent without one."""

    def view() -> Any:
        guarded.deed()
        return b"x" * (ANSWER_MAX + 1)

    guarded.view = view
    assert (guarded.send().status_code, guarded.deeds, guarded.keys) == (500, 0, 0)
    assert (guarded.send(key=None).status_code, guarded.deeds) == (200, 1)


def test_a_body_over_the_limit_is_413(make: Make) -> None:
    """A body at the limit is read, and one byte more is refused, with or without a key."""
    guarded = make(body_max=100)
    with guarded.app.app_context():
        sizes = {(key, n): guarded.send(key, b"x" * n).status_code for key in ("k", None) for n in (100, 101)}
    assert sizes == {("k", 100): 201, ("k", 101): 413, (None, 100): 201, (None, 101): 413}


def test_without_a_key_everything_runs(guarded: Guarded) -> None:
    """A request without a key, or with a method that takes none, runs each time."""
    sent = [guarded.send(key=None), guarded.send(key=None), *(guarded.send(method="PATCH") for _ in range(2))]
    assert [answer.status_code for answer in sent] == [201] * 4
    assert (guarded.deeds, guarded.keys) == (4, 0)


def test_after_its_life_a_key_is_new(guarded: Guarded) -> None:
    """An expired key runs again, also for a different request, with a new life."""
    guarded.send()
    guarded.store.shift = timedelta(hours=24, seconds=1)
    assert "Idempotent-Replayed" not in guarded.send(body=b"other").headers
    guarded.store.shift += timedelta(hours=23)
    assert guarded.send(body=b"other").headers["Idempotent-Replayed"] == "true"
    assert guarded.deeds == 2


def test_pruning_deletes_what_is_over_and_nothing_else(store: Store) -> None:
    """Expired keys are deleted; live and running ones stay."""
    for number in range(3):
        opened(store, slot(f"old-{number}", life=-1), lease=-1)
    opened(store, slot("running", life=-1))
    opened(store, slot("living"), lease=-1)
    assert (prune_keys(store), prune_keys(store)) == (3, 0)
    with store.read() as connection:
        left = connection.execute(KEY.select()).mappings().all()
    assert {row["key"] for row in left} == {"running", "living"}


def test_a_pruned_holder_rolls_back(make: Make) -> None:
    """A request whose key was pruned while it ran rolls back and runs again."""
    guarded = make(replace(WAITS, life=timedelta(seconds=-1)), lease=-1)
    seen = iter([True, False])

    def stall() -> None:
        if next(seen, False):
            assert prune_keys(guarded.store) == 1

    guarded.engine.stall = stall
    assert (guarded.send().status_code, guarded.deeds) == (201, 1)


def test_the_longest_keys_fit_the_index(store: Store) -> None:
    """A key of 2,048 random characters, the most that a dialect may allow, is stored and found."""
    long = slot("".join(chr(33 + secrets.randbelow(94)) for _ in range(2048)))
    assert isinstance(opened(store, long), Held)
    assert not isinstance(opened(store, long), Held)


def test_an_unknown_scope_is_refused_at_start(store: Store) -> None:
    """A policy with an unknown scope stops the application at start."""
    with pytest.raises(ValueError, match="nothing says what the scope planet is"):
        engine_module.Engine(
            store, replace(FIRSTSEEN, scope=("planet", "path")), scopes={}, refuse=lambda _: Response()
        )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.none() | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=300),
    kind=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30),
    body=st.binary(max_size=300),
)
def test_any_header_and_any_body_get_a_defined_answer(
    guarded: Guarded, key: str | None, kind: str, body: bytes
) -> None:
    """Any bytes get an execution, its replay, or a refusal with a reason."""
    answer = guarded.send(key, body, Content_Type=kind)
    assert answer.status_code in {201, 400, 422}, answer.data
    assert answer.json, answer.data
    again = guarded.send(key, body, Content_Type=kind)
    assert again.status_code == answer.status_code
    assert (again.data == answer.data) == (key is not None)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[httpx.Client]:
    """Serve the application in a process that is restarted whenever it dies."""
    folder, port = tmp_path_factory.mktemp("guarded"), free_port()
    argv = [sys.executable, "-m", "tests.services.guarded", url, str(port)]
    env = clean_environment(PYTHONPATH=str(CHECKOUT))
    process = Process("guarded", argv, log=folder / "log", env=env, cwd=folder)
    wait_until(lambda: answers(port), lambda: f"the server to listen:\n{process.logs()}")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as found:
        yield found
    process.kill()


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_server_has_one_effect(client: httpx.Client, guarded: Guarded, point: str) -> None:
    """After kill -9 at each point of a request, the same request has one effect and one stored response."""
    headers = {"Idempotency-Key": f"killed-{point}"}
    with pytest.raises(httpx.TransportError):
        client.post("/things", headers={**headers, "X-Die": point})
    assert guarded.deeds == (point == "committed")
    at_once = client.post("/things", headers=headers)
    assert at_once.status_code in ({201} if point == "committed" else {201, 409}), at_once.text
    wait_until(lambda: client.post("/things", headers=headers).status_code == 201, "the lease to end")
    assert guarded.deeds == 1


def test_the_workers_pruner_deletes_keys(migrated_url: str) -> None:
    """The worker's pruner deletes expired keys."""
    store = Store(driver_url(migrated_url))
    try:
        opened(store, slot(life=-1), lease=-1)
        assert Pruner(store, {}).run_once()["keys"] == 1
    finally:
        store.close()
